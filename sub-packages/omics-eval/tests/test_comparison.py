from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.eval.baselines import HVG_KNN, MAJORITY, PCA_LOGISTIC, counts_of
from omics.eval.comparison import (
    baseline_predictions,
    embedding_predictions,
    labelled_split,
    labels_of,
    result_rows,
)

LABEL = "bulk_labels"


def test_only_labelled_cells_teach_and_are_scored(pbmc, pbmc_split):
    train, test = pbmc_split.rows("train"), pbmc_split.rows("test")
    pbmc.obs.iloc[[train[0], test[0], test[1]], 0] = None
    cells = labelled_split(pbmc, pbmc_split, label=LABEL)
    assert cells.train.tolist() == train[1:].tolist()
    assert cells.query.tolist() == test[2:].tolist()
    assert cells.unlabelled == 3
    assert not any(label is None for label in cells.truth)
    assert len(cells.classes) == 10


def test_a_class_that_nobody_teaches_is_named_and_counts_as_wrong(pbmc, pbmc_split):
    train = pbmc_split.rows("train")
    is_b = np.asarray(pbmc.obs[LABEL].iloc[train] == "CD19+ B")
    pbmc.obs.iloc[train[is_b], 0] = None
    cells = labelled_split(pbmc, pbmc_split, label=LABEL)
    assert cells.untaught == ["CD19+ B"]
    given = embedding_predictions(pbmc, cells, use_rep="X_omics")
    assert "CD19+ B" not in set(given.labels)
    baselines = baseline_predictions(counts_of(pbmc)[0], cells)
    for answers in baselines.values():
        assert (answers.labels[cells.truth == "CD19+ B"] != "CD19+ B").all()


def test_rows_hold_every_method_and_the_paired_difference(pbmc, pbmc_split):
    cells = labelled_split(pbmc, pbmc_split, label=LABEL)
    baselines = baseline_predictions(counts_of(pbmc)[0], cells)
    ours = {"X_omics + knn": embedding_predictions(pbmc, cells, use_rep="X_omics", method="knn")}
    rows = result_rows(
        cells.truth,
        labels_of(ours | baselines),
        task="t",
        dataset="d",
        bundles={"X_omics + knn": "abc"},
    )
    assert [row.method for row in rows[::2]] == [
        "X_omics + knn",
        PCA_LOGISTIC,
        HVG_KNN,
        MAJORITY,
        "X_omics + knn minus PCA + logistic regression",
    ]
    assert {row.n for row in rows} == {140}
    assert rows[8].metric == "accuracy_difference"
    assert rows[8].value == pytest.approx(rows[0].value - rows[2].value)
    assert rows[8].low <= rows[8].value <= rows[8].high
    assert [row.bundle for row in rows[:4]] == ["abc", "abc", "", ""]


def test_a_split_of_other_cells_is_refused(pbmc, pbmc_split):
    with pytest.raises(
        InputDataError, match=r"another dataset: it lists 700 cells and the file has 699"
    ):
        labelled_split(pbmc[:699], pbmc_split, label=LABEL)
    turned = pbmc[::-1].copy()
    with pytest.raises(InputDataError, match=r"700 of 700 cells have another name, first row 0: "):
        labelled_split(turned, pbmc_split, label=LABEL)


def test_unknown_names_name_the_nearest(pbmc, pbmc_split):
    with pytest.raises(UnknownNameError, match=r"'bulk_label' .*Did you mean 'bulk_labels'\?"):
        labelled_split(pbmc, pbmc_split, label="bulk_label")
    with pytest.raises(UnknownNameError, match=r"'tests'. Did you mean 'test'\?"):
        labelled_split(pbmc, pbmc_split, label=LABEL, query="tests")


def test_training_cells_are_not_scored(pbmc, pbmc_split):
    with pytest.raises(UsageError, match="scores on them would mean nothing"):
        labelled_split(pbmc, pbmc_split, label=LABEL, query="train")


def test_a_split_without_labelled_cells_is_refused(pbmc, pbmc_split, split_by):
    pbmc.obs.iloc[pbmc_split.rows("test"), 0] = None
    with pytest.raises(InputDataError, match="No cell of the split 'test' has a label"):
        labelled_split(pbmc, pbmc_split, label=LABEL)
    with pytest.raises(InputDataError, match="No cell of the split 'train' has a label"):
        labelled_split(pbmc, split_by(pbmc, np.full(700, 2)), label=LABEL)
