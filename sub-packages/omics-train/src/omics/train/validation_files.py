"""What the last validation found beyond numbers: `confusion_matrices.parquet`, `gene_errors/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omics.data.atomic_files import replace_file
from omics.tokenizers import GeneTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omics.tokenizers import CellTokenizer
    from omics.train.lightning_module import TrainingModule
    from omics.train.validation_metrics import Confusion

CONFUSIONS = "confusion_matrices.parquet"
GENE_ERRORS = "gene_errors"


def write_validation_files(
    folder: Path,
    module: TrainingModule,
    tokenizer: CellTokenizer,
    classes: Mapping[str, Sequence[str]],
) -> None:
    """Write the confusion matrices and tables of genes that the losses ask for.

    Args:
        folder: the run folder.
        module: after its last validation.
        tokenizer: whose genes they are.
        classes: `{label: names of its classes}`.
    """
    if module.confusions:
        _write_confusions(folder / CONFUSIONS, module.confusions, classes)
    vocabulary = tokenizer.vocabulary
    names = list(vocabulary.tokens)
    symbols = np.array(names, dtype=object)
    if isinstance(tokenizer, GeneTokenizer):
        symbols[vocabulary.ordinary_ids] = tokenizer.symbols
    for term in module.objective.terms:
        if GENE_ERRORS in term.metrics:
            path = folder / GENE_ERRORS / f"{term.source}.parquet"
            path.parent.mkdir(exist_ok=True)
            module.metrics.gene_errors[term.name].write(path, names=names, symbols=symbols.tolist())


def _write_confusions(
    path: Path, confusions: Sequence[Confusion], classes: Mapping[str, Sequence[str]]
) -> None:
    """Write a row for each pair of classes that occurs: `source`, `truth`, `predicted`, `number`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[object]] = {"source": [], "truth": [], "predicted": [], "number": []}
    for confusion in confusions:
        counts = confusion.counts.numpy()
        names = classes.get(confusion.source, [str(n) for n in range(len(counts))])
        if confusion.source.endswith("_is_zero"):
            names = ["above zero", "zero"]
        for truth, predicted in zip(*np.nonzero(counts), strict=True):
            columns["source"].append(confusion.source)
            columns["truth"].append(names[truth])
            columns["predicted"].append(names[predicted])
            columns["number"].append(int(counts[truth, predicted]))
    table = pa.table(columns)
    with replace_file(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
