"""Options that several verbs of `omics-eval` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omics.data.errors import UsageError

Cells = Annotated[Path, typer.Argument(metavar="INPUT", help="An .h5ad file with an embedding.")]
Out = Annotated[Path, typer.Option("--out", help="The file to write.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="A bundle folder, hf:owner/name, a name that `omics-models list` shows, or a published "
        "checkpoint.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Label = Annotated[str, typer.Option("--label", help="The column of obs with the classes.")]
Split = Annotated[
    Path, typer.Option("--split", help="The split of these cells, from `omics-data split`.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of baselines, UMAP and bootstrap.")]


def named_paths(given: list[str], option: str) -> dict[str, Path]:
    """Return paths by name, from a repeatable option.

    Args:
        given: texts such as `pretraining=runs/pre`.
        option: its name, for messages.

    Raises:
        UsageError: a text is of another form, or a name occurs twice.
    """
    paths: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name.strip() and equals and path):
            raise UsageError(
                f"{option} {text!r} is not NAME=PATH, such as {option} pretraining=runs/pre."
            )
        if name in paths:
            raise UsageError(f"{option} names {name!r} twice; give each its own name.")
        paths[name] = Path(path)
    return paths
