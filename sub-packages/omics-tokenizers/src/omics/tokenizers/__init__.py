"""Cells and sequences to flat, ragged tokens, without torch."""

from __future__ import annotations

from omics.tokenizers.bound_tokenizer import BoundTokenizer, CellTokenizer
from omics.tokenizers.fields import FieldSpec, LabelSpec
from omics.tokenizers.gene_bin_tokenizer import GeneBinTokenizer
from omics.tokenizers.gene_lookup import GeneCoverage, GeneLookup
from omics.tokenizers.gene_medians import corpus_medians
from omics.tokenizers.gene_token_file import GeneTokens, read_gene_tokens, write_gene_tokens
from omics.tokenizers.gene_tokenizer import GeneTokenizer
from omics.tokenizers.hf_tokenizer import import_hf_tokenizer, read_hf_tokenizer
from omics.tokenizers.rank_value_tokenizer import RankValueTokenizer
from omics.tokenizers.sequence_tokenizer import SequenceTokenizer
from omics.tokenizers.store_binding import bind_store
from omics.tokenizers.token_batch import TokenBatch
from omics.tokenizers.tokenizer_file import (
    Tokenizer,
    load_tokenizer,
    reads_cells,
    save_tokenizer,
)
from omics.tokenizers.value_field import ValueField
from omics.tokenizers.vocabulary import Vocabulary

__all__ = [
    "BoundTokenizer",
    "CellTokenizer",
    "FieldSpec",
    "GeneBinTokenizer",
    "GeneCoverage",
    "GeneLookup",
    "GeneTokenizer",
    "GeneTokens",
    "LabelSpec",
    "RankValueTokenizer",
    "SequenceTokenizer",
    "TokenBatch",
    "Tokenizer",
    "ValueField",
    "Vocabulary",
    "bind_store",
    "corpus_medians",
    "import_hf_tokenizer",
    "load_tokenizer",
    "read_gene_tokens",
    "read_hf_tokenizer",
    "reads_cells",
    "save_tokenizer",
    "write_gene_tokens",
]
