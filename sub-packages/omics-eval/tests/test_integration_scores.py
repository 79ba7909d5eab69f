from __future__ import annotations

import numpy as np
import pytest
from integration_cells import counted_cells, golden, planted_groups

from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.eval import integrate, score_embeddings
from omics.eval.baselines import log_normalise, principal_components
from omics.eval.integration.integration_table import BATCH, BIO, METRICS

# Leiden visits vertices in random order, and igraph's generator is fed from Python's.
TOLERANCES = {"nmi": 0.02, "ari": 0.02}


@pytest.fixture(scope="module")
def planted():
    before, after, labels, batches = planted_groups()
    return score_embeddings({"corrected": after, "PCA": before}, labels, batches, label="type")


def test_every_metric_is_that_of_scib_metrics(planted):
    for method, theirs in (("corrected", golden()["after"]), ("PCA", golden()["before"])):
        compared = [metric for metric in theirs if metric != "pcr"]
        assert len(compared) >= 8
        for metric in compared:
            ours = planted.scores[method][metric].value
            assert ours == pytest.approx(theirs[metric], abs=TOLERANCES.get(metric, 1e-6)), metric


def test_averages_are_means_of_their_parts(planted):
    for scores in planted.scores.values():
        value = {metric: interval.value for metric, interval in scores.items()}
        assert tuple(scores) == METRICS
        assert value["avg_bio"] == pytest.approx(
            (value["nmi"] + value["ari"] + value["asw_label"]) / 3
        )
        assert value["avg_batch"] == pytest.approx(
            (value["graph_connectivity"] + value["asw_batch"]) / 2
        )
        assert value["nmi_mean"] <= value["nmi"]
    assert planted.scores["PCA"]["pcr_comparison"].value == 0


def test_intervals_hold_their_value_and_are_left_out_where_none_is_honest(planted):
    for scores in planted.scores.values():
        for metric, interval in scores.items():
            if metric in ("graph_connectivity", "nmi_mean", "ari_mean"):
                assert np.isnan([interval.low, interval.high]).all()
            else:
                assert interval.low <= interval.value <= interval.high
    found = planted.differences["PCA"]
    assert found["asw_batch"].p_holm < 0.001
    assert found["asw_batch"].interval.low > 0
    assert np.isnan(found["graph_connectivity"].p)
    for difference in found.values():
        assert not difference.p_holm < difference.p


def test_paired_intervals_are_narrower_than_those_of_two_unpaired_ones(planted):
    ours, theirs = (planted.scores[name]["asw_label"] for name in ("corrected", "PCA"))
    paired = planted.differences["PCA"]["asw_label"].interval
    unpaired = np.hypot(ours.high - ours.low, theirs.high - theirs.low)
    assert paired.high - paired.low < 0.7 * unpaired


def test_the_good_embedding_wins_and_the_random_one_loses():
    cells = counted_cells()
    found = integrate(cells, label="kind", batch="donor", use_rep=["X_good", "X_random"])
    bio = {name: found.scores[name]["avg_bio"].value for name in found.methods}
    assert bio["X_good"] > bio["PCA"] + 0.05 > bio["X_random"]
    assert found.verdict().startswith("X_good is better than PCA at keeping cell types apart (")
    other = integrate(cells, label="kind", batch="donor", use_rep="X_random")
    assert other.verdict().startswith("PCA is better than X_random at keeping cell types apart (")
    same = cells.copy()
    expression = log_normalise(cells.X)
    same.obsm["X_same"] = principal_components(expression, expression[:1])[0]
    level = integrate(same, label="kind", batch="donor", use_rep="X_same")
    assert level.verdict().startswith("X_same cannot be told apart from PCA at keeping cell types")
    assert level.differences["PCA"]["avg_bio"].interval.value == 0


def test_the_same_seed_gives_the_same_numbers_and_the_input_stays():
    cells = counted_cells(60)
    before = cells.copy()
    first, second = (integrate(cells, label="kind", use_rep="X_good") for _ in range(2))
    assert first.rows(dataset="d") == second.rows(dataset="d") or repr(
        first.rows(dataset="d")
    ) == repr(second.rows(dataset="d"))
    assert list(cells.obsm) == list(before.obsm)
    assert cells.obs.equals(before.obs)


def test_rows_hold_scores_differences_and_corrected_p_values():
    cells = counted_cells(90)
    cells.uns["omics"] = {"X_good": {"bundle_digest": "ab"}}
    found = integrate(cells, label="kind", batch="donor", use_rep="X_good", seed=3)
    rows = {(row.method, row.metric): row for row in found.rows(dataset="cells.h5ad")}
    score = rows["X_good", "nmi"]
    assert (score.task, score.dataset, score.n) == ("integrate:kind:donor", "cells.h5ad", 90)
    assert (score.seed, score.bundle, rows["PCA", "nmi"].bundle) == (3, "ab", "")
    both = "X_good minus PCA"
    assert rows[both, "nmi_difference"].bundle == "ab"
    assert rows[both, "nmi_difference_p"].value == found.differences["PCA"]["nmi"].p_holm
    assert len(rows) == 4 * len(METRICS)


def test_cells_without_label_batch_or_embedding_are_left_out_for_all():
    cells = counted_cells(120)
    cells.obs["kind"] = cells.obs["kind"].astype(object)
    cells.obs.iloc[0, 0] = None
    cells.obs.iloc[[1, 2], 1] = np.nan
    cells.obsm["X_good"][[2, 3, 4]] = np.nan
    found = integrate(cells, label="kind", batch="donor", use_rep=["X_good", "X_random"])
    assert found.num_cells == 115
    assert found.notes == (
        "1 cells without a label were left out.",
        "2 cells without a batch were left out.",
        "2 cells without an embedding in X_good were left out.",
    )
    rest = integrate(cells[5:].copy(), label="kind", batch="donor", use_rep=["X_good", "X_random"])
    assert repr(rest.scores) == repr(found.scores)


def test_many_cells_are_sampled_and_wide_embeddings_reduced_and_both_are_said():
    cells = counted_cells(100)
    cells.obsm["X_omics"] = np.random.default_rng(0).normal(size=(100, 30))
    found = integrate(cells, label="kind", max_cells=40, components=5, seed=2)
    assert found.num_cells == 40
    assert found.notes == (
        "A random sample of 40 of 100 cells was scored (seed 2).",
        "X_omics was reduced from 30 to 5 principal components.",
    )


def test_one_batch_or_one_label_leaves_the_other_half():
    cells = counted_cells(60)
    cells.obs["one"] = "the only one"
    bio = integrate(cells, label="kind", batch="one", use_rep="X_good")
    assert set(bio.metrics) == {"avg_bio", *BIO}
    assert "All cells are of the batch 'the only one', so the mixing" in bio.notes[0]
    without = integrate(cells, label="kind", use_rep="X_good")
    assert (without.metrics, without.notes) == (bio.metrics, ())
    batch = integrate(cells, label="one", batch="donor", use_rep="X_good")
    assert set(batch.metrics) == {"avg_batch", *BATCH}
    assert "All cells have the label 'the only one', so what an embedding keeps" in batch.notes[0]
    assert "at mixing batches (" in batch.verdict()
    assert "cell types" not in batch.verdict()
    with pytest.raises(InputDataError, match="nothing can be told apart or mixed"):
        integrate(cells, label="one", batch="one", use_rep="X_good")


def test_a_label_of_one_cell_has_a_defined_score(planted):
    assert planted.notes == ("Labels of a single cell, whose silhouette is 0: 4.",)


def test_labels_and_batches_that_coincide_leave_no_silhouette_of_batches():
    points, _, labels, _ = planted_groups()
    found = score_embeddings({"x": points, "PCA": points}, labels, labels)
    assert "asw_batch" not in found.metrics
    assert "avg_batch" not in found.metrics
    assert "mixing" not in found.verdict()


def test_bad_input_is_said_in_a_line():
    cells = counted_cells(40)
    with pytest.raises(UnknownNameError, match=r"no column 'knd'.*Did you mean 'kind'"):
        integrate(cells, label="knd", use_rep="X_good")
    with pytest.raises(UnknownNameError, match=r"no embedding 'X_god'.*Did you mean 'X_good'"):
        integrate(cells, label="kind", use_rep="X_god")
    with pytest.raises(UsageError, match="must have different names, none of them PCA"):
        integrate(cells, label="kind", use_rep=["X_good", "X_good"])
    with pytest.raises(UsageError, match="No embedding is named"):
        integrate(cells, label="kind", use_rep=[])
    with pytest.raises(
        InputDataError, match=r"10 of 10 cells have a label and every embedding; at "
    ):
        integrate(cells[:10].copy(), label="kind", use_rep="X_good")
    infinite = cells.copy()
    infinite.obsm["X_good"][7, 0] = np.inf
    with pytest.raises(InputDataError, match="infinite values in 1 of 40 cells, first in row 7"):
        integrate(infinite, label="kind", use_rep="X_good")
    logged = cells.copy()
    logged.X = logged.X * 0.5
    with pytest.raises(InputDataError, match="Counts are needed"):
        integrate(logged, label="kind", use_rep="X_good")


def test_arrays_of_other_cells_are_refused():
    points, _, labels, batches = planted_groups()
    with pytest.raises(UsageError, match=r"x is of 399 cells and the labels of 400"):
        score_embeddings({"x": points[1:], "PCA": points}, labels, batches)
    with pytest.raises(UsageError, match=r"batches is of 3 cells and the labels of 400"):
        score_embeddings({"PCA": points}, labels, batches[:3])
    with pytest.raises(UsageError, match="held against PCA, which is not among x"):
        score_embeddings({"x": points}, labels, batches)
    with pytest.raises(InputDataError, match="There are 5 cells; at least 16"):
        score_embeddings({"PCA": points[:5]}, labels[:5])


def test_pca_alone_has_no_verdict():
    points, _, labels, _ = planted_groups()
    found = score_embeddings({"PCA": points}, labels)
    assert found.verdict() == "There is only PCA: name an embedding to compare with it."
