"""Small files of a run folder, and the refusal to replace those of an earlier run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from omics.data.atomic_files import write_bytes
from omics.data.errors import ConfigError, ExistingPathError, MissingPathError

if TYPE_CHECKING:
    from pathlib import Path

    from omics.train.run_config import RunConfig

BUNDLE = "bundle"
BUNDLE_BEST = "bundle_best"
CONFIGURATION = "config.yaml"


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse a result that exists, before any work is done for it.

    Args:
        path: the result.
        overwrite: whether it may be replaced.

    Raises:
        ExistingPathError: it exists and may not.
    """
    if path.exists() and not overwrite:
        raise ExistingPathError(
            f"{path} exists. Choose another working_dir, or add overwrite=true to replace it."
        )


def plain(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as plain JSON.

    Args:
        config: of a run.
    """
    # Through JSON, as a checkpoint keeps it: a tuple that was given for a list is a list.
    value: dict[str, Any] = json.loads(json.dumps(asdict(config), default=os.fspath))
    return value


def write_configuration(config: RunConfig, folder: Path) -> None:
    """Write the resolved configuration as `config.yaml`.

    Args:
        config: of the run.
        folder: the run folder, made if needed.
    """
    from omegaconf import OmegaConf

    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / CONFIGURATION, OmegaConf.to_yaml(OmegaConf.create(plain(config))).encode())


def read_configuration(folder: Path) -> RunConfig:
    """Return the configuration that `write_configuration` wrote.

    Args:
        folder: the run folder.

    Raises:
        MissingPathError: it has no `config.yaml`.
        ConfigError: the file holds keys or values that there are not.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from omics.train.run_config import RunConfig

    path = folder / CONFIGURATION
    if not path.is_file():
        raise MissingPathError(f"There is no {path}: give the folder of a run.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} is no configuration of a run: {error}") from error
    assert isinstance(config, RunConfig)
    return config


def write_run_facts(config: RunConfig, folder: Path, *, task: str, seconds: float) -> None:
    """Write `run.json`: what ran, how long, with which seed and versions.

    Args:
        config: of the run.
        folder: the run folder.
        task: `pretrain` or `finetune`.
        seconds: of the training itself.
    """
    facts = {
        "task": task,
        "seed": config.seed,
        "seconds": round(seconds, 3),
        "device": config.trainer.accelerator,
        "versions": versions(),
    }
    write_bytes(folder / "run.json", (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())


def versions() -> dict[str, str]:
    """Return the versions of Python, our packages and the libraries that decide numbers."""
    import platform

    names = ("omics-data", "omics-tokenizers", "omics-models", "omics-train")
    libraries = ("torch", "transformers", "lightning", "numpy")
    return {"python": platform.python_version(), **{n: _version(n) for n in (*names, *libraries)}}


@cache
def _version(distribution: str) -> str:
    return version(distribution)
