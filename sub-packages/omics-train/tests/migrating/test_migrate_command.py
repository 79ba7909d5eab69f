"""The verb `migrate`."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from typer.testing import CliRunner

from omics.train.cli import app

OLD = Path(__file__).parent / "old"


def run(*arguments):
    return CliRunner().invoke(app, ["migrate", *map(str, arguments)])


def test_the_result_and_its_report(tmp_path):
    out = tmp_path / "mine.yaml"
    result = run(OLD / "generic_h5ad.yaml", "--out", out)
    assert result.exit_code == 0, result.output
    written = out.read_text()
    assert written.startswith("# Made by `omics-train migrate` from generic_h5ad.yaml (bmfm).\n")
    assert yaml.safe_load(written)["defaults"] == ["base", "_self_"]
    lines = result.stdout.splitlines()
    assert "  task[0].max_epochs -> trainer.max_epochs" in lines
    assert "  data_module.mlm: the entries of fields say which are hidden" in lines
    assert "  trainer.schedule = constant" in lines
    assert any(line.startswith("  omics-data split generic_h5ad.store") for line in lines)
    assert lines[-1] == f"next: omics-train finetune -cd {tmp_path} -cn mine"


def test_json_holds_every_key(tmp_path):
    result = run(OLD / "settings.json", "--out", tmp_path / "s.yaml", "--json")
    found = json.loads(result.stdout)
    assert found["kind"] == "bioformers"
    assert found["verb"] == "pretrain"
    assert {key["old"] for key in found["keys"]} == set(
        json.loads((OLD / "settings.json").read_text())
    )
    assert found["before"][0]["command"].startswith("omics-data prepare")


def test_nothing_is_replaced_or_named_wrongly(tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    refused = run(OLD / "settings.json", "--out", out)
    assert refused.exception.exit_code == 2
    assert out.read_text() == "mine"
    assert run(OLD / "settings.json", "--out", out, "--overwrite").exit_code == 0
    wrong = run(OLD / "settings.json", "--out", tmp_path / "mine.yml")
    assert "must end with .yaml" in str(wrong.exception)


def test_a_file_that_is_refused_leaves_nothing(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("data_module: {batchsize: 4}")
    result = run(bad, "--out", tmp_path / "out.yaml")
    assert result.exception.exit_code == 2
    assert not (tmp_path / "out.yaml").exists()
