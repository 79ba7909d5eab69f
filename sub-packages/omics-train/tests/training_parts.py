"""Small tokens, models and objectives for the tests of this package."""

from __future__ import annotations

import numpy as np

from omics.models import ModelConfig, OmicsModel
from omics.models.model_config import FieldInput, LabelHeadConfig
from omics.tokenizers import FieldSpec, LabelSpec, TokenBatch
from omics.tokenizers.vocabulary import special_value
from omics.train.head_plan import Asked, plan_heads
from omics.train.masking import FieldMask, MaskPlan
from omics.train.objective import Objective
from omics.train.run_config import LossConfig

NUM_GENES = 12
CLS_ID = 2
SPECIALS = {"special_ids": (0, 1, 2, 3, 4), "mask_id": 4}
LABEL = LabelSpec(name="cell_type", classes=("a", "b", "c"))
EXPRESSION = FieldSpec(name="expression", kind="continuous", vocabulary_size=5, **SPECIALS)
GENES = FieldSpec(name="genes", kind="discrete", vocabulary_size=NUM_GENES + 5, **SPECIALS)
PRETRAIN = [
    LossConfig(name="mse", field_name="expression"),
    LossConfig(name="is_zero_bce", field_name="expression", wced_target="all_genes"),
    LossConfig(name="mse", field_name="expression", wced_target="all_genes", ignore_zero=True),
]
CLASSIFY = [
    LossConfig(name="cross_entropy", label_column_name="cell_type", class_weight_exponent=1.0)
]


SIZES = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 24,
    "dropout": 0.0,
    "embedding_std": 0.3,
    "pooling": "mean",
}


def random_tokens(num_cells, *, seed=0, first_row=0, cls=True):
    """Return cells with distinct genes each, a label each and their full cell as target."""
    rng = np.random.default_rng(seed)
    parts = [
        np.sort(rng.permutation(NUM_GENES)[: rng.integers(1, NUM_GENES)]) for _ in range(num_cells)
    ]
    lengths = np.array([len(part) for part in parts], np.int64)
    genes = (np.concatenate(parts) + 5).astype(np.int32)
    values = rng.exponential(1.0, len(genes)).astype(np.float32)
    rows = np.arange(first_row, first_row + num_cells, dtype=np.int64)
    plain = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    targets = TokenBatch(fields={"genes": genes, "expression": values}, offsets=plain, rows=rows)
    fields, offsets = {"genes": genes, "expression": values}, plain
    if cls:
        at = plain[:-1]
        fields = {
            "genes": np.insert(genes, at, CLS_ID),
            "expression": np.insert(values, at, np.float32(special_value(CLS_ID))),
        }
        offsets = plain + np.arange(num_cells + 1)
    labels = {"cell_type": rng.integers(0, 3, num_cells)}
    return TokenBatch(fields=fields, offsets=offsets, rows=rows, labels=labels, targets=targets)


def asked_of(losses, *, labels=(LABEL,), masked=(EXPRESSION,), fields=(GENES, EXPRESSION), **rest):
    """Return what a list of losses may be about; of the masked fields those they predict."""
    predicted = {loss.field_name for loss in losses if loss.wced_target is None}
    return Asked(
        fields={spec.name: spec for spec in fields},
        hidden=frozenset(spec.name for spec in masked) & predicted,
        labels={label.name: label for label in labels},
        **rest,
    )


def heads_of(labels):
    """Return plain heads of label columns."""
    return [LabelHeadConfig(name=x.name, num_classes=x.num_outputs) for x in labels]


def objective_of(
    losses,
    *,
    seed=0,
    change_ratio=0.5,
    labels=(LABEL,),
    masked=(EXPRESSION,),
    fields=(GENES, EXPRESSION),
    measured=tuple(range(5, NUM_GENES + 5)),
    masks=None,
    answered=(),
    denoised=(),
):
    """Return the objective and the heads of a list of losses."""
    asked = asked_of(
        losses, labels=labels, masked=masked, fields=fields, answered=frozenset(answered)
    )
    plan = plan_heads(losses, asked, heads_of(labels))
    if masks is None:
        masks = MaskPlan(
            genes=GENES,
            fields=tuple(
                FieldMask(field=spec, change_ratio=change_ratio)
                for spec in masked
                if spec.name in asked.hidden
            ),
            seed=seed,
        )
    objective = Objective.build(
        losses,
        plan,
        asked,
        masks=masks,
        measured=np.array(measured),
        answered=dict.fromkeys(answered, EXPRESSION),
        denoised=frozenset(denoised),
        label_codes={"cell_type": np.array([0, 0, 0, 1, 2])},
    )
    return objective, plan


def model_of(plan, *, seed=0, **changes):
    """Return a small model with the heads of a plan and no dropout."""
    config = ModelConfig(
        fields=(
            FieldInput(name="genes", encoder="embedding", vocabulary_size=NUM_GENES + 5),
            FieldInput(name="expression", encoder="mlp", vocabulary_size=5, scaled_by="genes"),
        ),
        field_heads=plan.field_heads,
        wced=plan.wced,
        labels=plan.labels,
        **{**SIZES, **changes},
    )
    return OmicsModel.build(config, seed=seed)
