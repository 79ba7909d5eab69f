"""The task `interpret`: the attribution of omics.eval over the cells of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.data.cell_source import open_cells
from omics.data.command_line import progress, say
from omics.data.errors import ConfigError
from omics.train.cell_selection import data_path, inference_rows

if TYPE_CHECKING:
    from pathlib import Path

    from omics.train.run_config import RunConfig


def check_interpretation(config: RunConfig, folder: Path) -> None:
    """Refuse what `interpret` could not do, as far as it is known without the model.

    Args:
        config: of the run.
        folder: where the files would go.

    Raises:
        ConfigError: no such method, baseline or format.
        UsageError: a number that makes no sense.
        ExistingPathError: the folder holds an attribution and `overwrite` is not set.
    """
    from omics.eval import AttributionOptions
    from omics.eval.attribution import check_output

    AttributionOptions(**_options(config))
    if config.trainer.precision != "32-true":
        raise ConfigError(
            f"trainer.precision is {config.trainer.precision!r}, and interpret computes in 32-true: "
            "small differences are what it is about. Leave it out."
        )
    if config.data_module.batch_size is not None and set(config.task) == {"interpret"}:
        raise ConfigError(
            "data_module.batch_size is not read by interpret; it has data_module.batch_tokens."
        )
    check_output(folder, table_format=config.attribution.format, overwrite=config.overwrite)


def interpret(config: RunConfig, folder: Path) -> None:
    """Write which genes make a bundle give cells their class, with checks and a figure.

    Args:
        config: with `checkpoint`, the cells, and what is asked in `attribution`.
        folder: where the files go.

    Raises:
        ConfigError: no checkpoint, or a model without label heads.
        ExistingPathError: the folder holds an attribution and `overwrite` is not set.
    """
    from omics.eval import attribute_files

    if config.checkpoint is None:
        raise ConfigError("checkpoint is not set: add checkpoint=BUNDLE (RUN_FOLDER/bundle).")
    with open_cells(data_path(config)) as store, progress("explaining", None) as advance:
        found = attribute_files(
            store,
            [config.checkpoint, *config.attribution.bundles],
            folder,
            rows=inference_rows(config.data_module, store, default=None),
            table_format=config.attribution.format,
            overwrite=config.overwrite,
            on_progress=advance,
            **_options(config),
        )
    for line in found.lines():
        say(line)
    say(f"Wrote scores of {found.num_cells:,} cells to {folder}")


def _options(config: RunConfig) -> dict[str, Any]:
    """Return the attributes of `AttributionOptions`."""
    asked = dict(vars(config.attribution))
    for name in ("bundles", "format"):
        del asked[name]
    return {
        **asked,
        "seed": config.seed,
        "batch_tokens": config.data_module.batch_tokens,
        "device": config.trainer.accelerator,
    }
