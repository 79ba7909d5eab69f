"""The Hydra tree of `omics-train`: one YAML a verb, groups beside them."""

from __future__ import annotations
