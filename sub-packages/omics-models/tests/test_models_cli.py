from __future__ import annotations

import json
import sys

import pytest
from test_bundle import make_bundle

from omics.models.cli import main


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["omics-models", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_info_says_what_a_bundle_holds(tmp_path, monkeypatch, capsys):
    saved = make_bundle().save(tmp_path / "bundle")
    assert run(monkeypatch, "info", saved.path) == 0
    text = capsys.readouterr().out
    assert "every digest agrees" in text
    assert "3 classes (b cell, t cell, nk)" in text
    assert run(monkeypatch, "info", saved.path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["digest"] == saved.digest
    assert facts["preprocessing"][0] == {
        "name": "log_normalize",
        "target_sum": 1000.0,
        "field_name": "expression",
        "added_total": 0.0,
    }


def test_a_bundle_with_a_missing_file_ends_with_code_4(tmp_path, monkeypatch, capsys):
    saved = make_bundle().save(tmp_path / "bundle")
    (saved.path / "model.safetensors").unlink()
    assert run(monkeypatch, "info", saved.path) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "model.safetensors is missing from the bundle" in error
    assert error.count("\n") == 1


def test_a_path_that_is_not_there_ends_with_code_2(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "info", tmp_path / "nothing") == 2
    assert "no bundle folder" in capsys.readouterr().err


def test_help_and_version(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    assert "info" in capsys.readouterr().out
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("omics-models ")
