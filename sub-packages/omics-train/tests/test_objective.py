from __future__ import annotations

import numpy as np
import pytest
from training_parts import (
    CLASSIFY,
    EXPRESSION,
    GENES,
    LABEL,
    PRETRAIN,
    objective_of,
    random_tokens,
)

from omics.data.errors import ConfigError
from omics.tokenizers import FieldSpec, TokenBatch
from omics.tokenizers.vocabulary import special_value
from omics.train.masking import mask_field
from omics.train.objective import Objective, plan_heads
from omics.train.run_config import LossConfig


def test_masks_are_the_same_for_a_cell_in_whatever_batch():
    tokens = random_tokens(8)
    _, positions, values = mask_field(
        tokens, EXPRESSION, genes=GENES, change_ratio=0.3, seed=3, epoch=2
    )
    begin, end = tokens.offsets[5], tokens.offsets[6]
    alone = type(tokens)(
        fields={name: v[begin:end] for name, v in tokens.fields.items()},
        offsets=np.array([0, end - begin]),
        rows=tokens.rows[5:6],
    )
    _, alone_positions, alone_values = mask_field(
        alone, EXPRESSION, genes=GENES, change_ratio=0.3, seed=3, epoch=2
    )
    here = (positions >= begin) & (positions < end)
    assert (positions[here] - begin).tolist() == alone_positions.tolist()
    assert values[here].tolist() == alone_values.tolist()


def test_masks_differ_between_epochs_and_seeds_and_hide_the_asked_share():
    tokens = random_tokens(400, seed=1)
    kept = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        masked, positions, _ = mask_field(
            tokens, EXPRESSION, genes=GENES, change_ratio=0.15, seed=seed, epoch=epoch
        )
        kept[seed, epoch] = positions.tolist()
        share = len(positions) / len(tokens.targets.fields["genes"])
        assert 0.12 < share < 0.18
        assert (masked.fields["expression"][positions] == special_value(4)).all()
        assert (tokens.fields["genes"][positions] >= 5).all()
    assert len({tuple(p) for p in kept.values()}) == 3


def test_masking_a_discrete_field_leaves_the_input_untouched():
    tokens = random_tokens(5)
    before = tokens.fields["genes"].copy()
    masked, positions, values = mask_field(
        tokens, GENES, genes=GENES, change_ratio=1.0, seed=0, epoch=0
    )
    assert (tokens.fields["genes"] == before).all()
    assert (masked.fields["genes"][positions] == 4).all()
    assert values.tolist() == before[positions].tolist()


def test_a_ratio_that_is_no_probability_is_refused():
    with pytest.raises(ConfigError, match=r"change_ratio is 1\.5"):
        mask_field(random_tokens(2), EXPRESSION, genes=GENES, change_ratio=1.5, seed=0, epoch=0)


def test_without_sampled_input_the_whole_cell_is_its_own_target_before_masking():
    objective, _ = objective_of(PRETRAIN)
    tokens = random_tokens(4)
    expected = tokens.targets
    tokens.targets = None
    batch = objective.prepare(tokens, epoch=0)
    assert batch.tokens.targets.offsets.tolist() == expected.offsets.tolist()
    assert (
        batch.tokens.targets.fields["expression"].tolist() == expected.fields["expression"].tolist()
    )


def test_heads_follow_from_the_losses():
    plan = plan_heads([*PRETRAIN, *CLASSIFY], [LABEL], [EXPRESSION])
    assert [(h.field, h.kind) for h in plan.field_heads] == [("expression", "regression")]
    assert [(w.field, w.outputs) for w in plan.wced] == [("expression", ("is_zero_bce", "mse"))]
    assert [(x.name, x.num_classes) for x in plan.labels] == [("cell_type", 3)]


def test_an_objective_of_labels_hides_nothing():
    objective, _ = objective_of(CLASSIFY)
    assert not objective.is_self_supervised
    assert objective.prepare(random_tokens(3), epoch=0).hidden_positions == {}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "mse"}, "needs either field_name or label_column_name"),
        ({"name": "cross_entropy", "label_column_name": "cell_typ"}, "Did you mean 'cell_type'"),
        ({"name": "mse", "label_column_name": "cell_type"}, "use 'cross_entropy'"),
        ({"name": "msee", "field_name": "expression"}, "Did you mean 'mse'"),
        ({"name": "mse", "field_name": "expresion"}, "Did you mean 'expression'"),
        ({"name": "mse", "field_name": "genes"}, "does not fit the discrete field"),
        ({"name": "cross_entropy", "field_name": "expression"}, "does not fit the continuous"),
        (
            {"name": "mse", "field_name": "expression", "wced_target": "all_gene"},
            "Did you mean 'all_genes'",
        ),
        (
            {"name": "focal", "field_name": "expression", "wced_target": "all_genes"},
            "unknown for a whole cell",
        ),
        ({"name": "mse", "field_name": "expression", "weight": -1.0}, "must not be negative"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused(loss, message):
    with pytest.raises(ConfigError, match=message):
        plan_heads([LossConfig(**loss)], [LABEL], [EXPRESSION, GENES])


def test_no_losses_and_repeated_losses_are_refused():
    with pytest.raises(ConfigError, match=r"trainer\.losses is empty"):
        plan_heads([], [LABEL], [EXPRESSION])
    with pytest.raises(ConfigError, match="a term twice"):
        objective_of([PRETRAIN[0], PRETRAIN[0]])


def test_special_tokens_wherever_they_stand_are_never_masked_nor_a_target():
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
    masked, positions, hidden = mask_field(
        tokens, values, genes=genes, change_ratio=1.0, seed=0, epoch=0
    )
    assert positions.tolist() == [2, 3, 6]
    assert hidden.tolist() == [1, 2, 3]
    assert masked.fields["expression"].tolist() == [-10, 7.5, -4, -4, -10, 7.5, -4]
    losses = [LossConfig(name="mse", field_name="expression", wced_target="all_genes")]
    plan = plan_heads(losses, [], [])
    objective = Objective.from_losses(
        losses,
        plan,
        genes=genes,
        masked_fields=[],
        change_ratio=0.0,
        seed=0,
        measured=np.array([1, 2, 8]),
        class_weight={},
    )
    targets = objective.prepare(tokens, epoch=0).tokens.targets
    assert targets.fields["genes"].tolist() == [1, 2, 8]
    assert targets.offsets.tolist() == [0, 2, 3]
