"""The head of a bundle as a method of annotation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attribution_parts import bundle_of
from scipy import sparse

from omics.data.errors import ConfigError, InputDataError, UnknownNameError, UsageError
from omics.eval.annotating.label_head import find_head, head_answers, head_thresholds, scorable
from omics.eval.annotation import Annotation
from omics.eval.comparison import labelled_cells, labelled_folds, labelled_split
from omics.models.inference import run_cells
from omics.models.label_answers import probabilities
from omics.tokenizers import LabelSpec


def test_answers_are_the_most_probable_classes_of_all_cells(planted_cells):
    bundle, store = planted_cells.bundle, planted_cells.store
    spec = find_head(bundle, "cell_type")
    given = head_answers(bundle, store, spec, device="cpu")
    shares = np.concatenate([probabilities(spec, b) for b in run_cells(bundle, store)])
    assert given.labels.tolist() == np.array(spec.classes)[shares.argmax(axis=1)].tolist()
    assert np.array_equal(given.confidence, shares.max(axis=1))
    truth = planted_cells.adata.obs["cell_type"].to_numpy()
    assert (given.labels == truth).mean() > 0.7


def test_a_cell_that_the_model_does_not_see_has_no_answer(planted_cells, tmp_path):
    from omics.data import convert

    cells = planted_cells.adata[:5].copy()
    cells.X = sparse.csr_matrix(cells.X.toarray() * (np.arange(5) != 2)[:, None])
    cells.write_h5ad(tmp_path / "c.h5ad")
    store = convert(tmp_path / "c.h5ad", tmp_path / "c.store")
    bundle = planted_cells.bundle
    given = head_answers(bundle, store, find_head(bundle, "cell_type"), device="cpu")
    assert [label is None for label in given.labels] == [False, False, True, False, False]
    assert np.flatnonzero(np.isnan(given.confidence)).tolist() == [2]


def test_heads_that_do_not_serve_are_refused(planted_cells):
    genes = list(planted_cells.adata.var_names)
    with pytest.raises(UnknownNameError, match=r"no head 'cell_typ'.*'cell_type'\? Name one with"):
        find_head(planted_cells.bundle, "cell_typ")
    with pytest.raises(ConfigError, match="has no label head"):
        find_head(bundle_of(genes, []), "cell_type")
    for kind, classes, message in (
        ("regression", (), "gives numbers"),
        ("multilabel", ("a", "b"), "gives several labels a cell"),
    ):
        spec = LabelSpec(name="l", classes=classes, kind=kind)
        with pytest.raises(ConfigError, match=message):
            find_head(bundle_of(genes, [spec]), "l")


def test_classes_go_by_name_and_nodes_are_not_scored(planted_cells):
    adata = planted_cells.adata.copy()
    kinds = adata.obs["cell_type"].astype(object).to_numpy()
    kinds[:3], kinds[3:5] = "above", "stranger"
    adata.obs["kind"] = kinds
    cells = labelled_cells(adata, label="kind")
    spec = find_head(planted_cells.bundle, "cell_type")
    assert scorable(cells, spec).all()
    hierarchy = replace(spec, kind="hierarchy", nodes={"above": (0, 1)})
    assert np.flatnonzero(~scorable(cells, hierarchy)).tolist() == [0, 1, 2]
    adata.obs["kind"] = "stranger"
    with pytest.raises(InputDataError, match="No label of the labelled cells, such as 'stranger'"):
        scorable(labelled_cells(adata, label="kind"), spec)


@pytest.fixture
def answered(pbmc):
    """Answers that are right where the confidence is above one half."""
    truth = pbmc.obs["bulk_labels"].astype(object).to_numpy()
    confidence = np.random.default_rng(0).random(700).astype(np.float32)
    return Annotation(np.where(confidence > 0.5, truth, "wrong"), confidence, ("wrong",))


def test_the_threshold_is_found_on_cells_that_are_not_scored(pbmc, pbmc_split, answered):
    validation, train = pbmc_split.rows("validation"), pbmc_split.rows("train")
    answered.labels[train] = "wrong"
    cells = labelled_split(pbmc, pbmc_split, label="bulk_labels")
    found, own = head_thresholds(cells, pbmc_split, answered, min_accuracy=0.8)
    assert own is None
    assert found in answered.confidence[validation]
    assert 0.3 < found < 0.7
    # Validation cells without labels, or that are scored, leave the training cells.
    scored = labelled_split(pbmc, pbmc_split, label="bulk_labels", query="validation")
    assert head_thresholds(scored, pbmc_split, answered, min_accuracy=0.8)[0] == np.inf
    pbmc.obs.iloc[validation, 0] = None
    cells = labelled_split(pbmc, pbmc_split, label="bulk_labels")
    assert head_thresholds(cells, pbmc_split, answered, min_accuracy=0.8)[0] == np.inf


def test_folds_have_thresholds_of_their_own_and_no_cells_have_none(pbmc, answered):
    folds = labelled_folds(pbmc, label="bulk_labels", num_folds=4)
    overall, own = head_thresholds(folds, None, answered, min_accuracy=0.9)
    assert 0.3 < overall < 0.7
    assert own.shape == (700,)
    assert 0.3 < own.min() <= own.max() < 0.7
    cells = labelled_cells(pbmc, label="bulk_labels")
    with pytest.raises(UsageError, match="found on labelled cells that are not scored"):
        head_thresholds(cells, None, answered, min_accuracy=0.9)
