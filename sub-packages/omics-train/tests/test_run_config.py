from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from run_parts import compose

from omics.models import ModelConfig
from omics.train.run_config import DataConfig, ModelSection, RunConfig, TrainerConfig
from omics.train.run_files import CONFIGURATION, plain, read_configuration, write_configuration

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


@pytest.mark.parametrize("recipe", ["pretrain", "wced", "bioformers", "interpret"])
def test_what_is_kept_of_a_configuration_is_what_omegaconf_makes_of_it(tmp_path, recipe):
    settings = ["working_dir=run", "input_file=cells.store", "checkpoint=bundle"]
    settings += ["trainer.project=1e-5", "seed=3"] if recipe == "pretrain" else []
    config = compose(recipe, settings)
    typed = OmegaConf.structured(config)
    assert plain(config) == OmegaConf.to_container(typed, throw_on_missing=False)
    write_configuration(config, tmp_path)
    assert (tmp_path / CONFIGURATION).read_text() == OmegaConf.to_yaml(typed)
    assert read_configuration(tmp_path) == config


def test_tuples_and_paths_of_python_are_lists_and_text():
    config = RunConfig(
        input_file=Path("cells.store"),
        data_module=DataConfig(transforms=({"name": "log_normalize"},)),
        trainer=TrainerConfig(betas=(0.5, 0.9)),
    )
    found = plain(config)
    assert found["working_dir"] == "???"
    assert found["input_file"] == "cells.store"
    assert found["data_module"]["transforms"] == [{"name": "log_normalize"}]
    assert found["trainer"]["betas"] == [0.5, 0.9]
