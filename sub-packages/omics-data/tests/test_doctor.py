"""`omics-data doctor` tells what is there, and ends with 5 if something must be mended."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from omics.data.commands import doctor_command
from omics.data.commands.doctor_command import add_to, examine
from omics.data.storage import seen_chunks


def _run(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    add_to(app)
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_a_sound_machine_has_nothing_to_mend(tmp_path):
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert found["numpy"].found == np.__version__
    assert found["compiled loops"].found == "work"
    assert found[f"files in {tmp_path}"].found == "can be written and locked"
    assert list(tmp_path.iterdir()) == []
    result = _run(tmp_path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["num_problems"] == 0


def test_a_missing_extra_names_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_command, "find_spec", lambda name: None)
    found = {finding.name: finding.found for finding in examine(tmp_path)}
    assert found["extra soma"] == "not installed (pip install 'omics-data[soma]')"


def test_a_full_disk_and_a_locked_folder_are_problems(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_command, "LOW_SPACE_BYTES", 2**62)

    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("omics.data.atomic_files.writer_lock", refused)
    result = _run(tmp_path)
    assert result.exit_code == 5
    assert "is nearly full; conversions will stop." in result.stdout
    assert "cannot be written in" in result.stdout


def test_loops_that_give_wrong_results_are_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("omics.data.storage.gather.gather_rows", lambda *arguments: None)
    problems = [finding.problem for finding in examine(tmp_path) if finding.problem]
    assert problems == ["Reinstall numba and llvmlite."]


@pytest.mark.parametrize("there", [True, False])
def test_shared_memory_is_told(there, monkeypatch, tmp_path):
    monkeypatch.setattr(seen_chunks, "SHARED_MEMORY", tmp_path if there else tmp_path / "none")
    found = {finding.name: finding.found for finding in examine(tmp_path)}
    assert found["shared memory"].startswith("processes share" if there else "none")
