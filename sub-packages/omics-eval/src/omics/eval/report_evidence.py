"""What the report shows beside scores: what crosses the split, the genes behind answers, the model's card.

- Equal cells on both sides of a split let a model that has learned them by heart look good. They are
  always looked for, in the counts of the file.
- Genes are those that `omics-eval attribute` wrote, with its checks: a list of genes alone always
  looks convincing.
- A card holds what the bundle says of itself; nothing in it is markup.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, MissingPathError
from omics.data.splits import duplicate_cells, shared_values
from omics.eval.annotation import label_column
from omics.eval.attribution import CHECKS, TOP_GENES
from omics.eval.figures import top_genes_figure
from omics.eval.intervals import Interval
from omics.eval.results import read_results

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from omics.data.splits import SplitTable
    from omics.eval.baselines import SparseMatrix
    from omics.eval.figures import Picture

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked for across the borders of a split.

    Attributes:
        what: it is.
        found: in words.
        is_sound: nothing crosses.
    """

    what: str
    found: str
    is_sound: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a bundle is.

    Attributes:
        name: as given.
        sections: `(title, [(name, value)])`.
    """

    name: str
    sections: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Genes:
    """The genes behind the answers of a model.

    Attributes:
        picture: the first ones of each class.
        checks: of `attribute`: `(metric, class or nothing, value)`; bounds are NaN where there are none.
    """

    picture: Picture
    checks: list[tuple[str, str, Interval]] = field(default_factory=list)


def crossings(
    adata: AnnData, counts: SparseMatrix, split: SplitTable, group: str | None
) -> list[Finding]:
    """Look for what should not be on both sides of a split.

    Args:
        adata: the cells.
        counts: CSR [n_cells, g], of the same.
        split: of the same.
        group: obs column, such as the donor, of which no value should be in two parts; None looks for
            equal cells alone.

    Raises:
        UnknownNameError: no such column.
    """
    number, examples = duplicate_cells(counts, split)
    found = "none"
    if number:
        pairs = ", ".join(f"{one} and {other}" for one, other in examples)
        found = f"{number:,} (rows {pairs}{', ...' if number > len(examples) else ''})"
    findings = [
        Finding(
            what="Cells with the counts of a cell in another part",
            found=found,
            is_sound=number == 0,
        )
    ]
    if group is not None:
        shared = shared_values(label_column(adata, group), split)
        shown = ", ".join(shared[:_SHOWN]) + (", ..." if len(shared) > _SHOWN else "")
        findings.append(
            Finding(
                what=f"Values of {group} in more than one part",
                found=f"{len(shared):,} ({shown})" if shared else "none",
                is_sound=not shared,
            )
        )
    return findings


def read_genes(folder: Path) -> Genes:
    """Read what `omics-eval attribute` wrote.

    Args:
        folder: its `--out`.

    Raises:
        MissingPathError: there are no top genes.
        InputDataError: they cannot be read.
    """
    import pandas as pd
    import pyarrow as pa

    place = folder / f"{TOP_GENES}.parquet"
    if not place.is_file():
        raise MissingPathError(
            f"There is no {place}. Give the folder that `omics-eval attribute` wrote as its --out, "
            "with tables in Parquet."
        )
    try:
        wanted = pd.read_parquet(place, columns=["class", "symbol", "score", "low", "high"])
    except (pa.ArrowInvalid, ValueError, KeyError) as error:
        raise InputDataError(
            f"{place} is not a table of top genes ({error}). Run `omics-eval attribute` again."
        ) from error
    checks = folder / f"{CHECKS}.parquet"
    return Genes(
        picture=top_genes_figure(wanted, title="Genes by their part in the answer"),
        checks=[
            (row.metric, row.task.partition("=")[2], Interval(row.value, row.low, row.high))
            for row in (read_results(checks) if checks.is_file() else [])
        ],
    )


def read_cards(bundles: Sequence[str]) -> list[Card]:
    """Return the cards of bundles.

    Args:
        bundles: as `open_model` takes them.

    Raises:
        MissingPathError: there is no such model.
    """
    from omics.models.bundle_card import card_facts
    from omics.models.model_by_name import open_model

    return [Card(name=each, sections=_sections(card_facts(open_model(each)))) for each in bundles]


def _sections(facts: dict[str, dict[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (title, [(name, " ".join(str(value).split())) for name, value in named.items()])
        for title, named in facts.items()
    ]
