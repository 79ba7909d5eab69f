"""Configurations of small runs for the tests of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omics.train.run_config import RunConfig

SMALL = [
    "trainer.max_epochs=2",
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.num_heads=1",
]


def compose(verb: str, overrides: list[str]) -> RunConfig:
    """Return the typed configuration of a verb."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    from omics.train.hydra_entry import register_schema

    register_schema()
    with initialize_config_module("omics.train.configs", version_base="1.3"):
        config = hydra_compose(verb, overrides=overrides)
    return OmegaConf.to_object(config)  # type: ignore[return-value]
