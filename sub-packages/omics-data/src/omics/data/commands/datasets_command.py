"""The verb `datasets` of `omics-data`: published datasets, and where the user's copies are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from omics.data.command_line import print_json

if TYPE_CHECKING:
    from omics.data.published_datasets import Dataset


def add_to(app: typer.Typer) -> None:
    """Register the verb `datasets`.

    Args:
        app: the application of `omics-data`.
    """
    app.command(name="datasets")(datasets)


def datasets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Print the path of your copy of this one."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything that is known as one JSON object.")
    ] = False,
) -> None:
    """List published datasets, or print where your copy of one is.

    Nothing is downloaded: OMICS_DATA_NAME holds the path of your copy. Without it the error says
    what to get, and where it is published.
    """
    from omics.data.published_datasets import find_dataset, locate_dataset, read_datasets

    if name is not None:
        path = locate_dataset(name)
        if as_json:
            print_json({"path": str(path), **find_dataset(name).to_dict()})
        else:
            typer.echo(str(path))
        return
    rows = list(read_datasets().values())
    if as_json:
        print_json({"datasets": [row.to_dict() for row in rows]})
        return
    for line in _table(rows):
        typer.echo(line)


def _table(rows: list[Dataset]) -> list[str]:
    """Return lines of aligned columns: name, cells, task, label, split and title."""
    cells = [("name", "cells", "task", "label", "split", "what")]
    cells += [
        (
            row.name,
            f"{row.cells:,}" if row.cells else "",
            row.task,
            row.labels[0] if row.labels else "",
            row.split,
            row.title,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return [
        "  ".join(
            [*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[5]]
        )
        for line in cells
    ]
