"""Handing a verb's arguments to Hydra: `-cn`, `-cd`, overrides, `--cfg job`, multirun.

- Hydra's own messages become one paragraph with the nearest known key and exit code 2.
- A multirun gives every job the folder `working_dir/<job number>`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omics.data.errors import ConfigError, OmicsError, nearest

Job = Callable[[Any, Path], None]

_MULTIRUN = ("-m", "--multirun")


def run_with_hydra(verb: str, arguments: Sequence[str], job: Job) -> None:
    """Compose the configuration of a verb and run a job with it (or many, in a multirun).

    Args:
        verb: names the primary configuration, such as `pretrain`.
        arguments: the rest of the command line, as Hydra reads it.
        job: called with the typed configuration and the run folder.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a missing one.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from omics.train.run_config import RunConfig

    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    # Hydra prints and exits by itself unless told to raise; ours is the one place for errors.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"omics-train {verb}", *_multirun_first(arguments)]

    failures: list[OmicsError] = []

    def composed(config: Any) -> None:
        if failures:
            return
        try:
            start(config)
        except OmicsError as error:
            # Raised behind Hydra's back: it would print the overrides in front of our message.
            failures.append(error)

    def start(config: Any) -> None:
        if OmegaConf.is_missing(config, "working_dir"):
            raise ConfigError("working_dir is not set: add working_dir=FOLDER, where results go.")
        folder = Path(config.working_dir)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            folder /= str(HydraConfig.get().job.num)
        job(OmegaConf.to_object(config), folder)

    entry = hydra.main(
        version_base="1.3", config_path="pkg://omics.train.configs", config_name=verb
    )(composed)
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    if failures:
        raise failures[0]


def _multirun_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `-m` in front: behind an override Hydra would not see it."""
    flags = [a for a in arguments if a in _MULTIRUN]
    return [*flags[:1], *(a for a in arguments if a not in _MULTIRUN)]


def _explain(error: Exception) -> str:
    text = f"{error} {error.__cause__ or ''}"
    unknown = re.search(r"Key '([^']+)' not in '(\w+)'(?:\s+full_key: ([^\s]+))?", text)
    if unknown:
        key, section, full = unknown.groups()
        return f"There is no configuration key {full or key!r}.{nearest(key, _keys(section))}"
    wrong = re.search(
        r"(Value '.*' of type .* could not be converted to \w+)\s+full_key: (\S+)", text
    )
    if wrong:
        return f"{wrong.group(1)} (configuration key {wrong.group(2)})."
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"The configuration key {missing.group(1)} must be set: {missing.group(1)}=VALUE."
    primary = re.search(r"(Cannot find primary config '[^']+')", text)
    if primary:
        return f"{primary.group(1)}: give -cd FOLDER with it, or leave -cn out."
    return " ".join(str(error).split())


def _keys(section: str) -> list[str]:
    import dataclasses

    from omics.train import run_config

    cls = getattr(run_config, section, None)
    return [item.name for item in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
