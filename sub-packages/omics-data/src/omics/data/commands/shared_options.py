"""Options and arguments that several verbs of `omics-data` have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omics.data.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at the output.")]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store folder.")]
StoreOrFile = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store folder, or an .h5ad file.")
]
TableOut = Annotated[Path, typer.Argument(metavar="OUT", help="The table to write (.parquet).")]
FolderOut = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")]

# Where counts are.
Counts = Annotated[
    str,
    typer.Option(
        "--counts",
        metavar="LOCATION",
        help="Where the raw counts are: X, raw.X, layers/NAME, or auto to look at the values.",
    ),
]
AllowNonCounts = Annotated[
    bool,
    typer.Option(
        "--allow-non-counts",
        help="Keep the values of LOCATION as they are, as float32, though they are no counts.",
    ),
]

# Limits of cells.
MinGenes = Annotated[
    int | None, typer.Option(min=0, help="Expressed genes that a cell has at least.")
]
MinCounts = Annotated[float | None, typer.Option(min=0, help="Counts that a cell has at least.")]
MaxGenes = Annotated[int | None, typer.Option(min=0, help="And at most.")]
MaxCounts = Annotated[float | None, typer.Option(min=0, help="And at most.")]
MaxMito = Annotated[
    float | None,
    typer.Option(min=0, max=100, help="Mitochondrial counts at most, in percent of a cell's."),
]
Mads = Annotated[
    float | None,
    typer.Option(
        min=0, help="Median absolute deviations a cell may be from the median, such as 5."
    ),
]
MinCells = Annotated[
    int | None, typer.Option(min=0, help="Cells in which a gene is found at least.")
]
Batch = Annotated[
    str | None,
    typer.Option(metavar="COL", help="The obs column of batches, each judged by itself."),
]

# Splits.
Fractions = Annotated[
    str, typer.Option(metavar="A,B,C", help="Shares of train, validation and test.")
]
Stratify = Annotated[
    str | None, typer.Option(metavar="COL", help="Keep the shares of this obs column.")
]
Group = Annotated[
    str | None, typer.Option(metavar="COL", help="Never divide a value of this obs column.")
]
Column = Annotated[
    str | None, typer.Option(metavar="COL", help="Use the split that this obs column names.")
]


def read_fractions(text: str) -> tuple[float, ...]:
    """Return the numbers of `--fractions`.

    Args:
        text: as it was given.

    Raises:
        UsageError: it is not numbers with commas between them.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--fractions {text!r} is not three numbers such as 0.7,0.1,0.2."
        ) from None
