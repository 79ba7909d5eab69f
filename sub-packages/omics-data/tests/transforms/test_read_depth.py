"""Thinned counts: the published example, the distributions, what is told of the depth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from omics.data.errors import InputDataError
from omics.data.keyed_random import stream_key
from omics.data.transforms import PoissonDownsample, ReadDepthDownsample
from omics.data.transforms.read_depth_loops import beta_of_two, draw_binomial, draw_poisson

DEEP = {1: 900, 5: 300, 7: 5}
STARTS = np.random.default_rng(5).integers(0, 2**63, 20_000).astype(np.uint64)


def chi_square(draws, law, least=20):
    """Return the p-value of whole numbers against a distribution; rare ones are put together."""
    values = np.arange(int(draws.max()) + 2)
    expected = law.pmf(values) * len(draws)
    usual = np.flatnonzero(expected >= least)
    low, high = usual[0], usual[-1]
    observed = np.bincount(np.clip(draws, low, high), minlength=high + 1)[low:]
    expected = expected[low : high + 1]
    expected[0] = law.cdf(low) * len(draws)
    expected[-1] = law.sf(high - 1) * len(draws)
    return stats.chisquare(observed, expected).pvalue


@pytest.mark.parametrize(
    ("trials", "chance"),
    [
        (1, 0.3),
        (7, 0.52),
        (16, 0.9),
        (17, 0.5),
        (17, 0.97),
        (300, 0.01),
        (20, 0.5),
        (45, 0.7),
        (5000, 0.2),
        (5000, 0.998),
    ],
)
def test_binomial_draws_follow_the_binomial(trials, chance):
    draws = np.array([draw_binomial(start, trials, chance) for start in STARTS])
    assert 1e-4 < chi_square(draws, stats.binom(trials, chance)) < 1 - 1e-4


@pytest.mark.parametrize("mean", [0.05, 0.8, 6.0, 9.99, 10.0, 35.0, 700.0])
def test_poisson_draws_follow_poisson(mean):
    draws = np.array([draw_poisson(start, mean) for start in STARTS])
    assert 1e-4 < chi_square(draws, stats.poisson(mean)) < 1 - 1e-4


def test_huge_counts_are_drawn_with_the_right_moments():
    trials, chance = 2**32 - 1, 0.37
    draws = np.array([draw_binomial(start, trials, chance) for start in STARTS], float)
    spread = math.sqrt(trials * chance * (1 - chance))
    assert stats.kstest((draws - trials * chance) / spread, "norm").pvalue > 1e-4
    draws = np.array([draw_poisson(start, 1e9) for start in STARTS], float)
    assert stats.kstest((draws - 1e9) / math.sqrt(1e9), "norm").pvalue > 1e-4


def test_draws_at_the_ends():
    for start in STARTS[:100]:
        assert draw_binomial(start, 0, 0.5) == 0
        assert draw_binomial(start, 9, 0.0) == draw_binomial(start, 900, 0.0) == 0
        assert draw_binomial(start, 9, 1.0) == 9
        assert draw_binomial(start, 900, 1.0) == 900
        assert draw_poisson(start, 0.0) == 0


def test_the_share_of_a_cell_follows_beta_two_two():
    draws = [beta_of_two(start) for start in STARTS]
    assert stats.kstest(draws, stats.beta(2, 2).cdf).pvalue > 1e-4


def test_a_cell_that_is_not_thinned_by_hand(batch_of, cells_of):
    done = ReadDepthDownsample("equal")(batch_of([DEEP, {}]), seed=0, epoch=0)
    assert cells_of(done) == [DEEP, {}]
    np.testing.assert_allclose(done.fields["expression"], [8.919, 7.820, 3.749], atol=6e-4)
    np.testing.assert_allclose(done.obs["S"], [7.095, 0], atol=6e-4)
    assert done.obs["S"].tolist() == done.obs["T"].tolist()
    assert done.obs["S"].dtype == np.float32
    assert set(done.fields) == {"expression"}


def test_the_depth_that_is_asked_for_is_that_of_the_data(batch_of):
    batch = batch_of([DEEP, {3: 10}])
    done = ReadDepthDownsample("auto_align", max_total=50_000)(batch, seed=0, epoch=0)
    np.testing.assert_allclose(done.obs["T"], math.log1p(50_000), rtol=1e-6)
    np.testing.assert_allclose(done.obs["S"], [math.log1p(1205), math.log1p(10)], rtol=1e-6)
    assert "label_expression" not in done.fields


def test_thinned_cells_have_labels_of_the_cell_as_it_was(batch_of, cells_of):
    batch = batch_of([DEEP] * 400)
    done = ReadDepthDownsample(keep_targets=True)(batch, seed=0, epoch=0)
    assert done.targets is batch
    assert done.lengths.tolist() == [3] * 400
    thinned = np.array([list(cell.values()) for cell in cells_of(done)])
    untouched = (thinned == list(DEEP.values())).all(axis=1)
    assert 0.4 < untouched.mean() < 0.6
    labels = done.fields["label_expression"].reshape(400, 3)
    np.testing.assert_allclose(labels, [[8.919, 7.820, 3.749]] * 400, atol=6e-4)
    values = done.fields["expression"].reshape(400, 3)
    totals = thinned.sum(axis=1)
    np.testing.assert_allclose(values, np.log1p(1e4 * thinned / totals[:, None]), rtol=1e-5)
    np.testing.assert_allclose(done.obs["S"], np.log1p(totals), rtol=1e-6)
    np.testing.assert_allclose(done.obs["T"], math.log1p(1205), rtol=1e-6)
    np.testing.assert_array_equal(values[untouched], labels[untouched])
    assert (thinned <= list(DEEP.values())).all()


def test_half_of_the_deep_cells_are_thinned_by_one_share_each(batch_of):
    deep = dict.fromkeys(range(20), 100_000)
    done = ReadDepthDownsample()(batch_of([deep] * 3000), seed=0, epoch=0)
    kept = done.counts.reshape(3000, 20) / 100_000
    thinned = kept[(kept < 1).any(axis=1)]
    assert abs(len(thinned) / 3000 - 0.5) < 0.04
    assert thinned.std(axis=1).max() < 0.01
    assert stats.kstest(thinned.mean(axis=1), stats.beta(2, 2).cdf).pvalue > 1e-4


def test_shallow_cells_are_not_thinned(batch_of):
    batch = batch_of([{1: 999}, {1: 1000}] * 300)
    done = ReadDepthDownsample()(batch, seed=0, epoch=0)
    assert (done.counts[::2] == 999).all()
    assert 0.3 < (done.counts[1::2] < 1000).mean() < 0.7


def test_a_cell_never_loses_all_its_counts(batch_of):
    batch = batch_of([{1: 1, 2: 1}] * 2000)
    for transform in (ReadDepthDownsample(threshold=0), PoissonDownsample(renoise=1.0)):
        done = transform(batch, seed=0, epoch=0)
        totals = done.counts.reshape(2000, 2).sum(axis=1)
        assert totals.min() == 1
        assert (totals < 2).any()


def test_poisson_thinning_by_its_moments_and_labels_are_not_raw(batch_of):
    batch = batch_of([dict.fromkeys(range(40), 200)] * 2000)
    done = PoissonDownsample()(batch, seed=0, epoch=0)
    share = 0.55 * 0.6
    counts = done.counts.astype(float)
    assert abs((counts == 0).mean() - share) < 0.01
    left = counts[counts > 0]
    assert abs(left.mean() - 200 * (1 - share)) < 0.2
    assert abs(left.var() - 200 * share) < 2
    np.testing.assert_allclose(done.fields["label_expression"], math.log1p(200), rtol=1e-6)
    np.testing.assert_allclose(done.fields["expression"], np.log1p(counts), rtol=1e-6)
    totals = counts.reshape(2000, 40).sum(axis=1)
    np.testing.assert_allclose(done.obs["S"], np.log1p(totals), rtol=1e-6)
    np.testing.assert_allclose(done.obs["T"], math.log1p(8000), rtol=1e-6)


def test_counts_smaller_than_the_noise_end_at_zero(batch_of):
    done = PoissonDownsample(renoise=1.0)(
        batch_of([dict.fromkeys(range(60), 1)] * 200), seed=0, epoch=0
    )
    assert set(np.unique(done.counts)) == {0, 1}
    # Kept: not dropped (0.45), and a Poisson draw of mean 0.55 that is 0.
    assert abs(done.counts.mean() - 0.45 * math.exp(-0.55)) < 0.02


@pytest.mark.parametrize("transform", [ReadDepthDownsample(), PoissonDownsample("equal")])
def test_values_that_are_no_counts_are_refused(transform, batch_of):
    whole = transform(batch_of([{1: 1200.0}], dtype=np.float32), seed=0, epoch=0)
    assert whole.counts.dtype == np.float32
    for bad in (1.5, -2.0, math.nan, 2.0**40):
        with pytest.raises(InputDataError, match=f"{transform.name} draws from counts"):
            transform(batch_of([{1: bad}], dtype=np.float64), seed=0, epoch=0)


def test_other_obs_are_kept(batch_of):
    batch = batch_of([DEEP])
    batch.obs["label"] = np.array(["a"])
    done = ReadDepthDownsample("equal")(batch, seed=0, epoch=0)
    assert list(done.obs) == ["label", "S", "T"]
    assert list(batch.obs) == ["label"]


def test_streams_have_keys_of_their_own():
    keys = {int(stream_key(seed=0, epoch=0, stream=name)) for name in ("a", "b", "c")}
    assert len(keys) == 3
