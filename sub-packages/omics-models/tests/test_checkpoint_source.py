"""Where a checkpoint is found: files, folders, the hub, the catalogue; and how it is named."""

from __future__ import annotations

import dataclasses
import fnmatch
import shutil

import bmfm_reference as reference
import pytest
from bmfm_files import write_archive, write_vocabularies
from test_parity_bmfm import OWN_CASES

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError, UsageError
from omics.models import CatalogueRow, catalogue, convert_checkpoint
from omics.models.published.catalogue import KINDS, catalogue_row, row_of_hub
from omics.models.published.checkpoint_source import find_source


class Hub:
    """A hub of local folders that gives the files that were asked for."""

    def __init__(self, repositories, cache):
        self.repositories, self.cache, self.asked = repositories, cache, []

    def __call__(self, repo_id, allow_patterns=None):
        self.asked.append((repo_id, allow_patterns))
        if repo_id not in self.repositories:
            raise OSError("404 repository not found")
        source = self.repositories[repo_id]
        target = self.cache / repo_id.replace("/", "--")
        for file in source.rglob("*"):
            name = file.relative_to(source).as_posix()
            wanted = any(fnmatch.fnmatch(name, each) for each in allow_patterns)
            if file.is_file() and wanted:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name)
        target.mkdir(parents=True, exist_ok=True)
        return str(target)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub({}, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", made)
    return made


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_a_file_is_itself_and_its_configuration_lies_beside_it(tmp_path):
    touch(tmp_path, "a.safetensors", "a.config.json", "config.json", "b.pt")
    found = find_source(tmp_path / "a.safetensors")
    assert found.config == tmp_path / "a.config.json"
    found = find_source(tmp_path / "b.pt")
    assert (found.config, found.folder) == (tmp_path / "config.json", tmp_path)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["b.ckpt", "a.ckpt", "model.safetensors"], "a.ckpt"),
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin", "config.json"], "pytorch_model.bin"),
    ],
)
def test_a_folder_gives_the_first_of_its_weights(names, chosen, tmp_path):
    assert find_source(touch(tmp_path, *names)).weights.name == chosen


def test_what_is_not_there_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(MissingPathError, match="holds no weights") as caught:
        find_source(touch(tmp_path, "readme.md"))
    assert caught.value.exit_code == 2
    with pytest.raises(
        MissingPathError, match=r"no checkpoint .*Did you mean 'geneformer-v2-104m'"
    ):
        find_source("geneformer-v2-104")
    with pytest.raises(UsageError, match=r"ends with '\.npz'; weights are read from \.ckpt"):
        find_source(touch(tmp_path, "a.npz") / "a.npz")
    for name in ("hf:owner", "hf:../x/y", "hf:a/b/../c", "hf:a b/c"):
        with pytest.raises(UsageError, match="is not hf:owner/name"):
            find_source(name)
    with pytest.raises(UsageError, match="lies on no hub: convert the file"):
        find_source("bioformers-log")


def test_only_files_that_are_read_are_fetched(tmp_path, hub):
    names = ["last.ckpt", "tokenizers/genes/tokenizer.json", "modeling.py", "README.md", "x.bin"]
    hub.repositories["lab/cells"] = touch(tmp_path / "remote", *names)
    found = find_source("hf:lab/cells")
    fetched = {file.name for file in found.folder.rglob("*") if file.is_file()}
    assert fetched == {"last.ckpt", "tokenizer.json"}
    assert found.row is None


def test_old_weights_are_fetched_only_where_there_are_no_others(tmp_path, hub):
    hub.repositories["lab/old"] = touch(tmp_path / "old", "pytorch_model.bin", "config.json")
    assert find_source("hf:lab/old").weights.name == "pytorch_model.bin"
    assert len(hub.asked) == 2
    hub.repositories["lab/new"] = touch(
        tmp_path / "new", "pytorch_model.bin", "model.safetensors", "config.json"
    )
    found = find_source("hf:lab/new")
    assert (found.weights.name, len(hub.asked)) == ("model.safetensors", 3)
    assert not (found.folder / "pytorch_model.bin").exists()


def test_a_folder_of_a_repository_comes_with_the_dictionaries_beside_it(tmp_path, hub):
    names = ["Geneformer-V2-104M/config.json", "Geneformer-V2-104M/model.safetensors",
             "Geneformer-V2-316M/model.safetensors", "geneformer/token_dictionary_gc104M.pkl",
             "geneformer/gene_dictionaries_30m/token_dictionary_gc30M.pkl", "geneformer/tokenizer.py"]  # fmt: skip
    hub.repositories["ctheodoris/Geneformer"] = touch(tmp_path / "remote", *names)
    for given in ("geneformer-v2-104m", "hf:ctheodoris/Geneformer/Geneformer-V2-104M"):
        found = find_source(given)
        assert found.row.name == "geneformer-v2-104m"
        assert found.folder.name == "Geneformer-V2-104M"
    root = found.folder.parent
    fetched = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}
    assert fetched == {name for name in names if "316M" not in name and not name.endswith(".py")}
    with pytest.raises(InputDataError, match="has no folder 'Geneformer-V3'"):
        find_source("hf:ctheodoris/Geneformer/Geneformer-V3")


def test_a_hub_that_has_it_not_or_cannot_be_reached_is_one_paragraph(hub):
    with pytest.raises(InputDataError, match="hf:lab/none could not be fetched from the hub: 404"):
        find_source("hf:lab/none")


def test_a_repository_of_the_catalogue_is_known_by_its_name(tmp_path, hub):
    model_type, layout, changes = OWN_CASES["bert wced"]
    config = reference.settings(model_type, **changes)
    folder = tmp_path / "remote"
    folder.mkdir()
    write_archive(folder / "last.ckpt", config, reference.make_state(config, layout))
    write_vocabularies(folder, [f"g{n}" for n in range(40)])
    hub.repositories["ibm-research/biomed.rna.bert.110m.wced.v1"] = folder
    for given in ("bmfm-rna-bert-wced", "hf:ibm-research/biomed.rna.bert.110m.wced.v1"):
        record = convert_checkpoint(given).provenance["published"]
        assert (record["name"], record["kind"]) == ("bmfm-rna-bert-wced", "bmfm")
        assert record["source"].startswith("hf:ibm-research/") or record["source"] == given
        assert record["licence"] == "see the repository"


def test_every_row_of_the_catalogue_is_whole():
    rows = catalogue()
    names = [field.name for field in dataclasses.fields(CatalogueRow)]
    for name, row in rows.items():
        assert row.name == name
        assert row.kind in KINDS
        assert list(row.to_dict()) == names
        assert row.parameters
        assert row.licence
        assert row.preprocessing
        assert row.pooling
        assert row.files
        if row.hub:
            assert row_of_hub(row.hub, row.folder) is row
            assert row.max_length
    assert sum(row.kind == "bmfm" for row in rows.values()) == 6
    assert row_of_hub("ibm-research/biomed.rna.llama.47m.wced.multitask.v1.vllm", "") is not None
    assert row_of_hub("lab/other", "") is None
    assert catalogue_row("geneformer") == CatalogueRow(name="geneformer", kind="geneformer")
    with pytest.raises(UnknownNameError, match=r"no published checkpoint 'x'.*omics-models list"):
        catalogue_row("x")
