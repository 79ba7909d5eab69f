"""What stands in place of a gene, by field and tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from attribution_parts import bundle_of

from omics.data.errors import ConfigError
from omics.eval.gene_baseline import GeneBaseline
from omics.models import Bundle, ModelConfig, OmicsModel
from omics.models.model_config import FieldHeadConfig, FieldInput, LabelHeadConfig
from omics.tokenizers import (
    GeneBinTokenizer,
    GeneTokenizer,
    LabelSpec,
    RankValueTokenizer,
    TokenBatch,
)
from omics.tokenizers.value_field import ValueField
from omics.tokenizers.vocabulary import Vocabulary

GENES = ["a", "b", "c"]
LABEL = LabelSpec(name="kind", classes=("x", "y"))
MASK, CLS = 4, 2


def tokens(**fields):
    """One cell of two genes behind [CLS]."""
    return TokenBatch(
        fields={name: np.asarray(values) for name, values in fields.items()},
        offsets=np.array([0, 3]),
        rows=np.array([0]),
    )


def small_bundle(tokenizer, fields):
    heads = (LabelHeadConfig(name="kind", num_classes=2),)
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8}
    config = ModelConfig(fields=fields, labels=heads, **sizes)
    return Bundle(model=OmicsModel.build(config, seed=0), tokenizer=tokenizer, label_specs=[LABEL])


def expression_batch():
    return tokens(
        genes=np.array([CLS, 5, 7], np.int32), expression=np.array([-3.0, 1.5, 2.5], np.float32)
    )


@pytest.mark.parametrize("kind", ["mask", "zero"])
def test_reference_fault_13_the_baseline_of_a_value_is_no_token_id(kind):
    # The reference put the id of the pad token into both fields: an expression of 2.0.
    bundle, batch = bundle_of(GENES, [LABEL]), expression_batch()
    baseline = GeneBaseline.of(bundle, kind)
    is_gene = baseline.is_gene(batch)
    assert is_gene.tolist() == [False, True, True]
    shown = baseline.instead_of(batch, is_gene)
    assert shown.fields["expression"].tolist() == [-3.0, 0.0, 0.0]
    assert shown.fields["expression"].dtype == np.float32
    assert shown.fields["genes"].tolist() == ([CLS, MASK, MASK] if kind == "mask" else [CLS, 5, 7])
    assert batch.fields["expression"].tolist() == [-3.0, 1.5, 2.5]


@pytest.mark.parametrize("how", ["record", "head"])
def test_a_field_that_training_hid_shows_its_mask_token(how):
    heads = (FieldHeadConfig(field="expression", kind="regression"),) if how == "head" else ()
    bundle = bundle_of(GENES, [LABEL], field_heads=heads)
    if how == "record":
        bundle.provenance = {"masked_fields": ["expression"]}
    baseline = GeneBaseline.of(bundle, "mask")
    batch = expression_batch()
    hidden = np.array([False, False, True])
    shown = baseline.instead_of(batch, hidden)
    assert shown.fields["expression"].tolist() == [-3.0, 1.5, -(MASK + 1)]
    assert shown.fields["genes"].tolist() == [CLS, 5, MASK]
    zero = GeneBaseline.of(bundle, "zero").instead_of(batch, hidden)
    assert zero.fields["expression"].tolist() == [-3.0, 1.5, 0.0]


def test_bins_become_the_bin_of_zeros():
    values = [ValueField.binned(3)]
    tokenizer = GeneTokenizer.from_list(GENES, values=values)
    fields = (
        FieldInput(name="genes", encoder="embedding", vocabulary_size=8),
        FieldInput(name="expression", encoder="embedding", vocabulary_size=8),
    )
    batch = tokens(
        genes=np.array([CLS, 5, 7], np.int32), expression=np.array([CLS, 6, 7], np.int32)
    )
    shown = GeneBaseline.of(small_bundle(tokenizer, fields), "zero")
    found = shown.instead_of(batch, shown.is_gene(batch)).fields["expression"]
    assert found.tolist() == [CLS, 5, 5]
    assert found.dtype == np.int32


def test_tokens_of_gene_and_bin_keep_their_gene_at_zero():
    tokenizer = GeneBinTokenizer(GENES, 4)
    fields = (FieldInput(name="gene_bins", encoder="embedding", vocabulary_size=13),)
    bundle = small_bundle(tokenizer, fields)
    batch = tokens(gene_bins=np.array([1, 6, 8], np.int32))
    every = np.ones(3, bool)
    zero, mask = (GeneBaseline.of(bundle, kind) for kind in ("zero", "mask"))
    assert zero.is_gene(batch).all()
    assert zero.gene_of(batch.fields["gene_bins"]).tolist() == [0, 1, 2]
    assert zero.instead_of(batch, every).fields["gene_bins"].tolist() == [0, 4, 8]
    assert mask.instead_of(batch, every).fields["gene_bins"].tolist() == [12, 12, 12]


def test_a_model_of_ranks_has_no_value_to_set_to_zero():
    vocabulary = Vocabulary.of_names(GENES)
    tokenizer = RankValueTokenizer(vocabulary, [1.0, 1.0, 1.0])
    fields = (FieldInput(name="genes", encoder="embedding", vocabulary_size=8),)
    bundle = small_bundle(tokenizer, fields)
    with pytest.raises(ConfigError, match=r"this model reads only 'genes'.*baseline=mask"):
        GeneBaseline.of(bundle, "zero")
    assert GeneBaseline.of(bundle, "mask").fills == {"genes": MASK}


def test_a_vocabulary_without_a_mask_has_only_the_zero():
    vocabulary = Vocabulary(["<cls>", *GENES], specials={"cls": "<cls>"})
    fields = (
        FieldInput(name="genes", encoder="embedding", vocabulary_size=4),
        FieldInput(name="expression", encoder="mlp", vocabulary_size=1),
    )
    bundle = small_bundle(GeneTokenizer(vocabulary), fields)
    with pytest.raises(ConfigError, match=r"the field 'genes' of this model has none.*zero"):
        GeneBaseline.of(bundle, "mask")
    assert GeneBaseline.of(bundle, "zero").fills == {"expression": 0.0}


def test_an_unknown_baseline_names_the_nearest():
    with pytest.raises(ConfigError, match=r"baseline is 'zeros'. Did you mean 'zero'"):
        GeneBaseline.of(bundle_of(GENES, [LABEL]), "zeros")
