"""`EvalResult`: one measured number with what it takes to compare it later; rows in Parquet.

- One row per (task, dataset, method, metric): tables of several runs can simply be stacked.
- The schema is fixed and checked on reading: a file of another kind is refused, not guessed at.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, MissingPathError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from omics.eval.classification import Scores
    from omics.eval.hidden_values import HiddenFigure
    from omics.eval.intervals import Interval


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One number.

    Attributes:
        task: what was asked, such as `annotate:cell_type` or `perturb:target`.
        dataset: a name for the cells, such as the file's.
        method: what answered.
        metric: `accuracy`, `macro_f1`, `accuracy_difference`, ..., or in an ontology those of
            `ontology_scores`, or of hidden values `exact`,
            `mae`, ... (see `hidden_values`), or of perturbations those of `perturbation_scores`.
        value: the number.
        low: lower end of its interval.
        high: upper end.
        n: what it is over: test cells; of the tasks `hidden:FIELD`, hidden tokens of these; of
            `perturb:COLUMN`, perturbations.
        seed: of the split's, the method's and the interval's draws.
        bundle: digest of the bundle behind the embedding; empty for a method without one.
    """

    task: str
    dataset: str
    method: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    bundle: str = ""

    @classmethod
    def of(
        cls,
        interval: Interval,
        *,
        task: str,
        dataset: str,
        method: str,
        metric: str,
        n: int,
        seed: int,
        bundle: str = "",
    ) -> EvalResult:
        """Return the row of a number with its interval.

        Args:
            interval: the number and its ends.
            task: see the class.
            dataset: see the class.
            method: see the class.
            metric: see the class.
            n: see the class.
            seed: see the class.
            bundle: see the class.
        """
        return cls(
            task=task,
            dataset=dataset,
            method=method,
            metric=metric,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=n,
            seed=seed,
            bundle=bundle,
        )


def rows_of_scores(
    scores: Scores, *, task: str, dataset: str, method: str, seed: int = 0, bundle: str = ""
) -> list[EvalResult]:
    """Return the rows of one method's accuracy and macro-F1.

    Args:
        scores: of the method.
        task: what was asked.
        dataset: a name for the cells.
        method: what answered.
        seed: of the draws.
        bundle: digest of the bundle, if any.
    """
    measured: tuple[tuple[str, Interval], ...] = (
        ("accuracy", scores.accuracy),
        ("macro_f1", scores.macro_f1),
    )
    return [
        EvalResult.of(
            interval,
            task=task,
            dataset=dataset,
            method=method,
            metric=metric,
            n=scores.num_cells,
            seed=seed,
            bundle=bundle,
        )
        for metric, interval in measured
    ]


def rows_of_figures(
    figures: Iterable[HiddenFigure],
    *,
    task: str,
    dataset: str,
    method: str,
    seed: int = 0,
    bundle: str = "",
) -> list[EvalResult]:
    """Return the rows of one method's figures over hidden values.

    Args:
        figures: of the method.
        task: what was asked, such as `hidden:expression`.
        dataset: a name for the cells.
        method: what answered.
        seed: of the draws.
        bundle: digest of the bundle, if any.
    """
    return [
        EvalResult.of(
            figure.interval,
            task=task,
            dataset=dataset,
            method=method,
            metric=figure.name,
            n=figure.num_tokens,
            seed=seed,
            bundle=bundle,
        )
        for figure in figures
    ]


def write_results(path: str | Path, rows: Iterable[EvalResult]) -> None:
    """Write rows as Parquet, atomically; a file that exists is replaced.

    Args:
        path: of the file.
        rows: to write, in order.
    """
    import pyarrow.parquet as pq

    from omics.data.atomic_files import replace_file

    with replace_file(Path(path)) as temporary:
        pq.write_table(results_table(rows), temporary)


def results_table(rows: Iterable[EvalResult]) -> pa.Table:
    """Return rows as a table with the schema of a results file.

    Args:
        rows: in order.
    """
    import pyarrow as pa

    return pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema())


def read_results(path: str | Path) -> list[EvalResult]:
    """Read rows written by `write_results`.

    Args:
        path: of the file.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is not a table of results.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise MissingPathError(f"There is no results file {path}.")
    try:
        table = pq.read_table(path)
        rows = table.select(_schema().names).cast(_schema()).to_pylist()
    except (pa.ArrowInvalid, KeyError) as error:
        names = ", ".join(field.name for field in fields(EvalResult))
        raise InputDataError(
            f"{path} is not a Parquet table of results with the columns {names} ({error})."
        ) from error
    return [EvalResult(**row) for row in rows]


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"str": pa.string(), "float": pa.float64(), "int": pa.int64()}
    return pa.schema([(field.name, kinds[str(field.type)]) for field in fields(EvalResult)])
