from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from training_parts import EXPRESSION, GENES, SPECIALS, random_tokens

from omics.data.errors import ConfigError, InputDataError
from omics.tokenizers import FieldSpec, TokenBatch
from omics.tokenizers.vocabulary import special_value
from omics.train.adaptive_masking import AdaptiveMasking
from omics.train.masking import FieldMask, MaskPlan, pattern_weights


def plan(*fields, seed=3, comask=False, gene_weights=None, adaptive=None, **ratios):
    masks = tuple(FieldMask(field=spec, **ratios) for spec in fields or (EXPRESSION,))
    return MaskPlan(
        genes=GENES,
        fields=masks,
        seed=seed,
        comask=comask,
        gene_weights=gene_weights,
        adaptive=adaptive,
    )


def cell(tokens, number):
    """Return one cell of a batch."""
    begin, end = tokens.offsets[number], tokens.offsets[number + 1]
    return TokenBatch(
        fields={name: values[begin:end] for name, values in tokens.fields.items()},
        offsets=np.array([0, end - begin]),
        rows=tokens.rows[number : number + 1],
    )


BINS = FieldSpec(
    name="expression",
    kind="discrete",
    vocabulary_size=12,
    token_values=(*[math.nan] * 5, *(float(n) for n in range(7))),
    **SPECIALS,
)


def all_genes(nonzeros, *, num_genes=30, binned=False, first_row=0):
    """Return cells that show all genes, of which the first few of each are not 0."""
    size = len(nonzeros)
    values = np.zeros((size, num_genes), np.float32)
    for cell, number in enumerate(nonzeros):
        values[cell, :number] = 1 + np.arange(number) % 6
    genes = np.tile(np.arange(num_genes, dtype=np.int32) + 5, size)
    held = values.ravel().astype(np.int32) + 5 if binned else values.ravel()
    return TokenBatch(
        fields={"genes": genes, "expression": held},
        offsets=np.arange(size + 1) * num_genes,
        rows=np.arange(first_row, first_row + size),
    )


WIDE = FieldSpec(name="genes", kind="discrete", vocabulary_size=35, **SPECIALS)


def exact(field=EXPRESSION, *, seed=0, **ratios):
    return MaskPlan(genes=WIDE, fields=(FieldMask(field=field, **ratios),), seed=seed)


WEIGHTS = np.linspace(0.0, 3.0, GENES.vocabulary_size)


@pytest.mark.parametrize(
    "masks",
    [
        plan(change_ratio=0.3),
        plan(change_ratio=0.4, mask_ratio=0.5, switch_ratio=0.3),
        plan(change_ratio=0.4, gene_weights=WEIGHTS),
        plan(GENES, EXPRESSION, change_ratio=0.4, mask_ratio=0.6, switch_ratio=0.4, comask=True),
        plan(GENES, EXPRESSION, change_ratio=0.4, gene_weights=WEIGHTS),
        plan(change_ratio=0.4, nonzero_ratio=0.7, mask_ratio=0.5, switch_ratio=0.3),
    ],
)
def test_a_cell_is_hidden_alike_in_whatever_batch(masks):
    tokens = random_tokens(8)
    together, asked = masks.hide(tokens, epoch=2)
    for number in range(8):
        begin, end = tokens.offsets[number], tokens.offsets[number + 1]
        alone, asked_alone = masks.hide(cell(tokens, number), epoch=2)
        for mask in masks.fields:
            name = mask.field.name
            assert np.array_equal(together.fields[name][begin:end], alone.fields[name])
            question = asked[name]
            here = (question.positions >= begin) & (question.positions < end)
            assert np.array_equal(question.positions[here] - begin, asked_alone[name].positions)
            assert np.array_equal(question.values[here], asked_alone[name].values)


def test_masks_differ_between_epochs_and_seeds_and_hide_the_asked_share():
    tokens = random_tokens(400, seed=1)
    kept = set()
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        masked, asked = plan(change_ratio=0.15, seed=seed).hide(tokens, epoch=epoch)
        positions = asked["expression"].positions
        kept.add(tuple(positions.tolist()))
        share = len(positions) / len(tokens.targets.fields["genes"])
        assert 0.12 < share < 0.18
        assert (masked.fields["expression"][positions] == special_value(4)).all()
        assert (tokens.fields["genes"][positions] >= 5).all()
        assert np.array_equal(asked["expression"].values, tokens.fields["expression"][positions])
        assert np.array_equal(asked["expression"].genes, tokens.fields["genes"][positions])
    assert len(kept) == 3


def test_of_the_tokens_asked_about_shares_are_masked_switched_and_left():
    tokens = random_tokens(2000, seed=2)
    before = {name: values.copy() for name, values in tokens.fields.items()}
    shown, asked = plan(
        GENES, EXPRESSION, change_ratio=0.5, mask_ratio=0.6, switch_ratio=0.3, comask=True
    ).hide(tokens, epoch=0)
    for name, values in tokens.fields.items():
        assert np.array_equal(values, before[name])
        positions = asked[name].positions
        now, was = shown.fields[name][positions], values[positions]
        mask = 4 if name == "genes" else special_value(4)
        masked = now == mask
        assert np.mean(masked) == pytest.approx(0.6, abs=0.02)
        # Some are switched for the same: a gene of twelve, a value of those of the cell.
        choices = 12 if name == "genes" else tokens.lengths[tokens.cell_of_token()[positions]] - 1
        expected = 0.3 * np.mean(1 - 1 / choices)
        assert np.mean((now != was) & ~masked) == pytest.approx(expected, abs=0.015)
        rest = np.setdiff1d(np.arange(tokens.num_tokens), positions)
        assert np.array_equal(shown.fields[name][rest], values[rest])
    assert np.array_equal(asked["genes"].positions, asked["expression"].positions)


def test_a_switched_gene_is_any_ordinary_one_and_a_switched_value_is_of_the_same_cell():
    tokens = random_tokens(300, seed=2)
    shown, asked = plan(
        GENES, EXPRESSION, change_ratio=1.0, mask_ratio=0.0, switch_ratio=1.0, comask=True
    ).hide(tokens, epoch=0)
    genes = shown.fields["genes"][asked["genes"].positions]
    assert np.array_equal(np.unique(genes), np.arange(5, GENES.vocabulary_size))
    counts = np.bincount(genes)[5:]
    assert counts.min() > 0.6 * counts.mean()
    for number in range(300):
        begin, end = tokens.offsets[number] + 1, tokens.offsets[number + 1]
        own = set(tokens.fields["expression"][begin:end].tolist())
        assert set(shown.fields["expression"][begin:end].tolist()) <= own


def test_without_comask_a_token_is_hidden_in_one_field_at_most():
    tokens = random_tokens(200)
    _, asked = plan(GENES, EXPRESSION, change_ratio=0.5).hide(tokens, epoch=0)
    genes, values = (set(asked[name].positions.tolist()) for name in ("genes", "expression"))
    assert not genes & values
    total = len(tokens.targets.fields["genes"])
    assert len(genes) / total == pytest.approx(0.5, abs=0.05)
    assert len(values) / total == pytest.approx(0.25, abs=0.05)


def test_weights_move_masks_between_the_genes_of_a_cell_and_keep_their_number():
    tokens = random_tokens(3000, seed=4)
    weights = np.ones(GENES.vocabulary_size)
    weights[5:8], weights[8:11] = 0.0, 3.0
    _, asked = plan(change_ratio=0.2, gene_weights=weights).hide(tokens, epoch=0)
    often = np.bincount(asked["expression"].genes, minlength=17)[5:]
    there = np.bincount(tokens.targets.fields["genes"], minlength=17)[5:]
    assert often[:3].tolist() == [0, 0, 0]
    rates = often / there
    assert rates[3:6].mean() == pytest.approx(3 * rates[6:].mean(), rel=0.2)
    # Cells whose genes all weigh nothing have none hidden, so a little less than the share.
    assert 0.17 < often.sum() / there.sum() < 0.205


def test_special_tokens_wherever_they_stand_are_never_hidden():
    # [S] = 0, [MASK] = 3 and [CLS] = 9 of a vocabulary of others; [S] has a real value beside it.
    genes = FieldSpec(
        name="genes", kind="discrete", vocabulary_size=10, special_ids=(0, 3, 9), mask_id=3
    )
    values = FieldSpec(
        name="expression", kind="continuous", vocabulary_size=10, special_ids=(3, 9), mask_id=3
    )
    tokens = TokenBatch(
        fields={
            "genes": np.array([9, 0, 1, 2, 9, 0, 8], np.int32),
            "expression": np.array([-10, 7.5, 1, 2, -10, 7.5, 3], np.float32),
        },
        offsets=np.array([0, 4, 7]),
        rows=np.array([0, 1]),
    )
    masks = MaskPlan(genes=genes, fields=(FieldMask(field=values, change_ratio=1.0),))
    shown, asked = masks.hide(tokens, epoch=0)
    assert asked["expression"].positions.tolist() == [2, 3, 6]
    assert asked["expression"].values.tolist() == [1, 2, 3]
    assert shown.fields["expression"].tolist() == [-10, 7.5, -4, -4, -10, 7.5, -4]
    switching = FieldMask(field=values, change_ratio=1.0, mask_ratio=0.0, switch_ratio=1.0)
    shown, _ = replace(masks, fields=(switching,)).hide(tokens, epoch=0)
    assert set(shown.fields["expression"][[2, 3]]) <= {1.0, 2.0}
    assert shown.fields["expression"][[0, 1, 4, 5, 6]].tolist() == [-10, 7.5, -10, 7.5, 3]


def test_cells_without_genes_and_batches_without_cells_are_hidden_too():
    tokens = random_tokens(3)
    only_cls = {name: values[tokens.offsets[:-1]] for name, values in tokens.fields.items()}
    for fields, offsets in [
        (only_cls, np.arange(4)),
        ({n: v[:0] for n, v in only_cls.items()}, np.zeros(4, int)),
    ]:
        for masks in (plan(change_ratio=1.0, switch_ratio=0.0), plan(gene_weights=WEIGHTS)):
            batch = TokenBatch(fields=fields, offsets=offsets, rows=tokens.rows)
            shown, asked = masks.hide(batch, epoch=0)
            assert len(asked["expression"].positions) == 0
            assert np.array_equal(shown.fields["expression"], fields["expression"])


def test_a_value_that_is_not_finite_names_its_cell():
    tokens = random_tokens(5, first_row=40)
    tokens.fields["expression"][tokens.offsets[3] + 1] = np.nan
    with pytest.raises(InputDataError, match="'expression' of the cell in row 43 holds nan"):
        plan().hide(tokens, epoch=0)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"change_ratio": 1.5}, r"has change_ratio 1\.5"),
        ({"mask_ratio": -0.1}, r"has mask_ratio -0\.1"),
        ({"mask_ratio": 0.9, "switch_ratio": 0.2}, "together they must not exceed 1"),
        ({"nonzero_ratio": 1.5}, r"has nonzero_ratio 1\.5"),
    ],
)
def test_a_ratio_that_is_no_share_is_refused(ratios, message):
    with pytest.raises(ConfigError, match=message):
        FieldMask(field=EXPRESSION, **ratios)


@pytest.mark.parametrize("field", [EXPRESSION, BINS], ids=["values", "bins"])
@pytest.mark.parametrize(
    ("change_ratio", "nonzero_ratio", "expected"),
    [
        # Of 30 genes 0, 2, 15, 29 and 30 are not 0; 6 tokens are hidden.
        (0.2, 0.5, [(0, 6), (2, 4), (3, 3), (5, 1), (6, 0)]),
        (0.2, 1.0, [(0, 6), (2, 4), (6, 0), (6, 0), (6, 0)]),
        (0.2, 0.0, [(0, 6), (0, 6), (0, 6), (5, 1), (6, 0)]),
        # Both numbers are rounded down: floor(30 * 0.25) = 7, floor(7 * 0.5) = 3.
        (0.25, 0.5, [(0, 7), (2, 5), (3, 4), (6, 1), (7, 0)]),
        (1.0, 0.5, [(0, 30), (2, 28), (15, 15), (29, 1), (30, 0)]),
        (0.03, 0.5, [(0, 0)] * 5),
    ],
)
def test_a_share_of_values_that_are_not_zero_is_hidden_exactly(
    field, change_ratio, nonzero_ratio, expected
):
    tokens = all_genes([0, 2, 15, 29, 30], binned=field is BINS)
    masks = exact(field, change_ratio=change_ratio, nonzero_ratio=nonzero_ratio)
    for epoch in range(3):
        shown, asked = masks.hide(tokens, epoch=epoch)
        asked = asked["expression"]
        assert np.array_equal(asked.positions, np.unique(asked.positions))
        cell, zero = asked.positions // 30, asked.values == (5 if field is BINS else 0)
        found = [tuple(np.bincount(zero[cell == c], minlength=2)) for c in range(5)]
        assert found == expected
        assert (shown.fields["expression"][asked.positions] == field.mask_value()).all()
        assert np.array_equal(asked.values, tokens.fields["expression"][asked.positions])
        rest = np.setdiff1d(np.arange(tokens.num_tokens), asked.positions)
        assert np.array_equal(shown.fields["expression"][rest], tokens.fields["expression"][rest])


def test_a_share_that_floats_make_a_little_less_is_not_rounded_down():
    tokens = all_genes([60], num_genes=100)
    genes = replace(WIDE, vocabulary_size=105)
    mask = FieldMask(field=EXPRESSION, change_ratio=0.29, nonzero_ratio=1.0)
    _, asked = MaskPlan(genes=genes, fields=(mask,)).hide(tokens, epoch=0)
    assert len(asked["expression"].positions) == 29


def test_every_value_of_a_kind_is_as_likely_hidden():
    tokens = all_genes([12] * 3000)
    masks = exact(change_ratio=0.2, nonzero_ratio=0.5, seed=4)
    _, asked = masks.hide(tokens, epoch=0)
    often = np.bincount(asked["expression"].genes, minlength=35)[5:]
    assert often[:12] == pytest.approx(np.full(12, 3000 * 3 / 12), rel=0.15)
    assert often[12:] == pytest.approx(np.full(18, 3000 * 3 / 18), rel=0.15)
    for other in (
        masks.hide(tokens, epoch=1),
        exact(change_ratio=0.2, nonzero_ratio=0.5).hide(tokens, epoch=0),
    ):
        shared = np.intersect1d(asked["expression"].positions, other[1]["expression"].positions)
        assert len(shared) < 0.35 * len(asked["expression"].positions)


def test_exactly_chosen_tokens_are_masked_switched_and_left_by_their_shares():
    tokens = all_genes([12] * 4000)
    masks = exact(change_ratio=0.2, nonzero_ratio=0.5, mask_ratio=0.6, switch_ratio=0.3)
    shown, asked = masks.hide(tokens, epoch=0)
    now = shown.fields["expression"][asked["expression"].positions]
    assert np.mean(now == EXPRESSION.mask_value()) == pytest.approx(0.6, abs=0.02)
    same = now == asked["expression"].values
    # A tenth is left as it is; of what is switched, some are switched for the same value.
    assert 0.1 < np.mean(same) < 0.35
    assert len(now) == 4000 * 6


def test_exact_numbers_and_what_else_says_which_tokens_are_hidden_do_not_go_together():
    ratios = {"change_ratio": 0.2, "nonzero_ratio": 0.5}
    with pytest.raises(ConfigError, match=r"so do data_module\.pattern_weights and adaptive"):
        plan(gene_weights=WEIGHTS, **ratios)
    with pytest.raises(ConfigError, match=r"so do data_module\.pattern_weights and adaptive"):
        plan(adaptive=AdaptiveMasking(), **ratios)
    with pytest.raises(ConfigError, match=r"'genes' has nonzero_ratio 0\.5, and its ids stand for"):
        FieldMask(field=GENES, **ratios)
    fields = (FieldMask(field=EXPRESSION, **ratios), FieldMask(field=GENES))
    with pytest.raises(ConfigError, match="comask_across_fields the same tokens in all fields"):
        MaskPlan(genes=GENES, fields=fields, comask=True)
    # Without it, the second field hides among the tokens that the first has left.
    _, asked = MaskPlan(genes=GENES, fields=fields).hide(random_tokens(50), epoch=0)
    both = np.intersect1d(asked["genes"].positions, asked["expression"].positions)
    assert not len(both)


def test_patterns_weigh_genes_by_id_or_symbol_and_the_first_that_matches_counts():
    ids = np.arange(5, 9)
    names = (["E1", "E2", "E3", "E4"], ["MT-A", "RPL3", "B", "MT-B"])
    weights = pattern_weights([["^MT-", 0.0], ["A|B|3", 2.0]], *names, ids=ids, num_ids=9)
    assert weights.tolist() == [1, 1, 1, 1, 1, 0, 2, 2, 0]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([["^MT-"]], r"write \[pattern, weight\]"),
        ([[3, "x"]], r"write \[pattern, weight\]"),
        ([["(", 1.0]], "no regular expression"),
        ([["^E", -1.0]], r"the weight -1\.0"),
        ([["^mt-", 0.0]], "no gene matches '.mt-'; genes are named like E1"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(patterns, message):
    with pytest.raises(ConfigError, match=message):
        pattern_weights(patterns, ["E1", "E2"], ids=np.array([5, 6]), num_ids=7)


def test_genes_with_a_large_error_weigh_more():
    adaptive = AdaptiveMasking(num_bins=4)
    errors = np.array([np.nan, 1.0, 2.0, 3.0, 5.0, np.nan])
    adaptive.update("expression", errors)
    weights = adaptive.weights["expression"]
    assert weights[1:5].tolist() == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5])
    assert weights[0] == weights[5] == pytest.approx(0.5)
    sharp = AdaptiveMasking(num_bins=4, temperature=0.1)
    sharp.update("expression", errors)
    assert sharp.weights["expression"][4] / sharp.weights["expression"][1] == pytest.approx(
        np.exp(6)
    )
    adaptive.update("expression", np.full(6, np.nan))
    assert np.array_equal(adaptive.weights["expression"], weights)
    adaptive.update("expression", np.full(6, 2.0))
    assert len(set(adaptive.weights["expression"])) == 1


def test_adaptive_weights_are_for_training_and_survive_in_a_state():
    adaptive = AdaptiveMasking()
    errors = np.zeros(GENES.vocabulary_size)
    errors[5:8] = 1.0
    adaptive.update("expression", errors)
    tokens = random_tokens(500)
    masks = plan(adaptive=adaptive, change_ratio=0.3)
    _, trained = masks.hide(tokens, epoch=0)
    _, validated = masks.hide(tokens, epoch=0, training=False)
    _, plain = plan(change_ratio=0.3).hide(tokens, epoch=0)
    assert np.array_equal(validated["expression"].positions, plain["expression"].positions)
    assert (
        np.mean(trained["expression"].genes < 8) > 0.6 > 2 * np.mean(plain["expression"].genes < 8)
    )
    resumed = AdaptiveMasking()
    resumed.load_state_dict(json.loads(json.dumps(adaptive.state_dict())))
    _, again = plan(adaptive=resumed, change_ratio=0.3).hide(tokens, epoch=0)
    assert np.array_equal(again["expression"].positions, trained["expression"].positions)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"temperature": 0.0}, "temperature is 0"), ({"num_bins": 0}, "num_bins is 0")],
)
def test_adaptive_masking_that_cannot_work_is_refused(parameters, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveMasking(**parameters)
