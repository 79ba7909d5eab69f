from __future__ import annotations

import numpy as np
import pytest
import torch
from ragged_tokens import heads, random_tokens, small_config, small_model

from omics.data.converting.conversion import convert
from omics.data.errors import UsageError
from omics.data.synthetic import synthesize
from omics.data.transforms import LogNormalize, TopGenes
from omics.models import Bundle, OmicsModel, embed_cells, run_cells, run_tokens
from omics.models.inference import bind_genes, choose_device
from omics.models.model_config import FieldInput
from omics.tokenizers import GeneTokenizer, RankValueTokenizer, SequenceTokenizer, Vocabulary

NUM_CELLS = 300


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    synthesize(NUM_CELLS, 200, seed=1).write_h5ad(folder / "cells.h5ad")
    return convert(folder / "cells.h5ad", folder / "cells.store")


@pytest.fixture(scope="module", params=["tiny", "wide rotary", "features", "landmarks"])
def bundle(request, store):
    tokenizer = GeneTokenizer.from_genes(store.genes)
    sizes = {
        "tiny": {},
        "wide rotary": {"hidden_size": 96, "positions": "rope", "pooling": "first_token"},
        "features": {"attention": "favor", "pooler": True, "pooling": "pooler+mean"},
        "landmarks": {"attention": "nystrom", "num_landmarks": 16, "conv_kernel": 5},
    }[request.param]
    config = small_config(
        **sizes,
        **heads() | {"wced": ()},
        fields=(
            FieldInput(name="genes", encoder="embedding", vocabulary_size=205),
            FieldInput(name="expression", encoder="mlp", vocabulary_size=5, scaled_by="genes"),
        ),
    )
    return Bundle(
        model=OmicsModel.build(config, seed=0),
        tokenizer=tokenizer,
        transforms=[LogNormalize(), TopGenes(max_genes=60)],
        labels={"cell.type": ["a", "b", "c"]},
    )


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def all_results(bundle, store, rows, batch_size):
    parts = list(run_cells(bundle, store, rows=rows, batch_size=batch_size))
    return (
        np.concatenate([p.embeddings for p in parts]),
        np.concatenate([p.logits["cell.type"] for p in parts]),
    )


def test_a_cell_is_bit_equal_alone_and_in_any_batch(bundle, store, threads):
    everything = np.arange(NUM_CELLS)
    whole = all_results(bundle, store, everything, NUM_CELLS)
    for batch_size in (1, 2, 7):
        rows = everything if batch_size > 1 else everything[::5]
        found = all_results(bundle, store, rows, batch_size)
        for a, b in zip(found, whole, strict=True):
            assert np.array_equal(a, b[rows])
    shuffled = np.random.default_rng(0).permutation(NUM_CELLS)
    found = all_results(bundle, store, shuffled, 33)
    for a, b in zip(found, whole, strict=True):
        assert np.array_equal(a, b[shuffled])


def test_thread_counts_agree(bundle, store):
    before = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(embed_cells(bundle, store, np.arange(60), batch_size=7))
    torch.set_num_threads(before)
    assert np.array_equal(*results)


def test_results_come_in_the_order_of_the_rows_with_repeats(bundle, store):
    rows = np.array([5, 3, 5])
    results = list(run_cells(bundle, store, rows=rows, batch_size=2))
    assert np.concatenate([r.rows for r in results]).tolist() == [5, 3, 5]
    embedded = np.concatenate([r.embeddings for r in results])
    assert np.array_equal(embedded[0], embedded[2])
    assert embedded.dtype == np.float32


def test_num_tokens_counts_the_genes_the_model_saw(bundle, store):
    (result,) = run_cells(bundle, store, rows=np.arange(4), batch_size=4)
    assert result.num_tokens.tolist() == np.minimum(store.lengths[:4], 60).tolist()


def test_progress_counts_every_cell_and_no_cells_give_no_rows(bundle, store):
    seen = []
    for _ in run_cells(bundle, store, rows=np.arange(10), batch_size=4, on_progress=seen.append):
        pass
    assert sum(seen) == 10
    assert embed_cells(bundle, store, np.zeros(0, np.int64)).shape[0] == 0


def test_training_mode_and_dropout_do_not_leak_into_inference(bundle, store):
    bundle.model.train()
    first = embed_cells(bundle, store, np.arange(3))
    bundle.model.train()
    assert np.array_equal(first, embed_cells(bundle, store, np.arange(3)))


def test_filler_cells_change_no_number_of_a_large_batch():
    model = small_model(**heads())
    tokens = random_tokens([90] * 70)
    with torch.inference_mode():
        plain = model(tokens.to_torch()).pooled.numpy()
    (result,) = run_tokens(model, [tokens])
    assert np.array_equal(result.embeddings, plain)


def test_a_sequence_bundle_cannot_read_cells(store):
    sequences = SequenceTokenizer()
    spec = sequences.fields[0]
    config = small_config(
        fields=(
            FieldInput(name=spec.name, encoder="embedding", vocabulary_size=spec.vocabulary_size),
        )
    )
    other = Bundle(model=OmicsModel.build(config, seed=0), tokenizer=sequences)
    with pytest.raises(UsageError, match="'sequence' tokenizer and cannot read cells"):
        bind_genes(other, store)


@pytest.mark.parametrize("with_view", [False, True])
def test_a_rank_value_bundle_reads_counts_or_the_view_and_cells_do_not_depend_on_their_batch(
    store, with_view, tmp_path
):
    ids = store.genes.ids.tolist()
    medians = {name: 0.5 + index % 7 for index, name in enumerate(ids)}
    vocabulary = Vocabulary(
        ["<pad>", "<mask>", "<cls>", "<eos>", *ids],
        specials={"pad": "<pad>", "mask": "<mask>", "cls": "<cls>", "sep": "<eos>"},
    )
    tokenizer = RankValueTokenizer(vocabulary, list(medians.values()), max_length=40)
    config = small_config(
        fields=(FieldInput(name="genes", encoder="embedding", vocabulary_size=204),),
        positions="learned",
        max_positions=40,
    )
    bundle = Bundle(model=OmicsModel.build(config, seed=0), tokenizer=tokenizer)
    cells = store
    if with_view:
        synthesize(NUM_CELLS, 200, seed=1).write_h5ad(tmp_path / "cells.h5ad")
        cells = convert(tmp_path / "cells.h5ad", tmp_path / "c.store", rank_medians=medians)
        assert bind_genes(bundle, cells).from_view
    (whole,) = run_cells(bundle, cells, batch_size=NUM_CELLS)
    assert whole.num_tokens.max() == 38
    alone = embed_cells(bundle, store, rows=np.arange(0, NUM_CELLS, 30), batch_size=1)
    assert np.array_equal(alone, whole.embeddings[::30])


def test_devices_by_name():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(UsageError, match="'toaster' cannot be used"):
        choose_device("toaster")
