"""`data_module.dataset`: cells by the name of a published dataset."""

from __future__ import annotations

import pytest

from omics.data.errors import MissingPathError, UnknownNameError
from omics.train.cell_selection import data_path
from omics.train.run_config import DataConfig, RunConfig


def config_of(**data):
    return RunConfig(input_file=data.pop("input_file", None), data_module=DataConfig(**data))


def test_the_variable_says_where_the_copy_is_and_a_path_goes_first(tmp_path, monkeypatch):
    copy, store = tmp_path / "copy.h5ad", tmp_path / "cells.store"
    copy.write_bytes(b"x")
    store.mkdir()
    monkeypatch.setenv("OMICS_DATA_ZHENG68K", str(copy))
    assert data_path(config_of(dataset="zheng68k")) == str(copy)
    assert data_path(config_of(dataset="zheng68k", path=str(store))) == str(store)
    assert data_path(config_of(dataset="zheng68k", input_file=str(store))) == str(store)


def test_without_a_copy_one_line_says_what_to_get(monkeypatch):
    monkeypatch.delenv("OMICS_DATA_ZHENG68K", raising=False)
    with pytest.raises(MissingPathError, match=r"get zheng68k.h5ad \(68,450 cells\), published"):
        data_path(config_of(dataset="zheng68k"))


def test_an_unknown_name_has_a_hint():
    with pytest.raises(UnknownNameError, match=r"no dataset 'zheng'\. Did you mean 'zheng68k'"):
        data_path(config_of(dataset="zheng"))
