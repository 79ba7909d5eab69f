"""Cells and sequences to flat, ragged tokens, without torch."""

from __future__ import annotations

from omics.tokenizers.bound_tokenizer import BoundTokenizer, CellTokenizer
from omics.tokenizers.fields import FieldSpec, LabelSpec
from omics.tokenizers.gene_tokenizer import GeneTokenizer
from omics.tokenizers.sequence_tokenizer import SequenceTokenizer
from omics.tokenizers.token_batch import TokenBatch
from omics.tokenizers.tokenizer_file import Tokenizer, load_tokenizer, save_tokenizer
from omics.tokenizers.vocabulary import Vocabulary

__all__ = [
    "BoundTokenizer",
    "CellTokenizer",
    "FieldSpec",
    "GeneTokenizer",
    "LabelSpec",
    "SequenceTokenizer",
    "TokenBatch",
    "Tokenizer",
    "Vocabulary",
    "load_tokenizer",
    "save_tokenizer",
]
