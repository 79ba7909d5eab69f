from __future__ import annotations

import numpy as np
import pytest

from omics.data.storage.store import open_store
from omics.data.transforms import (
    GenePanel,
    LogNormalize,
    MaskGenes,
    ReadDepthDownsample,
    SampleGenes,
    TopGenes,
    apply_transforms,
    bind_transforms,
)
from omics.tokenizers import GeneTokenizer
from omics.train.target_cells import (
    cutting_steps,
    denoised,
    keep_whole_cells,
    measured_tokens,
    value_steps,
)

NORMALISE, TOP = LogNormalize(target_sum=1000), TopGenes(max_genes=5)


@pytest.fixture
def store(atlas):
    return open_store(atlas.store)


def run(store, steps, rows=range(20)):
    bound = bind_transforms(steps, store.genes)
    return apply_transforms(store.take(list(rows)), bound, seed=1, epoch=0, training=True)


def test_steps_are_divided_behind_the_last_that_makes_values():
    steps = [GenePanel(genes=("a",)), NORMALISE, TOP]
    assert value_steps(steps) == steps[:2]
    assert cutting_steps(steps) == steps[2:]
    assert (value_steps([TOP]), cutting_steps([TOP])) == ([], [TOP])


@pytest.mark.parametrize("sample", [[], [SampleGenes(keep_low=0.3, keep_high=0.5)]])
def test_targets_of_whole_cells_hold_the_genes_that_were_cut(store, sample):
    """The reference cut its targets with the input: cut genes were learnt as zeros."""
    batch = run(store, keep_whole_cells([NORMALISE, *sample, TOP]))
    whole = run(store, [NORMALISE])
    assert int(batch.lengths.max()) <= 5 < int(whole.lengths.max())
    assert np.array_equal(batch.targets.genes, whole.genes)
    assert np.array_equal(batch.targets.fields["expression"], whole.fields["expression"])
    assert batch.targets.targets is None


def test_targets_that_a_step_keeps_stay(store):
    steps = [NORMALISE, SampleGenes(keep_low=0.5, keep_high=0.5, keep_targets=True), TOP]
    plain, kept = run(store, steps), run(store, keep_whole_cells(steps))
    assert np.array_equal(plain.genes, kept.genes)
    assert np.array_equal(plain.targets.genes, kept.targets.genes)


@pytest.mark.parametrize("keeps", [False, True])
def test_thinned_cells_are_compared_with_what_they_were(store, keeps):
    steps = [ReadDepthDownsample(threshold=0), TOP]
    batch = run(store, keep_whole_cells(steps) if keeps else steps)
    done = denoised(batch)
    whole = batch.targets if keeps else batch
    assert np.array_equal(done.targets.genes, whole.genes)
    assert np.array_equal(done.targets.fields["expression"], whole.fields["label_expression"])
    assert (len(done.targets.genes) > len(done.genes)) == keeps
    assert np.array_equal(done.fields["expression"], batch.fields["expression"])
    assert not np.array_equal(whole.fields["label_expression"], whole.fields["expression"])


def test_cells_that_were_not_thinned_stay_as_they_are(store):
    batch = run(store, [NORMALISE])
    assert denoised(batch) is batch


def test_genes_outside_a_panel_are_unknown_and_no_zeros(store):
    tokenizer = GeneTokenizer.from_genes(store.genes)
    bound = tokenizer.bind(store.genes)
    ids = store.genes.ids.tolist()

    def measured(*steps):
        return measured_tokens(tokenizer, bound, store.genes, steps).tolist()

    assert measured(NORMALISE, TOP) == list(range(5, len(ids) + 5))
    panel = GenePanel(genes=(ids[7], ids[2]))
    assert measured(panel, NORMALISE) == [7, 12]
    assert measured(NORMALISE, panel) == list(range(5, len(ids) + 5))
    assert measured(MaskGenes(genes=tuple(ids[3:])), NORMALISE, TOP) == [5, 6, 7]
