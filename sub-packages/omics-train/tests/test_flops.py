"""Work and memory of models beside numbers computed by hand, and beside what torch counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omics.models import AskedTokens, ModelConfig, OmicsModel, RaggedLayout
from omics.models.model_config import (
    FieldHeadConfig,
    FieldInput,
    LabelHeadConfig,
    WcedConfig,
)
from omics.tokenizers import TokenBatch
from omics.train.flops import (
    Workload,
    datasheet_tflops,
    forward_flops,
    kept_values,
    training_flops,
    training_memory,
)

GENES = FieldInput(name="genes", encoder="embedding", vocabulary_size=20_000)
BERT = ModelConfig(
    fields=(GENES,), hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072
)
SCORES = FieldHeadConfig(field="genes", kind="token_scores", tied=True)
SMALL = ModelConfig(
    fields=(
        replace(GENES, vocabulary_size=50),
        FieldInput(name="x", encoder="mlp", vocabulary_size=3),
    ),
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=40,
    dropout=0.0,
)


def test_linear_layers_of_a_base_model_cost_510_million_a_token() -> None:
    """No attention share: one token."""
    linear = training_flops(BERT, Workload(lengths=np.array([1]))) - 12 * 12 * 768
    assert linear == 3 * 24 * 12 * 768**2
    assert round(linear / 1e6) == 510


@pytest.mark.parametrize(("length", "mega"), [(512, 581), (1024, 637), (2048, 750), (8192, 1430)])
def test_whole_step_of_a_base_model(length: int, mega: int) -> None:
    """Full cells, 15 % of the tokens masked, 20,000 genes."""
    config = replace(BERT, field_heads=(SCORES,), field_transform="shared")
    work = Workload(lengths=np.array([length]), asked={SCORES.name: round(0.15 * length)})
    assert training_flops(config, work) / length / 1e6 == pytest.approx(mega, rel=0.002)


def test_decoding_a_whole_cell_costs_little() -> None:
    """Two outputs of 20,000 genes from one row: 0.18 GF with the backward pass."""
    work = Workload(lengths=np.array([1024]))
    decoder = replace(BERT, wced=(WcedConfig(field="genes"),))
    more = training_flops(decoder, work) - training_flops(BERT, work)
    assert more == 3 * 2 * 768 * 20_000 * 2
    assert training_flops(decoder, replace(work, decodes=False)) == training_flops(BERT, work)
    few = training_flops(decoder, replace(work, decoded_genes=10)) - training_flops(BERT, work)
    assert few == 3 * 2 * 768 * 10 * 2


CASES: dict[str, dict[str, Any]] = {
    "bert": {},
    "glu": {"glu": True},
    "favor": {"attention": "favor", "num_features": 8},
    "labels": {"labels": (LabelHeadConfig(name="a", num_classes=7, depth=2),)},
    "pooled": {"wced": (WcedConfig(field="x"),), "pooling": "first_token+mean"},
    "heads": {
        "field_heads": (
            replace(SCORES, tied=False),
            FieldHeadConfig(field="x", kind="regression"),
            FieldHeadConfig(field="x", kind="mvc_regression"),
        )
    },
    "vectors": {"fields": (replace(GENES, vocabulary_size=50, vector_size=24), SMALL.fields[1])},
    "leaky": {
        "fields": (SMALL.fields[0], replace(SMALL.fields[1], encoder="leaky_mlp", inner_size=12))
    },
    "sinusoid": {"fields": (SMALL.fields[0], replace(SMALL.fields[1], encoder="sinusoid"))},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward_agrees_with_what_torch_counts(case: dict[str, Any]) -> None:
    """torch counts each product as it runs; what only sums products is left to a percent."""
    config = replace(SMALL, **case)
    lengths = np.array([5, 30, 18])
    rng = np.random.default_rng(0)
    batch = TokenBatch(
        {
            "genes": rng.integers(0, 50, lengths.sum()),
            "x": rng.random(lengths.sum()).astype(np.float32),
        },
        np.concatenate([[0], lengths.cumsum()]),
        np.arange(3),
    )
    asked = {head.name: 6 for head in config.field_heads}
    model = OmicsModel.build(config, seed=0)
    layout = RaggedLayout.from_offsets(torch.from_numpy(batch.offsets))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            batch.to_torch(),
            layout,
            field_tokens={name: torch.arange(6) for name in asked},
            wced=[each.field for each in config.wced],
        )
    counted = counter.get_total_flops()
    # The flash attention of the CPU is no operation that torch counts.
    if config.attention == "softmax":
        counts = counter.get_flop_counts()["Global"]
        attention = 4 * 16 * int(np.square(lengths).sum()) * config.num_layers
        if not any("attention" in str(operation) for operation in counts):
            counted += attention
    ours = forward_flops(config, Workload(lengths=lengths, asked=asked))
    assert ours == pytest.approx(counted, rel=0.02)


def test_the_last_block_counts_for_the_tokens_that_are_read() -> None:
    """All of its queries are computed, as one product with keys and values; that is no useful work."""
    lengths = np.array([5, 30, 18])
    offsets = np.concatenate([[0], lengths.cumsum()])
    batch = TokenBatch(
        {"genes": np.zeros(53, np.int64), "x": np.ones(53, np.float32)}, offsets, np.arange(3)
    ).to_torch()
    chosen = torch.tensor([0, 5, 6, 7, 52])
    asked = AskedTokens.of(chosen, torch.from_numpy(offsets))
    model = OmicsModel.build(SMALL, seed=0)
    counted = []
    for some in (None, asked):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch, asked=some)
        counted.append(counter.get_total_flops())
    final = np.array([1, 3, 1])
    saved = forward_flops(SMALL, Workload(lengths=lengths)) - forward_flops(
        SMALL, Workload(lengths=lengths, final=final)
    )
    attention = 4 * 16 * int((lengths * (lengths - final)).sum())
    queries = 2 * 16 * 16 * (53 - 5)
    assert saved - attention - queries == counted[0] - counted[1]
    # Features of all queries are summed over, and so is what is read of them.
    favor = replace(SMALL, attention="favor")
    less = forward_flops(favor, Workload(lengths=lengths)) - forward_flops(
        favor, Workload(lengths=lengths, final=final)
    )
    assert less == saved - attention


def test_a_window_counts_the_pairs_that_see_each_other() -> None:
    """By the mask itself."""
    config = replace(SMALL, num_layers=1, window=4)
    local = replace(config, num_layers=2, global_every=3)
    place = np.arange(30)
    pairs = int((np.abs(place[:, None] - place) <= 4).sum()) + 3 * 3
    work = Workload(lengths=np.array([30, 3]))
    blocks = forward_flops(local, work) - forward_flops(config, work)
    linear = 33 * 2 * 16 * (4 * 16 + 2 * 40)
    assert blocks - linear == 4 * 16 * pairs


def test_landmarks_make_long_cells_cheap_and_leave_short_ones() -> None:
    """Cells without more tokens than landmarks have exact attention."""
    nystrom = replace(SMALL, attention="nystrom", num_landmarks=8)
    short, long = Workload(lengths=np.array([8])), Workload(lengths=np.array([4096]))
    assert forward_flops(nystrom, short) == forward_flops(SMALL, short)
    assert forward_flops(nystrom, long) < forward_flops(SMALL, long) / 4


@pytest.mark.parametrize("glu", [False, True])
def test_kept_values_are_what_autograd_keeps(glu: bool) -> None:
    """The difference of two and one blocks, weights not counted."""
    kept = []
    for layers in (1, 2):
        model = OmicsModel.build(replace(SMALL, num_layers=layers, glu=glu), seed=0)
        weights = {each.data_ptr() for each in model.parameters()}
        seen: dict[int, int] = {}

        def pack(
            tensor: torch.Tensor, weights: set[int] = weights, seen: dict[int, int] = seen
        ) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and tensor.is_floating_point():
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        batch = TokenBatch(
            {"genes": np.zeros(400, np.int64), "x": np.ones(400, np.float32)},
            np.array([0, 400]),
            np.arange(1),
        ).to_torch()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(batch)
        kept.append(sum(seen.values()))
        del output
    config = replace(SMALL, glu=glu)
    assert (kept[1] - kept[0]) / 400 / 4 == pytest.approx(kept_values(config), rel=0.1)


def test_memory_of_a_step_adds_up() -> None:
    """Sixteen bytes a trained weight, and logits with their logarithms and gradients."""
    config = replace(BERT, field_heads=(SCORES,), field_transform="shared")
    work = Workload(lengths=np.array([1000, 24]), asked={SCORES.name: 100})
    memory = training_memory(config, work, parameters=10**8, trained=10**7)
    assert (memory.weights, memory.gradients, memory.moments) == (4 * 10**8, 4 * 10**7, 8 * 10**7)
    assert memory.outputs == 3 * 4 * 100 * 20_000
    few = training_memory(
        config, work, parameters=0, trained=0, cells=20, chunk_scores=30 * 20_000 + 7
    )
    assert few.outputs == 3 * 4 * 30 * 20_000
    assert few.activations == 10 * memory.activations
    assert memory.activations == 1024 * (12 * (9 * 768 + 2 * 3072) + 3 * 768) * 4
    read = replace(work, final=np.array([100, 0]))
    less = training_memory(config, read, parameters=0, trained=0).activations
    assert memory.activations - less == 924 * (6 * 768 + 2 * 3072) * 4
    assert memory.total == sum(
        (memory.weights, memory.gradients, memory.moments, memory.activations, memory.outputs)
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Quadro P400", None),
    ],
)
def test_peaks_of_data_sheets_are_found_by_name(name: str, peak: float | None) -> None:
    """A name within another is not mistaken for it."""
    assert datasheet_tflops(name) == peak
