"""DNA windows to tokens to vectors."""

from __future__ import annotations

from omics.dna.fasta import Fasta, reverse_complement
from omics.dna.window_tables import (
    sequence_tokenizer_of,
    untrained_bundle,
    write_tokens,
    write_vectors,
)
from omics.dna.windows import WindowBatch, Windows

__all__ = [
    "Fasta",
    "WindowBatch",
    "Windows",
    "reverse_complement",
    "sequence_tokenizer_of",
    "untrained_bundle",
    "write_tokens",
    "write_vectors",
]
