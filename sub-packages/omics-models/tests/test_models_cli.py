from __future__ import annotations

import json
import sys

import bmfm_reference as reference
import pytest
import torch
from bmfm_files import write_archive, write_vocabularies
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


@pytest.fixture
def checkpoint(tmp_path):
    config = reference.settings()
    state = reference.make_state(config)
    state["scbert.embeddings.position_ids"] = torch.arange(4)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_archive(folder / "last.ckpt", config, state)
    write_vocabularies(folder, [f"g{n}" for n in range(40)])
    return folder


def test_a_checkpoint_is_converted_described_and_written_back(
    checkpoint, tmp_path, monkeypatch, capsys
):
    bundle, back = tmp_path / "bundle", tmp_path / "back"
    assert run(monkeypatch, "convert", checkpoint, bundle) == 0
    text = capsys.readouterr().out
    assert f"Wrote {bundle}: bmfm, " in text
    assert "2 x 32, cell_type 7, tissue 3, donor_id 4" in text
    assert "left out       scbert.embeddings.position_ids: the numbers of positions" in text
    assert run(monkeypatch, "convert", checkpoint, bundle) == 2
    assert "exists" in capsys.readouterr().err
    assert run(monkeypatch, "convert", checkpoint, bundle, "--overwrite", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["labels"] == {"cell_type": 7, "tissue": 3, "donor_id": 4}
    assert run(monkeypatch, "info", bundle, "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == facts["digest"]
    assert run(monkeypatch, "info", bundle) == 0
    text = capsys.readouterr().out
    assert "name gene_panel, genes (36 entries)" in text
    assert max(len(line) for line in text.splitlines()) < 600

    assert run(monkeypatch, "export", bundle, back) == 0
    assert "config.json, keys.txt, model.safetensors" in capsys.readouterr().out
    assert run(monkeypatch, "export", bundle, back, "--overwrite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"][0] == "config.json"

    assert run(monkeypatch, "card", bundle) == 0
    printed = capsys.readouterr().out
    assert "| published: kind | bmfm |" in printed
    assert run(monkeypatch, "card", bundle, "--out", tmp_path / "README.md") == 0
    assert (tmp_path / "README.md").read_text() == printed


def test_a_hostile_checkpoint_ends_with_code_3_and_one_line(tmp_path, monkeypatch, capsys):
    class Call:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"state_dict": Call()}, tmp_path / "evil.ckpt")
    assert run(monkeypatch, "convert", tmp_path / "evil.ckpt", tmp_path / "bundle") == 3
    said = capsys.readouterr()
    assert "names '__builtin__.print'" in said.err
    assert said.err.count("\n") == 1
    assert "executed" not in said.out
    assert not (tmp_path / "bundle").exists()


def test_the_catalogue_is_listed_for_people_and_machines(monkeypatch, capsys):
    assert run(monkeypatch, "list") == 0
    text = capsys.readouterr().out
    assert "geneformer-v2-104m\n  from           ctheodoris/Geneformer/Geneformer-V2-104M\n" in text
    assert "licence        see the repository" in text
    assert run(monkeypatch, "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert {row["kind"] for row in rows} == {"bmfm", "geneformer", "bioformers"}


def test_help_and_version(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("list", "info", "convert", "export", "card"))
    assert run(monkeypatch, "convert", "--help") == 0
    assert "without executing anything" in capsys.readouterr().out
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("omics-models ")
