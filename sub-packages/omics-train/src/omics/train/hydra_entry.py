"""Handing a verb's arguments to Hydra: `-cn`, `-cd`, overrides, `--cfg job`, multirun.

- Hydra's own messages become one paragraph with the nearest known key and exit code 2.
- A multirun gives every job the folder `working_dir/<job number>`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError, OmicsError, nearest

if TYPE_CHECKING:
    from omics.train.run_config import RunConfig

Job = Callable[[Any, Path], None]

# Options of Hydra that take a value.
_WITH_VALUE = ("-cn", "--config-name", "-cd", "--config-dir", "-c", "--cfg", "-p", "--package")


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
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_schema()
    # Hydra prints and exits by itself unless told to raise; ours is the one place for errors.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"omics-train {verb}", *_options_first(arguments)]

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


def typed_configuration(
    verb: str, overrides: Sequence[str], *, config_folder: Path | None = None
) -> RunConfig:
    """Return the configuration of a verb as its command would compose it.

    Args:
        verb: names the primary configuration, such as `pretrain`.
        overrides: as on the command line.
        config_folder: where it is looked for besides, as `-cd` says.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a missing one.
    """
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from omics.train.run_config import RunConfig

    register_schema()
    packaged = "pkg://omics.train.configs"
    try:
        if config_folder is None:
            with initialize_config_module("omics.train.configs", version_base="1.3"):
                composed = compose(verb, overrides=list(overrides))
        else:
            with initialize_config_dir(str(config_folder.resolve()), version_base="1.3"):
                search = f"hydra.searchpath=[{packaged}]"
                composed = compose(verb, overrides=[search, *overrides])
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    assert isinstance(config, RunConfig)
    return config


@cache
def register_schema() -> None:
    """Make the typed configuration known to Hydra, and what recipes leave to their users.

    A recipe says `${required:KEY,VALUE}` where a key has no sensible default: composing works, and
    running without the key is an error that names it.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from omics.train.run_config import RunConfig

    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    OmegaConf.register_new_resolver("required", _refuse_unset, replace=True)


def _refuse_unset(key: str, value: str) -> Any:
    raise ConfigError(f"{key} is not set: add {key}={value}.")


def _options_first(arguments: Sequence[str]) -> list[str]:
    """Return the options, then the overrides: Hydra does not find one behind the other."""
    options, overrides = [], []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        options.append(argument)
        if argument in _WITH_VALUE and left:
            options.append(left.pop(0))
    return [*options, *overrides]


def _explain(error: Exception) -> str:
    text = f"{error} {error.__cause__ or ''}"
    explained = _explain_key(text)
    if explained is not None:
        return explained
    wrong = re.search(
        r"(Value '.*' of type .* could not be converted to \w+)\s+full_key: (\S+)", text
    )
    if wrong:
        return f"{wrong.group(1)} (configuration key {wrong.group(2)})."
    unset = re.search(r"resolving interpolation: (\S+ is not set: add .+\.)", text)
    if unset:
        return unset.group(1)
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"The configuration key {missing.group(1)} must be set: {missing.group(1)}=VALUE."
    primary = re.search(r"Cannot find primary config '([^']+)'", text)
    if primary:
        name = primary.group(1)
        return (
            f"There is no recipe {name!r}: give -cd FOLDER with {name}.yaml, or the name of a "
            f"packaged one.{nearest(name, recipes())}"
        )
    return " ".join(str(error).split())


def _explain_key(text: str) -> str | None:
    """Return what is wrong with a key; None where it is something else."""
    unknown = re.search(r"Key '([^']+)' not in '(\w+)'(?:\s+full_key: ([^\s]+))?", text)
    if unknown:
        key, section, full = unknown.groups()
        return f"There is no configuration key {full or key!r}.{nearest(key, _keys(section))}"
    # Entries of label_columns are names or mappings, so that Hydra does not know their keys.
    absent = re.search(
        r"Key '([^']+)' is not in struct\s+full_key: (label_columns\[(\d+)\]\S+)", text
    )
    if absent:
        key, full, number = absent.groups()
        known = _keys_of_label_columns()
        if key in known:
            return f"{full} is not set yet: add +label_columns.{number}.{key}=VALUE."
        return f"There is no configuration key {full!r}.{nearest(key, known)}"
    beyond = re.search(r"list index out of range\s+full_key: (\S+)\[(\d+)\]", text)
    if beyond:
        name, number = beyond.groups()
        return f"{name} has no entry {number}: give the list as a whole, {name}=[...], or count from 0."
    return None


def recipes() -> list[str]:
    """Return the names of the packaged configurations that `-cn` takes."""
    from importlib.resources import files

    names = (path.name for path in files("omics.train.configs").iterdir())
    return sorted(
        name.removesuffix(".yaml")
        for name in names
        if name.endswith(".yaml") and name != "base.yaml"
    )


def _keys_of_label_columns() -> list[str]:
    import dataclasses

    from omics.train.label_columns import LabelColumn

    return [item.name for item in dataclasses.fields(LabelColumn)]


def _keys(section: str) -> list[str]:
    import dataclasses

    from omics.train import run_config

    cls = getattr(run_config, section, None)
    return [item.name for item in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
