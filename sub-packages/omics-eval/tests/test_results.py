from __future__ import annotations

import pandas as pd
import pytest

from omics.data.errors import InputDataError, MissingPathError
from omics.eval.classification import Scores
from omics.eval.intervals import Interval
from omics.eval.results import EvalResult, read_results, rows_of_scores, write_results

ROW = EvalResult(
    task="annotate:cell_type",
    dataset="blood",
    method="HVG + kNN",
    metric="accuracy",
    value=0.8,
    low=0.7,
    high=0.9,
    n=140,
    seed=0,
    bundle="ab",
)


def test_rows_survive_the_file(tmp_path):
    path = tmp_path / "results.parquet"
    write_results(path, [ROW, ROW])
    assert read_results(path) == [ROW, ROW]
    assert pd.read_parquet(path).columns[:4].tolist() == ["task", "dataset", "method", "metric"]


def test_no_rows_are_a_table_too(tmp_path):
    write_results(tmp_path / "r.parquet", [])
    assert read_results(tmp_path / "r.parquet") == []


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "r.parquet"
    write_results(path, [ROW])
    write_results(path, [])
    assert read_results(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["r.parquet"]


def test_scores_become_two_rows():
    scores = Scores(Interval(0.9, 0.8, 0.95), Interval(0.7, 0.6, 0.8), 50)
    rows = rows_of_scores(scores, task="t", dataset="d", method="m", seed=3)
    assert [(row.metric, row.value, row.low, row.high, row.n, row.seed) for row in rows] == [
        ("accuracy", 0.9, 0.8, 0.95, 50, 3),
        ("macro_f1", 0.7, 0.6, 0.8, 50, 3),
    ]


def test_other_tables_are_refused(tmp_path):
    pd.DataFrame({"task": ["a"]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    for name in ("other.parquet", "text.parquet"):
        with pytest.raises(InputDataError, match=f"{name} is not a Parquet table of results"):
            read_results(tmp_path / name)
    with pytest.raises(MissingPathError, match="no results file"):
        read_results(tmp_path / "absent.parquet")
