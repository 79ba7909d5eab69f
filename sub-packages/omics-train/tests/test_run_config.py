from __future__ import annotations

import dataclasses

import pytest
from run_parts import compose

from omics.models import ModelConfig
from omics.train.run_config import ModelSection

HEADS_AND_FIELDS = {"fields", "field_heads", "wced", "labels"}


def test_the_model_section_is_the_model_s_own_sizes_with_the_same_defaults():
    theirs = {
        item.name: (item.type, item.default)
        for item in dataclasses.fields(ModelConfig)
        if item.name not in HEADS_AND_FIELDS
    }
    ours = {item.name: (item.type, item.default) for item in dataclasses.fields(ModelSection)}
    assert ours == theirs


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "test", "predict"])
def test_every_verb_composes(verb):
    config = compose(verb, ["working_dir=run", "input_file=cells.store"])
    assert config.data_module.path == "cells.store"
    assert config.task == [{"pretrain": "train", "finetune": "train"}.get(verb, verb)]


@pytest.mark.parametrize(("preset", "hidden_size"), [("tiny", 64), ("small", 256)])
def test_presets_are_chosen_by_name(preset, hidden_size):
    config = compose("pretrain", ["working_dir=run", f"model={preset}"])
    assert config.model.hidden_size == hidden_size
