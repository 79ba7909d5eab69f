"""Options that several verbs of `omics-eval` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Cells = Annotated[Path, typer.Argument(metavar="INPUT", help="An .h5ad file with an embedding.")]
Out = Annotated[Path, typer.Option("--out", help="The file to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Label = Annotated[str, typer.Option("--label", help="The column of obs with the classes.")]
Split = Annotated[
    Path, typer.Option("--split", help="The split of these cells, from `omics-data split`.")
]
UseRep = Annotated[str, typer.Option("--use-rep", help="The embedding in obsm.")]
Seed = Annotated[int, typer.Option("--seed", help="Of baselines, UMAP and bootstrap.")]
