from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from ragged_tokens import heads, random_tokens, small_config, small_model

from omics.data.converting.conversion import convert
from omics.data.errors import ConfigError, UsageError
from omics.data.synthetic import synthesize
from omics.data.transforms import LogNormalize, TopGenes
from omics.models import (
    Bundle,
    OmicsModel,
    embed_cells,
    embed_genes,
    field_outputs,
    reasons_of_cells,
    run_cells,
    run_tokens,
    token_batches,
)
from omics.models.inference import MIN_TOKENS, bind_genes, choose_device
from omics.models.model_config import FieldInput
from omics.tokenizers import (
    GeneTokenizer,
    RankValueTokenizer,
    SequenceTokenizer,
    TokenBatch,
    Vocabulary,
)

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


def all_results(bundle, store, rows, **options):
    """Return embeddings, logits, and the gene vectors of each cell."""
    parts = list(run_cells(bundle, store, rows=rows, **options))
    genes = [
        (part.genes.tokens[first:last], part.genes.vectors[first:last])
        for part in parts
        if part.genes is not None
        for first, last in pairwise(part.genes.offsets)
    ]
    return (
        np.concatenate([p.embeddings for p in parts]),
        np.concatenate([p.logits["cell.type"] for p in parts]),
        genes,
    )


def test_a_cell_is_bit_equal_alone_and_in_any_batch(bundle, store, threads):
    everything = np.arange(NUM_CELLS)
    options = {"level": "gene", "layer": -2}
    whole = all_results(bundle, store, everything, batch_tokens=10**6, **options)

    def check(found, rows):
        for a, b in zip(found[:2], whole[:2], strict=True):
            assert np.array_equal(a, b[rows])
        for (tokens, vectors), row in zip(found[2], rows, strict=True):
            assert np.array_equal(tokens, whole[2][row][0])
            assert np.array_equal(vectors, whole[2][row][1])

    for size, rows in (
        ({"batch_size": 1}, everything[::10]),
        ({"batch_size": 2}, everything[::5]),
        ({"batch_size": 7}, everything),
        ({"batch_tokens": 500}, everything[::3]),
    ):
        check(all_results(bundle, store, rows, **size, **options), rows)
    shuffled = np.random.default_rng(0).permutation(NUM_CELLS)
    check(all_results(bundle, store, shuffled, batch_size=33, **options), shuffled)


def test_heads_on_tokens_answer_for_the_tokens_that_are_asked(bundle, store):
    rows = np.array([7, 3, 150, 20])
    bound, batches = token_batches(bundle, store, rows=rows, batch_tokens=130)
    assert bound.coverage.num_known == 200
    batches = list(batches)
    assert len(batches) > 1
    assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    names = [head.name for head in bundle.model.model_config.field_heads]
    assert names
    for batch in batches:
        asked = np.arange(1, batch.num_tokens, 3)
        found = field_outputs(bundle.model, batch, dict.fromkeys(names, asked))
        with torch.no_grad():
            tokens = dict.fromkeys(names, torch.from_numpy(asked))
            expected = bundle.model(batch.to_torch("cpu"), field_tokens=tokens).fields
        for name in names:
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], expected[name])
    with pytest.raises(ConfigError, match="precision is '16'"):
        field_outputs(bundle.model, batches[0], {}, precision="16")
    with pytest.raises(UsageError, match="batch_tokens is 0; it must be at least 1"):
        token_batches(bundle, store, batch_tokens=0)


@pytest.mark.parametrize("layer", [None, 1])
def test_every_readout_is_bit_equal_alone_and_in_any_batch(bundle, store, threads, layer):
    pooling = "first_token+mean+mean_after_first+token:2"
    if bundle.model.pooler is not None:
        pooling += "+pooler"
    rows = np.arange(21)
    whole = embed_cells(bundle, store, rows, pooling=pooling, layer=layer)
    width = bundle.model.model_config.hidden_size * (pooling.count("+") + 1)
    assert whole.shape == (21, width)
    assert np.isfinite(whole).all()
    for size in (1, 2, 7):
        found = embed_cells(bundle, store, rows, pooling=pooling, layer=layer, batch_size=size)
        assert np.array_equal(found, whole)


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


def test_batches_hold_no_more_tokens_than_they_may(bundle, store, monkeypatch):
    sizes = []
    forward = type(bundle.model).forward

    def counted(model, batch, layout=None, **options):
        sizes.append(batch.num_tokens)
        return forward(model, batch, layout, **options)

    monkeypatch.setattr(type(bundle.model), "forward", counted)
    longest = min(int(store.lengths[:50].max()), 60) + 1
    for budget in (longest, 300):
        sizes.clear()
        embed_cells(bundle, store, np.arange(50), batch_tokens=budget)
        assert max(sizes) <= max(budget, MIN_TOKENS)
        total = int(np.minimum(store.lengths[:50], 60).sum()) + 50
        assert len(sizes) <= 2 * -(-total // budget)


def test_bf16_is_near_float32(bundle, store):
    exact = embed_cells(bundle, store, np.arange(20))
    near = embed_cells(bundle, store, np.arange(20), precision="bf16-mixed")
    assert near.dtype == np.float32
    assert not np.array_equal(exact, near)
    assert np.abs(exact - near).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "maen"}, "pooling is 'maen'. Did you mean 'mean'"),
        ({"pooling": "token:x"}, "pooling holds 'token:x'; write token:0"),
        ({"pooling": "pooled", "layer": 1}, "The pooled row is made of the final hidden states"),
        ({"layer": 3}, r"the layers 0 \(its inputs\) to 2"),
        ({"layer": -4}, "or -1"),
        ({"level": "genes"}, "level is 'genes'. Did you mean 'gene'"),
        ({"level": "gene", "pooling": "mean"}, "at the level of genes nothing is pooled"),
        ({"precision": "half"}, "precision is 'half'. Known: '32-true'"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_named(bundle, store, options, message):
    with pytest.raises((ConfigError, UsageError), match=message):
        run_cells(bundle, store, rows=np.arange(2), **options)


def test_filler_cells_change_no_number_of_a_large_batch():
    model = small_model(**heads())
    tokens = random_tokens([90] * 70)
    with torch.inference_mode():
        plain = model(tokens.to_torch()).pooled.numpy()
    (result,) = run_tokens(model, [tokens])
    assert np.array_equal(result.embeddings, plain)


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("pooling", ["first_token", "token:2+first_token"])
def test_rows_of_first_tokens_take_no_whole_last_block_and_no_bit_from_their_batch(
    threads, pooling, width
):
    label = heads()["labels"]
    model = small_model(pooling=pooling, hidden_size=width, labels=label)
    lengths = [3, 400, 64, 150, 65, 5, 200, 90, 61]
    whole = random_tokens(lengths)
    rows_of_the_last_block = []
    model.encoder.register_forward_hook(
        lambda _module, _given, output: rows_of_the_last_block.append(len(output[0]))
    )

    def batches(size):
        for first in range(0, len(lengths), size):
            last = min(first + size, len(lengths))
            begin, end = whole.offsets[first], whole.offsets[last]
            yield TokenBatch(
                fields={name: values[begin:end] for name, values in whole.fields.items()},
                offsets=whole.offsets[first : last + 1] - begin,
                rows=whole.rows[first:last],
            )

    found = {}
    for size in (len(lengths), 1, 2, 4):
        results = list(run_tokens(model, batches(size)))
        found[size] = [
            np.concatenate([each.embeddings for each in results]),
            np.concatenate([each.logits["cell.type"] for each in results]),
        ]
        for ours, of_all in zip(found[size], found[len(lengths)], strict=True):
            assert np.array_equal(ours, of_all)
    assert rows_of_the_last_block[0] == sum(min(each, 64) for each in lengths)
    with torch.inference_mode():
        expected = model(whole.to_torch())
    np.testing.assert_allclose(found[1][0], expected.pooled.numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1][1], expected.labels["cell.type"].numpy(), atol=1e-5)


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
    (whole,) = run_cells(bundle, cells, level="gene", batch_tokens=10**6)
    assert (np.diff(whole.genes.offsets) == whole.num_tokens).all()
    means = embed_genes(bundle, cells, batch_size=7)
    assert set(means.genes.tolist()) <= set(ids)
    assert whole.num_tokens.max() == 38
    alone = embed_cells(bundle, store, rows=np.arange(0, NUM_CELLS, 30), batch_size=1)
    assert np.array_equal(alone, whole.embeddings[::30])


def test_devices_by_name():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(UsageError, match="'toaster' cannot be used"):
        choose_device("toaster")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_first_device_that_is_there_is_chosen(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert choose_device("auto").type == chosen


def test_reasons_are_known_without_running_the_model(bundle, store, monkeypatch):
    known = store.genes.ids[:3].tolist()
    few = Bundle(
        model=OmicsModel.build(
            dataclasses.replace(
                bundle.model.model_config,
                fields=(
                    FieldInput(name="genes", encoder="embedding", vocabulary_size=8),
                    FieldInput(
                        name="expression", encoder="mlp", vocabulary_size=5, scaled_by="genes"
                    ),
                ),
            ),
            seed=0,
        ),
        tokenizer=GeneTokenizer.from_list(known),
        transforms=bundle.transforms,
        labels=bundle.labels,
    )
    for pooling in (None, "token:1", "token:2"):
        results = list(run_cells(few, store, pooling=pooling))
        wanted = [
            np.concatenate([getattr(r, n) for r in results]) for n in ("reasons", "num_tokens")
        ]
        with monkeypatch.context() as patched:
            patched.delattr(OmicsModel, "forward")
            seen = []
            found = reasons_of_cells(few, store, pooling=pooling, on_progress=seen.append)
        assert 0 < (wanted[0] > 0).sum() < NUM_CELLS
        assert all(np.array_equal(*pair) for pair in zip(found, wanted, strict=True))
        assert sum(seen) == NUM_CELLS


def test_token_batches_are_what_the_loop_reads(bundle, store):
    rows = np.array([5, 3, 77, 150])
    bound, batches = token_batches(bundle, store, rows=rows, batch_tokens=100)
    read = list(batches)
    assert np.concatenate([batch.rows for batch in read]).tolist() == rows.tolist()
    assert all(batch.num_tokens <= 100 or len(batch) == 1 for batch in read)
    results = list(run_cells(bundle, store, rows=rows))
    lengths = np.concatenate([batch.lengths for batch in read]) - bound.num_special
    assert lengths.tolist() == np.concatenate([each.num_tokens for each in results]).tolist()
    with pytest.raises(UsageError, match="batch_size is 0"):
        token_batches(bundle, store, batch_size=0)
