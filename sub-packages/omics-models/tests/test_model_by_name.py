"""A model by its name: bundles as they are, published checkpoints converted once into a cache."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bmfm_reference as reference
import pytest
from bmfm_files import write_archive, write_vocabularies
from geneformer_files import bert, write_checkpoint, write_dictionaries
from test_bundle import make_bundle
from test_checkpoint_source import Hub
from test_parity_bmfm import OWN_CASES

from omics.data.errors import (
    InputDataError,
    MissingPathError,
    OmicsWarning,
    UsageError,
)
from omics.models import Bundle, CorruptBundleError, model_by_name, open_model
from omics.models.model_by_name import cache_folder, model_name
from omics.models.published import checkpoint_conversion

WCED = "bmfm-rna-bert-wced"
GENES = [f"g{n}" for n in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMICS_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "models"


@pytest.fixture
def conversions(monkeypatch):
    """The names of the checkpoints that were converted."""
    names = []
    convert = model_by_name.convert_source

    def counted(source, options):
        names.append(source.weights.name)
        return convert(source, options)

    monkeypatch.setattr(model_by_name, "convert_source", counted)
    return names


def write_bmfm(folder, name="bert wced", seed=0):
    model_type, layout, changes = OWN_CASES[name]
    config = reference.settings(model_type, **changes)
    state = reference.make_state(config, layout)
    if seed:
        first = next(iter(state))
        state[first] = state[first] + seed
    folder.mkdir(parents=True, exist_ok=True)
    write_archive(folder / "last.ckpt", config, state)
    if not (folder / "tokenizers").exists():
        write_vocabularies(folder, GENES)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return write_bmfm(tmp_path / "downloads" / "wced")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub({}, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", made)
    return made


def test_a_bundle_is_taken_as_it_is(tmp_path, cache, conversions):
    saved = make_bundle().save(tmp_path / "run" / "bundle")
    assert open_model(saved) is saved
    for given in (saved.path, str(saved.path)):
        assert open_model(given).digest == saved.digest
    with pytest.raises(MissingPathError, match=r"run is no bundle, but holds one: give .*bundle"):
        open_model(tmp_path / "run")
    with pytest.raises(MissingPathError, match=r"is a part of a bundle: give the whole, .*bundle"):
        open_model(saved.path / "model.safetensors")
    assert not conversions
    assert not cache.exists()


def test_a_damaged_bundle_is_never_taken_for_a_checkpoint(tmp_path):
    saved = make_bundle().save(tmp_path / "bundle")
    (saved.path / "MANIFEST.json").unlink()
    with pytest.raises(CorruptBundleError, match="it is not a whole bundle"):
        open_model(saved.path)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_published_checkpoint_is_converted_once(checkpoint, cache, conversions, place):
    given = checkpoint if place == "folder" else checkpoint / "last.ckpt"
    told = []

    def on_convert(name):
        told.append(name)
        return lambda _count: None

    first = open_model(given, on_convert=on_convert)
    again = open_model(str(given), on_convert=on_convert)
    assert conversions == ["last.ckpt"]
    assert told == ["wced" if place == "folder" else "last.ckpt"]
    assert first.digest == again.digest != ""
    assert [folder.name for folder in cache.iterdir()] == [first.path.name]
    assert first.path.name.startswith(told[0])
    mine, theirs = first.model.state_dict(), again.model.state_dict()
    assert all(mine[key].equal(theirs[key]) for key in mine)


def test_other_weights_vocabularies_and_versions_are_other_entries(
    checkpoint, cache, conversions, monkeypatch
):
    open_model(checkpoint)
    write_bmfm(checkpoint, seed=1)
    open_model(checkpoint)
    vocabulary = checkpoint / "tokenizers/genes/tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"g7"', '"h7"'))
    changed = open_model(checkpoint)
    assert "h7" in changed.tokenizer.vocabulary.names
    monkeypatch.setattr(
        model_by_name, "CONVERSION_VERSION", checkpoint_conversion.CONVERSION_VERSION + 1
    )
    open_model(checkpoint)
    assert len(conversions) == len(list(cache.iterdir())) == 4


def test_dictionaries_belong_to_the_key(tmp_path, conversions):
    tokens = write_dictionaries(tmp_path / "geneformer", GENES)
    source = write_checkpoint(tmp_path / "Geneformer-V2", bert(len(tokens)))
    open_model(source)
    shutil.rmtree(tmp_path / "geneformer")
    write_dictionaries(tmp_path / "geneformer", GENES[::-1])
    assert open_model(source).tokenizer.vocabulary.names[0] == GENES[-1]
    assert len(conversions) == 2


def test_a_name_of_the_catalogue_comes_from_the_hub_and_is_kept(tmp_path, hub, cache, conversions):
    hub.repositories["ibm-research/biomed.rna.bert.110m.wced.v1"] = write_bmfm(tmp_path / "remote")
    found = open_model(WCED)
    same = open_model("hf:ibm-research/biomed.rna.bert.110m.wced.v1")
    assert found.digest == same.digest
    assert conversions == ["last.ckpt"]
    assert found.provenance["published"]["name"] == WCED
    (entry,) = cache.iterdir()
    assert entry.name.startswith(f"{WCED}-")
    # A checkpoint of the same files that no row is known of is used in another way.
    assert open_model(tmp_path / "remote").digest != found.digest


def test_a_repository_may_hold_a_bundle_or_a_checkpoint(
    tmp_path, hub, cache, conversions, monkeypatch
):
    saved = make_bundle().save(tmp_path / "lab" / "bundle")
    hub.repositories["lab/bundle"] = saved.path
    hub.repositories["lab/checkpoint"] = write_bmfm(tmp_path / "remote")
    monkeypatch.setattr(
        "omics.models.bundle.fetch_snapshot", lambda repo_id: hub.repositories[repo_id]
    )
    assert open_model("hf:lab/bundle").digest == saved.digest
    assert not conversions
    assert open_model("hf:lab/checkpoint").path.parent == cache
    assert conversions == ["last.ckpt"]
    with pytest.raises(InputDataError, match="hf:lab/none could not be fetched"):
        open_model("hf:lab/none")
    with pytest.raises(UsageError, match="is not hf:owner/name"):
        open_model("hf:lab")


@pytest.mark.parametrize("file", ["model.safetensors", "MANIFEST.json", "preprocessing.json"])
def test_a_damaged_entry_is_found_and_made_again(checkpoint, conversions, file):
    whole = open_model(checkpoint)
    damaged = bytearray((whole.path / file).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (whole.path / file).write_bytes(damaged)
    with pytest.warns(OmicsWarning, match="is damaged: it is converted again"):
        mended = open_model(checkpoint)
    assert len(conversions) == 2
    assert mended.digest == whole.digest
    assert Bundle.load(whole.path).digest == whole.digest
    assert open_model(checkpoint).digest == whole.digest
    assert len(conversions) == 2


def test_the_loser_of_a_race_takes_what_the_winner_left(checkpoint, cache, monkeypatch):
    convert = model_by_name.convert_source

    def beaten(source, options):
        monkeypatch.setattr(model_by_name, "convert_source", convert)
        winners.append(open_model(checkpoint))
        return convert(source, options)

    winners = []
    monkeypatch.setattr(model_by_name, "convert_source", beaten)
    mine = open_model(checkpoint)
    assert mine.path == winners[0].path
    assert mine.digest == winners[0].digest
    assert [each.name for each in cache.iterdir()] == [mine.path.name]


def test_two_at_once_leave_one_whole_bundle(checkpoint, cache):
    with ThreadPoolExecutor(2) as pool:
        digests = [each.digest for each in pool.map(open_model, [checkpoint] * 2)]
    assert len(set(digests)) == 1
    (entry,) = cache.iterdir()
    assert Bundle.load(entry).digest == digests[0]


def test_a_failed_conversion_leaves_nothing(checkpoint, cache):
    (checkpoint / "tokenizers/genes/tokenizer.json").write_text("{}")
    with pytest.raises(InputDataError):
        open_model(checkpoint)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_mistyped_name_has_its_nearest(tmp_path):
    with pytest.raises(
        MissingPathError, match=r"no model geneformer-v2-104: .*Did you mean 'geneformer-v2-104m'"
    ) as caught:
        open_model("geneformer-v2-104")
    assert caught.value.exit_code == 2
    with pytest.raises(MissingPathError, match=r"no model .*absent: neither a folder") as caught:
        open_model(tmp_path / "absent")
    assert "Known" not in str(caught.value)
    with pytest.raises(MissingPathError, match="holds no weights"):
        open_model(tmp_path)


def test_what_needs_options_is_sent_to_convert(tmp_path):
    with pytest.raises(UsageError, match=r"lies on no hub: convert .*--as bioformers-log"):
        open_model("bioformers-log")
    source = write_checkpoint(tmp_path / "alone" / "model", bert(44))
    with pytest.raises(
        MissingPathError, match=r"--table.* options of `omics-models convert`.* give the bundle"
    ):
        open_model(source)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.delenv("OMICS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "omics"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "omics"


def test_records_name_models_without_their_folders(tmp_path):
    bundle = make_bundle()
    assert model_name(bundle) == ""
    saved = bundle.save(tmp_path / "mine")
    assert [model_name(each) for each in (saved, saved.path, WCED, "hf:a/b")] == [
        "mine",
        "mine",
        WCED,
        "hf:a/b",
    ]
