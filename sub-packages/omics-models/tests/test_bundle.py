from __future__ import annotations

import json
import shutil

import pytest
import torch
from ragged_tokens import NUM_GENES, heads, random_tokens, small_model
from transformers import AutoModel

from omics.data.errors import ConfigError, ExistingPathError, InputDataError, MissingPathError
from omics.data.transforms import LogNormalize, TopGenes
from omics.models import Bundle, CorruptBundleError
from omics.models.model_config import LabelHeadConfig
from omics.tokenizers import GeneTokenizer, LabelSpec, SequenceTokenizer, ValueField

GENES = [f"g{i}" for i in range(NUM_GENES)]
LABELS = {"cell.type": ["b cell", "t cell", "nk"]}


def make_bundle():
    return Bundle(
        model=small_model(**heads()),
        tokenizer=GeneTokenizer.from_list(GENES),
        transforms=[LogNormalize(target_sum=1000.0), TopGenes(max_genes=30)],
        labels=LABELS,
        provenance={"seed": 3},
    )


@pytest.fixture
def saved(tmp_path):
    return make_bundle().save(tmp_path / "bundle")


def test_a_loaded_bundle_gives_the_same_numbers_and_knows_everything(saved):
    loaded = Bundle.load(saved.path)
    tokens = random_tokens([5, 70]).to_torch()
    with torch.inference_mode():
        ours, theirs = saved.model(tokens), loaded.model(tokens)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert torch.equal(ours.labels["cell.type"], theirs.labels["cell.type"])
    assert loaded.tokenizer.to_dict() == saved.tokenizer.to_dict()
    assert loaded.transforms == list(saved.transforms)
    assert dict(loaded.labels) == LABELS
    assert loaded.provenance == {"seed": 3}
    assert loaded.digest == saved.digest != ""
    assert loaded.label_specs[0].classes == ("b cell", "t cell", "nk")


def test_the_kind_of_a_label_is_kept(tmp_path):
    specs = [
        LabelSpec(name="age", classes=(), kind="regression"),
        LabelSpec(
            name="cell.type", classes=("b", "t"), kind="hierarchy", nodes={"lymphocyte": (0, 1)}
        ),
    ]
    heads = tuple(LabelHeadConfig(name=x.name, num_classes=x.num_outputs) for x in specs)
    bundle = Bundle(
        model=small_model(labels=heads),
        tokenizer=GeneTokenizer.from_list(GENES),
        label_specs=specs,
    )
    bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert list(loaded.label_specs) == specs
    assert loaded.labels == {"age": [], "cell.type": ["b", "t"]}


def test_transformers_reads_the_folder_too(saved):
    loaded = AutoModel.from_pretrained(saved.path).eval()
    tokens = random_tokens([9]).to_torch()
    with torch.inference_mode():
        assert torch.equal(loaded(tokens).pooled, saved.model(tokens).pooled)


def test_every_changed_byte_is_found(saved, tmp_path):
    files = sorted(f for f in saved.path.rglob("*") if f.is_file())
    assert {f.name for f in files} >= {"config.json", "model.safetensors", "MANIFEST.json"}
    for file in files:
        raw = file.read_bytes()
        for position in range(0, len(raw), max(1, len(raw) // 40)):
            damaged = bytearray(raw)
            damaged[position] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(CorruptBundleError):
                Bundle.load(saved.path)
        file.write_bytes(raw)
    Bundle.load(saved.path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "preprocessing.json", "labels.json", "MANIFEST.json",
     "tokenizer/tokenizer.json", "provenance.json"],
)  # fmt: skip
def test_a_missing_file_is_named(saved, name):
    (saved.path / name).unlink()
    with pytest.raises(CorruptBundleError, match=name) as caught:
        Bundle.load(saved.path)
    assert caught.value.exit_code == 4
    assert "Take the bundle from its source again" in str(caught.value)


def rewrite_manifest(path, change):
    manifest = json.loads((path / "MANIFEST.json").read_text())
    change(manifest)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (path / "MANIFEST.json").write_text(text)


def test_a_newer_format_says_what_to_install(saved):
    rewrite_manifest(saved.path, lambda m: m.update(format_version=2))
    with pytest.raises(CorruptBundleError, match="Install a newer omics-models"):
        Bundle.load(saved.path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "tokenizer/../../x", "a/b"])
def test_a_manifest_cannot_point_outside_the_folder(saved, name):
    rewrite_manifest(saved.path, lambda m: m["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(CorruptBundleError, match="names the file"):
        Bundle.load(saved.path)


def test_weights_that_do_not_fit_the_configuration_are_refused(saved, tmp_path):
    other = tmp_path / "other"
    bundle = make_bundle()
    bundle.model = small_model(1, hidden_size=64, **heads())
    bundle.save(other)
    shutil.copy(other / "model.safetensors", saved.path / "model.safetensors")
    mine = json.loads((other / "MANIFEST.json").read_text())["files"]["model.safetensors"]
    rewrite_manifest(saved.path, lambda m: m["files"].update({"model.safetensors": mine}))
    with pytest.raises(CorruptBundleError, match=r"does not fit config\.json"):
        Bundle.load(saved.path)


def test_a_bundle_is_written_once_unless_replaced_as_a_whole(saved):
    digest = saved.digest
    with pytest.raises(ExistingPathError):
        make_bundle().save(saved.path)
    changed = make_bundle()
    changed.provenance = {"seed": 4}
    changed.save(saved.path, overwrite=True)
    assert Bundle.load(saved.path).digest == changed.digest != digest


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    bundle = make_bundle()
    bundle.provenance = {"bad": float("nan")}
    with pytest.raises(ValueError, match="not JSON compliant"):
        bundle.save(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_not_taken_for_a_hub_name(tmp_path):
    with pytest.raises(MissingPathError, match="no bundle folder work/bundel"):
        Bundle.load("work/bundel")


def test_hub_names_are_explicit_and_read_from_the_download(saved, monkeypatch):
    asked = []

    def fetch(repo_id):
        asked.append(repo_id)
        return str(saved.path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert Bundle.load("hf:lab/cells").digest == saved.digest
    assert asked == ["lab/cells"]


def test_a_hub_that_cannot_be_reached_is_one_paragraph(monkeypatch):
    def fail(_repo_id):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputDataError, match="hf:lab/cells could not be fetched"):
        Bundle.load("hf:lab/cells")


def test_pushing_uploads_the_verified_folder(saved, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path):
            calls.append(("upload", repo_id, folder_path))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert saved.push_to_hub("lab/cells") == "https://hub/commit"
    assert calls == [
        ("create", "lab/cells", True, True),
        ("upload", "lab/cells", str(saved.path)),
    ]
    with pytest.raises(ValueError, match="Save the bundle first"):
        make_bundle().push_to_hub("lab/cells")


def test_labels_must_agree_with_the_heads():
    with pytest.raises(ConfigError, match="do not agree"):
        Bundle(
            model=small_model(**heads()),
            tokenizer=GeneTokenizer.from_list(["g"]),
            labels={"cell.type": ["only", "two"]},
        )


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (GeneTokenizer.from_list(["g"]), "'genes' of the model has 45 ids .* of the tokenizer 6"),
        (SequenceTokenizer(), r"reads the field 'genes' and the tokenizer makes \['sequence'\]"),
        (
            GeneTokenizer.from_list(GENES, values=[ValueField.binned(5)]),
            r"'expression' of the model has 5 ids \(encoder 'mlp'\), .* 10 \(discrete\)",
        ),
    ],
)
def test_a_vocabulary_of_other_weights_is_refused(tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        Bundle(model=small_model(), tokenizer=tokenizer)
