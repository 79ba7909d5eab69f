"""Every preset composes, builds, and has as many parameters as it says."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files

import pytest
import torch
from run_parts import compose

from omics.models import ModelConfig, OmicsConfig, OmicsModel
from omics.models.model_config import FieldHeadConfig, FieldInput

FOLDER = files("omics.train.configs") / "model"
PRESETS = sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir())
# The whole published models: ids of their genes, and parameters with tables and decoder.
GENEFORMER = {
    "geneformer_10m": (25_426, 10.29e6),
    "geneformer_104m": (20_275, 104.39e6),
    "geneformer_316m": (20_275, 316.35e6),
}
EXPRESSION = FieldInput(name="expression", encoder="mlp", vocabulary_size=5, scaled_by="genes")


def genes(num_ids):
    return FieldInput(name="genes", encoder="embedding", vocabulary_size=num_ids)


def built(preset, fields, **heads):
    """Return the model of a preset without memory for its weights."""
    section = compose("pretrain", ["working_dir=run", f"model={preset}"]).model
    config = ModelConfig(fields=fields, **dataclasses.asdict(section), **heads)
    with torch.device("meta"):
        return OmicsModel(OmicsConfig(model=config.to_dict()))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_parameters_that_it_says(preset):
    fields = (genes(1000),) if preset in GENEFORMER else (genes(1000), EXPRESSION)
    model = built(preset, fields)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    count = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    comment = " ".join(
        line.removeprefix("# ")
        for line in (FOLDER / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    (said,) = re.findall(r"([\d.]+) million parameters without tables\.", comment)
    assert count == pytest.approx(float(said) * 1e6, rel=0.02)


def test_the_presets_go_from_a_laptop_to_300_million():
    assert {f"bert_{n}m" for n in (2, 10, 25, 110, 300)} <= set(PRESETS)
    assert {"tiny", "small", "modernbert_110m", "llama_32m", "llama_47m"} <= set(PRESETS)
    assert {"performer_10m", "nystromformer_10m", *GENEFORMER} <= set(PRESETS)


@pytest.mark.parametrize("preset", GENEFORMER)
def test_geneformer_presets_are_the_published_models(preset):
    num_ids, published = GENEFORMER[preset]
    decoder = FieldHeadConfig(field="genes", kind="token_scores", tied=True)
    model = built(preset, (genes(num_ids),), field_heads=(decoder,))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(published, rel=0.001)
