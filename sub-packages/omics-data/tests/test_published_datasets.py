"""Rows of published datasets: what they hold, what is refused, and where the user's copy is."""

from __future__ import annotations

import hashlib
import json

import pytest
from typer.testing import CliRunner

from omics.data.cli import app
from omics.data.errors import (
    ConfigError,
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
)
from omics.data.published_datasets import (
    TASKS,
    VALUES,
    find_dataset,
    locate_dataset,
    read_datasets,
)
from omics.data.quality.thresholds import Thresholds

ROW = """
[mine]
title = "my cells"
file = "mine.h5ad"
published = "nowhere yet"
organism = "human"
task = "annotation"
"""


@pytest.fixture(autouse=True)
def _no_copies(monkeypatch):
    for row in read_datasets().values():
        monkeypatch.delenv(row.variable, raising=False)


@pytest.fixture
def own_rows(tmp_path, monkeypatch):
    """Write a table of own rows and let OMICS_DATASETS name it."""

    def write(text):
        path = tmp_path / "own.toml"
        path.write_text(text)
        monkeypatch.setenv("OMICS_DATASETS", str(path))
        return path

    return write


def test_the_rows_are_those_of_the_reference():
    rows = read_datasets()
    named = {
        "zheng68k", "pbmc_4k_8k", "adamson", "norman", "panglaodb", "sciplex3", "scp1884",
        "multiple_sclerosis", "myeloid", "pancreas", "hbones", "covid_19", "heart_atlas",
        "immune_all_human", "lung_atlas", "pbmc_10k", "cell_lines", "dc", "human_pbmc",
        "immune_atlas", "pancrm", "mca", "mhsp", "perirhinal_cortex", "pbmc_3k_68k",
    }  # fmt: skip
    assert named <= set(rows)
    zheng = rows["zheng68k"]
    assert (zheng.cells, zheng.labels, zheng.split) == (
        68_450, ("celltype",), "split_stratified_celltype",
    )  # fmt: skip
    assert Thresholds(**zheng.preprocessing) == Thresholds(
        min_counts=700, max_counts=2500, min_genes=300, max_genes=1000, max_mito=7
    )
    assert rows["myeloid"].cells == 9_748 + 3_430
    assert rows["multiple_sclerosis"].cells == 7_844 + 13_468
    assert (rows["pbmc_4k_8k"].cells, rows["pbmc_4k_8k"].genes) == (11_990, 3_346)


@pytest.mark.parametrize("name", read_datasets())
def test_a_row_says_what_to_get_and_invents_nothing(name):
    row = find_dataset(name)
    assert row.task in TASKS
    assert row.values in VALUES
    assert row.digest == ""
    assert row.variable == f"OMICS_DATA_{name.upper()}"
    assert "http" not in row.what_to_get
    assert row.what_to_get.startswith(f"get {row.file}")
    assert row.what_to_get.endswith(f"published with {row.published}")


def test_a_missing_copy_is_one_line_that_names_what_and_where():
    with pytest.raises(MissingPathError) as caught:
        locate_dataset("zheng68k")
    message = str(caught.value)
    assert message == (
        "No copy of the dataset 'zheng68k' is given: get zheng68k.h5ad (68,450 cells), published "
        "with Zheng et al. 2017, Nature Communications 8:14049; 10x Genomics, 'Fresh 68k PBMCs "
        "(Donor A)', and set OMICS_DATA_ZHENG68K to its path."
    )


def test_the_variable_holds_the_path_and_a_given_path_goes_first(tmp_path, monkeypatch):
    first, second = tmp_path / "first.h5ad", tmp_path / "second.store"
    first.write_bytes(b"x")
    second.mkdir()
    monkeypatch.setenv("OMICS_DATA_ZHENG68K", str(first))
    assert locate_dataset("zheng68k") == first
    assert locate_dataset("zheng68k", second) == second


def test_a_path_where_nothing_is_says_so_and_what_to_get(tmp_path, monkeypatch):
    gone = tmp_path / "gone.h5ad"
    monkeypatch.setenv("OMICS_DATA_NORMAN", str(gone))
    with pytest.raises(
        MissingPathError,
        match=r"OMICS_DATA_NORMAN is .*gone.h5ad, which does not exist.*get norman/.*GSE133344",
    ):
        locate_dataset("norman")
    with pytest.raises(MissingPathError, match=r"^/.*gone.h5ad, which does not exist"):
        locate_dataset("norman", gone)


def test_an_unknown_name_has_the_nearest_as_a_hint():
    with pytest.raises(UnknownNameError, match=r"no dataset 'zheng68'. Did you mean 'zheng68k'\?"):
        locate_dataset("zheng68")


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_digest_that_is_given_is_checked(kind, tmp_path, own_rows):
    path = tmp_path / "mine.h5ad"
    path.write_bytes(b"cells" * 1000)
    right = hashlib.new(kind, path.read_bytes()).hexdigest()
    own_rows(f'{ROW}digest = "{kind}:{right.upper()}"')
    assert locate_dataset("mine", path) == path
    path.write_bytes(b"other cells")
    with pytest.raises(
        InputDataError,
        match=rf"mine.h5ad is not the published file of the dataset 'mine': its {kind} is .*get mi",
    ):
        locate_dataset("mine", path)


def test_the_digest_is_that_of_the_file_not_of_a_store_made_from_it(tmp_path, own_rows):
    own_rows(f'{ROW}digest = "md5:00"')
    assert locate_dataset("mine", tmp_path) == tmp_path


def test_own_rows_stand_beside_the_packaged_ones_and_may_replace_them(own_rows):
    own_rows(ROW + ROW.replace("[mine]", "[zheng68k]"))
    rows = read_datasets()
    assert rows["mine"].title == rows["zheng68k"].title == "my cells"
    assert rows["norman"].organism == "human"


def test_a_file_of_own_rows_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("OMICS_DATASETS", str(tmp_path / "none.toml"))
    with pytest.raises(MissingPathError, match=r"OMICS_DATASETS names .*none.toml, which is no fi"):
        read_datasets()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mine", r"own.toml is not a TOML table of datasets \("),
        ("mine = 3", r"own.toml: mine is not a table; write \[mine\]"),
        (ROW.replace("[mine]", "[Mine]"), "'Mine' is not a name of small letters"),
        (f'{ROW}lable = "x"', r"\[mine\]: there is no key 'lable'. Did you mean 'labels'"),
        (f'{ROW}labels = "x"', r"\[mine\]: labels is 'x'; it must be of type list"),
        (f"{ROW}labels = [1]", r"\[mine\]: labels must be names of columns"),
        (f"{ROW}cells = true", r"\[mine\]: cells is True; it must be of type int"),
        (ROW.replace("mine.h5ad", ""), r"\[mine\]: file must be given"),
        (ROW.replace("annotation", "anotation"), r"task is 'anotation'. Did you mean 'annot"),
        (f'{ROW}values = "logs"', r"values is 'logs'"),
        (f'{ROW}digest = "abc"', r"digest is 'abc'; write it as sha256:HEX"),
        (f"{ROW}preprocessing = {{ min_count = 3 }}", "no limit 'min_count'. Did you mean 'min_co"),
        (f'{ROW}preprocessing = {{ min_counts = "3" }}', r"preprocessing.min_counts is '3'; it"),
    ],
)
def test_a_wrong_row_names_its_key(text, message, own_rows):
    own_rows(text)
    with pytest.raises(ConfigError, match=message):
        read_datasets()


def test_limits_that_no_cell_can_meet_are_refused(own_rows):
    own_rows(f"{ROW}preprocessing = {{ min_counts = 3, max_counts = 2 }}")
    with pytest.raises(UsageError, match="no cell can meet both"):
        read_datasets()


# The verb


def test_the_verb_lists_all_rows_for_people_and_machines():
    listed = CliRunner().invoke(app, ["datasets"])
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["name", "cells", "task", "label", "split", "what"]
    assert len(lines) == 1 + len(read_datasets())
    assert lines[1].startswith("zheng68k            68,450   annotation")
    as_json = json.loads(CliRunner().invoke(app, ["datasets", "--json"]).stdout)["datasets"]
    assert [row["name"] for row in as_json] == list(read_datasets())
    assert as_json[0]["variable"] == "OMICS_DATA_ZHENG68K"
    assert as_json[0]["preprocessing"]["max_mito"] == 7


def test_the_verb_prints_the_path_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMICS_DATA_MYELOID", str(tmp_path))
    printed = CliRunner().invoke(app, ["datasets", "myeloid"])
    assert (printed.exit_code, printed.stdout) == (0, f"{tmp_path}\n")
    as_json = json.loads(CliRunner().invoke(app, ["datasets", "myeloid", "--json"]).stdout)
    assert (as_json["path"], as_json["cells"]) == (str(tmp_path), 13_178)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["datasets", "myeloid"], 2), (["datasets", "myelod"], 2)],
)
def test_what_cannot_be_resolved_ends_with_2(arguments, code):
    result = CliRunner().invoke(app, arguments)
    assert result.exception.exit_code == code


def test_a_wrong_file_ends_with_3(tmp_path, own_rows, monkeypatch):
    own_rows(f'{ROW}digest = "sha256:00"')
    path = tmp_path / "mine.h5ad"
    path.write_bytes(b"x")
    monkeypatch.setenv("OMICS_DATA_MINE", str(path))
    assert CliRunner().invoke(app, ["datasets", "mine"]).exception.exit_code == 3
