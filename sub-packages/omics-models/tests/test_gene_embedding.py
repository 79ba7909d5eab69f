from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from ragged_tokens import small_config
from scipy import sparse

from omics.data import convert
from omics.data.errors import InputDataError
from omics.data.transforms import LogNormalize
from omics.models import Bundle, OmicsModel, embed_cells, embed_genes, run_cells, run_tokens
from omics.models.gene_embedding import GeneMeans, GeneNames
from omics.models.inference import (
    NO_COUNTS,
    NO_KNOWN_GENE,
    REASONS,
    TOO_FEW_TOKENS,
    GeneVectors,
)
from omics.models.model_config import FieldInput, LabelHeadConfig
from omics.tokenizers import FieldSpec, GeneTokenizer, TokenBatch

KNOWN = 10


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Cell 3 is empty, cell 5 expresses only an unknown gene, cell 6 one known gene."""
    counts = np.random.default_rng(0).poisson(1.0, (20, KNOWN + 2)).astype(np.float32)
    counts[3] = counts[5] = counts[6] = 0
    counts[5, KNOWN] = 2
    counts[6, 4] = 1
    counts[:, 9] = 0
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(KNOWN + 2)]})
    var.index = [f"G{i}" for i in range(KNOWN + 2)]
    folder = tmp_path_factory.mktemp("genes")
    obs = pd.DataFrame(index=[f"c{i}" for i in range(20)])
    ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var).write_h5ad(folder / "cells.h5ad")
    return convert(folder / "cells.h5ad", folder / "cells.store")


def bundle_of(**changes):
    tokenizer = GeneTokenizer.from_list(
        [f"G{i}" for i in range(KNOWN)], [f"S{i}" for i in range(KNOWN)]
    )
    config = small_config(
        fields=tuple(
            FieldInput(
                name=spec.name,
                encoder="embedding" if spec.kind == "discrete" else "mlp",
                vocabulary_size=spec.vocabulary_size,
            )
            for spec in tokenizer.fields
        ),
        labels=(LabelHeadConfig(name="kind", num_classes=2),),
        **changes,
    )
    return Bundle(
        model=OmicsModel.build(config, seed=0).eval(),
        tokenizer=tokenizer,
        transforms=[LogNormalize()],
        labels={"kind": ["a", "b"]},
    )


@pytest.fixture(scope="module")
def bundle():
    return bundle_of()


def test_cells_that_the_model_does_not_see_are_kept_as_nan_with_their_reason(bundle, store):
    (result,) = run_cells(bundle, store)
    assert result.rows.tolist() == list(range(20))
    assert {row: REASONS[code] for row, code in enumerate(result.reasons) if code} == {
        3: NO_COUNTS,
        5: NO_KNOWN_GENE,
    }
    for values in (result.embeddings, result.logits["kind"]):
        assert np.flatnonzero(np.isnan(values).all(axis=1)).tolist() == [3, 5]
        assert np.isfinite(np.delete(values, [3, 5], axis=0)).all()
    assert result.num_tokens[[3, 5, 6]].tolist() == [0, 0, 1]


def test_a_place_that_a_cell_does_not_have_is_no_vector_of_zeros(bundle, store):
    (result,) = run_cells(bundle, store, pooling="token:2")
    assert REASONS[result.reasons[6]] == TOO_FEW_TOKENS
    assert np.isnan(result.embeddings[6]).all()
    assert REASONS[result.reasons[3]] == NO_COUNTS


def test_weights_that_give_nonsense_are_named_and_not_written(store):
    broken = bundle_of()
    next(broken.model.parameters()).data.fill_(np.nan)
    with pytest.raises(
        InputDataError, match=r"not finite for 18 of 20 cells of a batch, first in row 0"
    ):
        embed_cells(broken, store)


def test_gene_vectors_are_the_hidden_states_of_the_gene_tokens(bundle, store):
    (result,) = run_cells(bundle, store, level="gene", layer=1)
    assert np.diff(result.genes.offsets).tolist() == result.num_tokens.tolist()
    bound = bundle.tokenizer.bind(store.genes)
    cells = LogNormalize()(store.take(np.arange(20)), seed=0, epoch=0)
    tokens = bound.encode(cells)
    with torch.inference_mode():
        output = bundle.model(tokens.to_torch(), layers={1})
    is_gene = tokens.fields["genes"] >= 5
    assert np.array_equal(result.genes.tokens, tokens.fields["genes"][is_gene])
    assert np.allclose(result.genes.vectors, output.layers[1].numpy()[is_gene], atol=1e-6)
    (plain,) = run_cells(bundle, store)
    assert plain.genes is None
    assert np.array_equal(plain.embeddings, result.embeddings, equal_nan=True)


def test_gene_vectors_of_the_bundles_layer_are_the_default(store):
    deep = bundle_of(embedding_pooling="mean", embedding_layer=1)
    (default,) = run_cells(deep, store, level="gene")
    (asked,) = run_cells(deep, store, level="gene", layer=1)
    assert np.array_equal(default.genes.vectors, asked.genes.vectors)


def test_reference_fault_9_special_tokens_are_left_out_wherever_they_stand(bundle):
    """Fixed positions 1:3 counted as special there, which is wrong with several CLS tokens."""
    field = FieldSpec(
        name="genes", kind="discrete", vocabulary_size=15, special_ids=(0, 2, 3, 14), mask_id=None
    )
    genes = np.array([2, 14, 2, 5, 6, 3, 2, 2, 14, 3, 7, 14, 8, 3], np.int32)
    tokens = TokenBatch(
        fields={"genes": genes, "expression": np.ones(len(genes), np.float32)},
        offsets=np.array([0, 6, 10, 14]),
        rows=np.arange(3),
    )
    (result,) = run_tokens(bundle.model, [tokens], gene_field=field)
    assert result.genes.tokens.tolist() == [5, 6, 7, 8]
    assert result.genes.offsets.tolist() == [0, 2, 2, 4]


def test_the_mean_vector_of_each_gene_over_its_cells(bundle, store):
    found = embed_genes(bundle, store, layer=1)
    (result,) = run_cells(bundle, store, level="gene", layer=1)
    # G9 is expressed by no cell: it has no vector and is not there.
    assert found.genes.tolist() == [f"G{i}" for i in range(9)]
    assert found.symbols.tolist() == [f"S{i}" for i in range(9)]
    for place, name in enumerate(found.genes):
        token = bundle.tokenizer.vocabulary.ids([name])[0]
        of_gene = result.genes.tokens == token
        assert found.num_cells[place] == of_gene.sum()
        mean = result.genes.vectors[of_gene].astype(np.float64).mean(axis=0)
        assert np.allclose(found.vectors[place], mean, rtol=0, atol=1e-6)
    assert found.vectors.dtype == np.float32


def test_batches_change_no_bit_of_a_mean(bundle, store):
    whole = embed_genes(bundle, store)
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"batch_tokens": 20}):
        found = embed_genes(bundle, store, **options)
        assert np.array_equal(found.vectors, whole.vectors)
        assert np.array_equal(found.num_cells, whole.num_cells)
    chosen = embed_genes(bundle, store, np.array([6]))
    assert (chosen.genes.tolist(), chosen.num_cells.tolist()) == (["G4"], [1])


def test_a_gene_that_occurs_twice_in_a_cell_is_one_cell():
    means = GeneMeans(4, 1)
    vectors = np.array([[1.0], [3.0], [8.0]], np.float32)
    means.add(GeneVectors(offsets=np.array([0, 2, 3]), tokens=np.array([1, 1, 1]), vectors=vectors))
    names = np.array(["[PAD]", "A", "B", "C"])
    found = means.result(GeneNames(names, names))
    assert (found.num_cells.tolist(), found.vectors.tolist()) == ([2], [[4.0]])
