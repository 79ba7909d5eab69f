"""The samples of a PanglaoDB folder: chosen by conditions, with what the metadata says of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError, UsageError
from omics.data.sources.panglao_metadata import panglao_files, panglao_selection
from omics.data.sources.registry import open_source

REAL = sorted(Path(os.environ.get("OMICS_REAL_DATA") or os.devnull).glob("**/panglao/metadata.csv"))
METADATA = """\
SRA Accession,SRS Accession,Tissue Origin,Species,Number of cells,Is Tumor
SRA1,SRS1,Lung,Homo sapiens,100,FALSE
SRA1,SRS2,"Lung, left",Homo sapiens,2000,TRUE
SRA2,notused,Liver,Homo sapiens,10,FALSE
SRA2,SRS3,Liver,Mus musculus,,FALSE
SRA3,SRS4,Skin,Mus musculus,50,FALSE
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metadata.csv").write_text(METADATA)
    for name in ("SRA1_SRS1", "SRA1_SRS2", "SRA2_SRS3", "SRA2_notused", "SRA9_SRS9"):
        (tmp_path / f"{name}.sparse.RData").write_bytes(b"")
    return tmp_path


def names(folder: Path, where: str | list[str] = ()) -> list[str]:  # type: ignore[assignment]
    return [each.sample for each in panglao_files(folder, where=where)]


def test_samples_with_files_and_what_is_known_of_them(folder: Path) -> None:
    selection = panglao_selection(folder)
    assert [each.sample for each in selection.samples] == ["SRS1", "SRS2", "SRS3"]
    assert selection.missing == ["SRA3_SRS4.sparse.RData"]
    assert selection.unlisted == ["SRA9_SRS9.sparse.RData"]
    sample = selection.samples[1]
    assert sample.path == folder / "SRA1_SRS2.sparse.RData"
    assert sample.study == "SRA1"
    assert sample.extra_obs == {
        "SRA Accession": "SRA1",
        "SRS Accession": "SRS2",
        "Tissue Origin": "Lung, left",
        "Species": "Homo sapiens",
        "Number of cells": 2000.0,
        "Is Tumor": "TRUE",
    }
    empty = selection.samples[2].extra_obs["Number of cells"]
    assert isinstance(empty, float)
    assert math.isnan(empty)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("Species = Homo sapiens", ["SRS1", "SRS2"]),
        ('Species == "Homo sapiens"', ["SRS1", "SRS2"]),
        ("species=='Homo sapiens'", ["SRS1", "SRS2"]),
        ("Species != Homo sapiens", ["SRS3"]),
        ("Species = Homo sapiens | Mus musculus", ["SRS1", "SRS2", "SRS3"]),
        ("Tissue Origin = Lung, left", ["SRS2"]),
        ('`Tissue Origin` == "Lung" | "Liver"', ["SRS1", "SRS3"]),
        ("tissue_origin != Lung | Liver", ["SRS2"]),
        ("Number of cells > 100", ["SRS2"]),
        ("Number of cells >= 100", ["SRS1", "SRS2"]),
        ("Number of cells < 1e3", ["SRS1"]),
        ("Number of cells <= 2000", ["SRS1", "SRS2"]),
        (["Species = Homo sapiens", "Is Tumor = FALSE"], ["SRS1"]),
        ([], ["SRS1", "SRS2", "SRS3"]),
    ],
)
def test_conditions(folder: Path, where: str | list[str], expected: list[str]) -> None:
    assert names(folder, where) == expected


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("Species", "cannot be understood: write COLUMN = VALUE"),
        ("Species = ", "cannot be understood"),
        ("= Lung", "cannot be understood"),
        ('Species == "Homo sapiens" and Is Tumor == "FALSE"', None),
        ("Number of cells > many", "which is not a number"),
        ("__import__('os').system('true')", "cannot be understood"),
        ('Species == "Homo sapiens', "opens a quote and does not close it"),
    ],
)
def test_conditions_that_are_none(folder: Path, where: str, words: str | None) -> None:
    words = words or "write one condition|No file in|at a time"
    with pytest.raises((UsageError, InputDataError), match=words):
        panglao_files(folder, where=where)


def test_an_unknown_column_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'Species'"):
        panglao_files(folder, where="Specie = Homo sapiens")


def test_a_choice_without_files_is_an_error(folder: Path) -> None:
    with pytest.raises(InputDataError, match="1 samples are chosen, but their files"):
        panglao_files(folder, where="Tissue Origin = Skin")
    with pytest.raises(InputDataError, match="No sample meets all conditions"):
        panglao_files(folder, where="Tissue Origin = Brain")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SRA Accession,Tissue\nSRA1,Lung\n", "no column 'SRS Accession'"),
        (
            "SRA Accession,SRS Accession\nSRA1,SRS1\nSRA1,SRS1\n",
            "lists the sample SRA1_SRS1.* twice",
        ),
        ("SRA Accession,SRS Accession\n../../etc,passwd\n", "letters, digits and hyphens only"),
        ("SRA Accession,SRS Accession\nSRA1,a/b\n", "letters, digits and hyphens only"),
        ("SRA Accession,SRS Accession\nSRA1\nSRA1,SRS1,x,y\n", "not a table in CSV form"),
        ("", "not a table in CSV form"),
    ],
)
def test_broken_metadata(folder: Path, text: str, words: str) -> None:
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(InputDataError, match=words):
        panglao_files(folder)


def test_missing_folder_and_missing_table(folder: Path) -> None:
    with pytest.raises(MissingPathError, match="no folder"):
        panglao_files(folder / "absent")
    with pytest.raises(MissingPathError, match="There is no file"):
        panglao_files(folder, folder / "other.csv")
    (folder / "metadata.csv").rename(folder / "table.csv")
    with pytest.raises(MissingPathError, match="or beside it; give the table"):
        panglao_files(folder)
    inner = folder / "rdata"
    inner.mkdir()
    (folder / "SRA1_SRS1.sparse.RData").rename(inner / "SRA1_SRS1.sparse.RData")
    (folder / "table.csv").rename(folder / "metadata.csv")
    assert [each.sample for each in panglao_files(inner)] == ["SRS1"]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parent.name)
def test_real_folders(path: Path) -> None:
    selection = panglao_selection(path.parent)
    assert selection.samples
    assert not selection.unlisted
    for sample in selection.samples:
        with open_source(sample.path) as source:
            assert source.num_cells
        assert sample.extra_obs["SRS Accession"] == sample.sample
