"""The verb `omics-data check`: what is in a file, on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omics.data.command_line import print_json
from omics.data.commands.shared_options import AsJson

if TYPE_CHECKING:
    from omics.data.converting.check_report import FileReport, FolderReport, StoreReport


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command.

    Args:
        app: of `omics-data`.
    """
    app.command("check")(_check)


def _check(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A file, a folder or an address of cells; or a store."),
    ],
    *,
    genes: Annotated[
        Path | None,
        typer.Option("--genes", metavar="LIST", help="Say how many genes of this list are there."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUE", help="An option for the reader; repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a file in one screen: raw counts or not, gene ids, labels, what to do next.

    At most 64 MB of it are read, whatever its size.
    """
    from omics.data.commands.convert_command import reader_options
    from omics.data.converting.check import check_file

    report: FileReport | FolderReport | StoreReport = check_file(
        file, gene_list=genes, source_options=reader_options(option or [])
    )
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(report.text())
