"""Configurations of small runs for the tests of this package."""

from __future__ import annotations

from omics.train.hydra_entry import typed_configuration as compose

__all__ = ["SMALL", "compose"]

SMALL = [
    "trainer.max_epochs=2",
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.num_heads=1",
]
