"""Old configurations, one for each section of the references: every key has a fate, and they run."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import yaml

from omics.data.converting.conversion import convert
from omics.data.errors import ConfigError, MissingPathError
from omics.data.splits import make_split
from omics.data.synthetic import synthesize
from omics.train.hydra_entry import run_with_hydra
from omics.train.migrating.bmfm_values import CONVERTERS
from omics.train.migrating.composed_file import read_composed
from omics.train.migrating.migration import migrate, rules_of
from omics.train.run_config import RunConfig
from omics.train.runs import run_tasks

OLD = Path(__file__).parent / "old"
FILES = {
    path.relative_to(OLD).as_posix(): path
    for path in [*OLD.glob("*.yaml"), *OLD.glob("*.json"), OLD / "run" / "finetune.yaml"]
}
# Every key that the references' own pages show, besides what is in the tables.
SHOWN = re.findall(
    r"\w+",
    """
seed_value field_name pretrained_embedding is_masked is_input vocab_update_strategy
collation_strategy batch_size max_length pad_to_multiple_of change_ratio mask_ratio switch_ratio
limit_dataset_samples shuffle sequence_order mlm data_dir transform_datasets
source_h5ad_file_name processed_data_source stratifying_label label_columns label_dict_path
data_info_path filter_query convert_rdata_to_h5ad num_workers num_hidden_layers num_attention_heads
intermediate_size hidden_act hidden_size hidden_dropout_prob attention_probs_dropout_prob
initializer_range layer_norm_eps pad_token_id use_cache classifier_dropout attention checkpoint
warmup_steps weight_decay label_column_name name weight ignore_zero link_function
default_root_dir max_epochs max_steps precision val_check_interval accelerator
accumulate_grad_batches tf32_mode num_bootstrap_runs ci_method
dataset_name filter_gene_cutoff filter_cell_cutoff normalization log_transform hvg_num bin_size
bin_cutoff nonzero_ratio train_batch_size num_epochs model_hidden_size model_hidden_layers
model_attention_heads lr scheduler num_warmup_steps
""",
)


def paths_of(value, path=""):
    """Yield the path of every value that is no mapping and no list of mappings."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths_of(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for position, each in enumerate(value):
            yield from paths_of(each, f"{path}[{position}]")
    else:
        yield path


def has_key(schema, path):
    """Say whether the typed configuration has a dotted key; `[]` and entries of Any pass."""
    hints = typing.get_type_hints(schema)
    first, _, rest = path.replace("[]", "").partition(".")
    if first not in hints:
        return False
    kinds = (hints[first], *typing.get_args(hints[first]))
    sections = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if not rest or typing.Any in kinds:
        return True
    return any(has_key(section, rest) for section in sections)


@pytest.fixture
def old_file(tmp_path):
    """Write an old configuration and return its path."""

    def write(text, name="old.yaml"):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return path

    return write


def entry_of(migration, path):
    return next(entry for entry in migration.entries if entry.old == path)


# Every key has a fate


@pytest.mark.parametrize("name", FILES)
def test_every_value_of_the_old_file_is_carried_over_or_dropped_with_a_reason(name):
    content = read_composed(FILES[name])
    if isinstance(content.get("task"), dict):
        content["task"] = [content["task"]]
    result = migrate(FILES[name])
    told = {entry.old for entry in result.entries}
    for path in paths_of(content):
        above = {path[: found.start()] for found in re.finditer(r"[.\[]", path)} | {path}
        assert told & above, path
    for entry in result.entries:
        assert entry.kind in {"mapped", "changed", "dropped"}
        assert (entry.new == "") == (entry.kind == "dropped"), entry
        assert (entry.why == "") == (entry.kind == "mapped"), entry


@pytest.mark.parametrize("name", FILES)
def test_what_is_carried_over_is_there(name):
    result = migrate(FILES[name])
    for entry in result.entries:
        if entry.kind == "dropped":
            continue
        place = result.config
        for part in re.findall(r"[^.\[\]]+", entry.new):
            if isinstance(place, list) and part == "label_column_name":
                place = place[0]
            elif isinstance(place, list):
                place = place[int(part)] if part.isdigit() else [item[part] for item in place]
            elif isinstance(place, str):
                break  # a label column without more than its name
            else:
                assert part in place, entry
                place = place[part]


def test_the_files_hold_every_key_that_the_references_show():
    text = "\n".join(path.read_text() for path in OLD.rglob("*") if path.is_file())
    words = set(re.findall(r"\w+", text))
    assert set(SHOWN) <= words
    last = {rule.rsplit(".", 1)[-1].replace("[]", "") for kind in ("bmfm", "bioformers")
            for section in rules_of(kind).values() for rule in section}  # fmt: skip
    assert set(SHOWN) <= last


@pytest.mark.parametrize("kind", ["bmfm", "bioformers"])
def test_the_table_names_keys_that_a_run_has(kind):
    for section in rules_of(kind).values():
        for rule in section.values():
            assert rule.kind != "dropped" or rule.why
            if rule.new:
                assert has_key(RunConfig, rule.new), rule


def test_every_converter_is_used():
    used = {rule.convert for section in rules_of("bmfm").values() for rule in section.values()}
    assert set(CONVERTERS.values()) <= used


# They run


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A store, its split, and the variables that the old files name."""
    folder = tmp_path_factory.mktemp("cells")
    adata = synthesize(90, 60, num_types=3, seed=3)
    genes = np.resize(["control", *adata.var_names[:3]], adata.n_obs)
    adata.obs["perturbation"] = genes
    adata.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    make_split(store, stratify="cell_type", seed=0).save(folder / "split.parquet")
    return folder


OVERRIDES = [
    "overwrite=true",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.tf32_mode=null",
    "trainer.max_steps=1",
    "trainer.max_epochs=1",
    "trainer.val_check_interval=1.0",
    "trainer.curriculum=[]",
]


@pytest.mark.parametrize("name", FILES)
def test_each_result_composes_and_takes_a_step(name, cells, finetuned, tmp_path, monkeypatch):
    result = migrate(FILES[name])
    for variable in set(re.findall(r"oc\.env:(\w+)", result.to_yaml(name))):
        monkeypatch.setenv(variable, str(cells))
    (tmp_path / "migrated.yaml").write_text(result.to_yaml(name))
    overrides = [
        *OVERRIDES,
        f"data_module.path={cells}/cells.store",
        f"data_module.split={cells}/split.parquet",
        f"working_dir={tmp_path}/run",
    ]
    if "checkpoint" in result.config:
        overrides.append(f"checkpoint={finetuned}/bundle")
    arguments = ["-cd", str(tmp_path), "-cn", "migrated", *overrides]
    monkeypatch.setattr(sys, "argv", ["omics-train"])
    run_with_hydra(result.verb, arguments, run_tasks)
    tasks = result.config["task"]
    assert ("train" in tasks) == (tmp_path / "run" / "bundle").exists()
    assert ("train" in tasks) == (tmp_path / "run" / "history.csv").exists()
    assert ("test" in tasks) == (tmp_path / "run" / "results.parquet").exists()
    assert ("predict" in tasks) == (tmp_path / "run" / "embeddings.parquet").exists()


@pytest.mark.parametrize("name", FILES)
def test_an_interpolation_of_the_environment_is_never_resolved(name, monkeypatch):
    monkeypatch.setenv("MY_CELLS", "/secret/cells")
    text = migrate(FILES[name]).to_yaml(name)
    assert "/secret" not in text
    if "${oc.env:MY_CELLS}" in FILES[name].read_text():
        assert "${oc.env:MY_CELLS}" in text
    assert not re.findall(r"\$\{(?!oc\.env:)", text)


# What the sections say


def test_a_packaged_data_module_is_a_row_of_the_datasets():
    result = migrate(FILES["zheng68k_finetune.yaml"])
    config = result.config
    assert config["seed"] == 4321
    assert config["data_module"]["dataset"] == "zheng68k"
    assert config["data_module"]["path"] == (
        "${oc.env:BMFM_TARGETS_ZHENG68K_DATA}/h5ad/zheng68k.h5ad"
    )
    assert config["data_module"]["order"] == "class_balanced:cell_type"
    assert config["working_dir"] == "${oc.env:BMFM_TARGETS_TRAINING_DIR}/fine-tuning"
    assert config["label_columns"] == [
        {"label_column_name": "cell_type", "depth": 2},
        {"label_column_name": "donor", "gradient_reversal": 0.5},
    ]
    assert config["fields"][1] == {"field_name": "expression", "encoder": "embedding"}
    assert config["tokenizer"]["num_bins"] == 10
    assert config["trainer"]["schedule"] == "linear"
    assert config["trainer"]["weight_decay"] == 0.0
    assert config["trainer"]["accelerator"] == "cuda"
    assert config["trainer"]["losses"][0] == {
        "label_column_name": "cell_type",
        "name": "focal",
        "gamma": 3,
        "weight": 1,
        "metrics": ["accuracy", "f1"],
    }
    assert config["trainer"]["losses"][1]["name"] == "cross_entropy"
    assert result.verb == "finetune"
    assert result.steps[0][0] == (
        'omics-data convert "$BMFM_TARGETS_ZHENG68K_DATA/h5ad/zheng68k.h5ad" '
        "zheng68k_finetune.store"
    )
    assert result.steps[1][0].endswith("--stratify cell_type --fractions 0.8,0.1,0.1 --seed 42")
    masked = entry_of(result, "fields[1].is_masked")
    assert masked.why == "not hidden: data_module.mlm is not true"


def test_masked_values_take_their_ratios_along():
    config = migrate(FILES["generic_h5ad.yaml"]).config
    data = config["data_module"]
    assert (data["change_ratio"], data["mask_ratio"], data["switch_ratio"]) == (0.3, 0.9, 0.0)
    assert data["transforms"] == [
        {"name": "log_normalize", "target_sum": 10_000, "added_total": 1},
        {"name": "expression_order"},
        {"name": "first_genes", "max_genes": 38},
    ]
    assert data["path"] == "${oc.env:MY_CELLS}"
    assert config["label_columns"] == ["cell_type"]
    assert [field.get("is_masked") for field in config["fields"]] == [True, True]
    assert config["model"]["attention"] == "favor"
    assert config["trainer"]["losses"][1] == {
        "field_name": "expression",
        "name": "mse",
        "weight": 2.0,
        "ignore_zero": True,
        "link_function": "exp",
    }


def test_a_mask_without_a_loss_is_not_hidden_and_says_so():
    result = migrate(FILES["panglao_pretrain.yaml"])
    assert "is_masked" not in result.config["fields"][0]
    assert entry_of(result, "fields[0].is_masked").why == "not hidden: no loss predicts it"
    assert result.config["data_module"]["path"].endswith("/rdata")


def test_whole_cell_decoding_zeros_and_stages():
    config = migrate(FILES["wced_pretrain.yaml"]).config
    assert [loss["wced_target"] for loss in config["trainer"]["losses"]] == [
        *["all_genes"] * 2, *["input_genes"] * 2, *["non_input_genes"] * 2,
    ]  # fmt: skip
    assert config["data_module"]["augmentations"] == [
        {"name": "batch_zeros", "expressed_share": 0.9, "untouched_share": 0.2},
        {"name": "dropout", "drop_share": 0.2},
    ]
    assert config["trainer"]["curriculum"] == [{"max_epochs": 1, "batch_size": 8, "max_length": 16}]
    assert config["model"]["window"] == 4
    assert config["model"]["positions"] == "rope"


def test_read_depth_and_adaptive_masking():
    config = migrate(FILES["rda_mlm.yaml"]).config
    assert config["data_module"]["transforms"][0] == {
        "name": "read_depth_downsample",
        "mode": "equal",
    }
    assert config["data_module"]["augmentations"] == [
        {"name": "read_depth_downsample", "mode": "downsample"}
    ]
    assert config["tokenizer"]["depth_tokens"] is True
    assert config["data_module"]["adaptive_masking"] == {
        "enabled": True,
        "temperature": 0.5,
        "num_bins": 20,
    }
    assert config["model"]["norm_kind"] == "rms"
    assert config["model"]["intermediate_size"] == 256
    # The target of the denoising is no input.
    assert [field["field_name"] for field in config["fields"]] == ["genes", "expression"]


def test_a_checkpoint_becomes_a_bundle_that_brings_its_own_sizes():
    result = migrate(FILES["run/finetune.yaml"])
    config = result.config
    assert config["checkpoint"] == "bundles/a.published.model"
    assert result.steps[0][0] == (
        "omics-models convert hf:an-institute/a.published.model bundles/a.published.model"
    )
    assert {"model", "tokenizer", "fields"} & set(config) == set()
    assert "transforms" not in config["data_module"]
    assert config["task"] == ["train", "test"]
    assert config["input_file"] == "${oc.env:MY_CELLS}"
    assert "path" not in config["data_module"]
    assert config["label_columns"] == ["cell_type"]
    assert entry_of(result, "model.num_hidden_layers").why.startswith("it comes with the bundle")
    assert entry_of(result, "max_epochs").why.endswith("its value was put where it was used")
    assert result.steps[2][0].endswith("--column part")


def test_test_and_predict_need_what_is_read_and_no_more():
    result = migrate(FILES["test_and_predict.yaml"])
    assert set(result.config["data_module"]) == {"path", "split", "batch_size"}
    assert result.config["trainer"] == {"accelerator": "cuda", "precision": "16-mixed"}
    assert result.config["embedding"] == {"pooling": "token:0+mean_after_first"}
    assert result.config["scoring"] == {"ci_method": "wilson"}
    changed = entry_of(result, "task[0].ci_method")
    assert (changed.kind, changed.why[:24]) == ("changed", "the normal approximation")
    assert result.verb == "test"


def test_perturbed_cells_are_paired_with_controls():
    config = migrate(FILES["perturbation.yaml"]).config
    assert config["data_module"]["pairing"]["column"] == "perturbation"
    assert config["tokenizer"]["perturbation"] is True
    assert config["data_module"]["dataset"] == "adamson"
    assert [loss["field_name"] for loss in config["trainer"]["losses"]] == [
        "label_expression",
        "label_expression",
    ]


def test_bioformers_settings():
    result = migrate(FILES["settings.json"])
    config = result.config
    assert result.kind == "bioformers"
    assert config["data_module"]["dataset"] == "pbmc_4k_8k"
    assert config["data_module"]["transforms"] == [
        {"name": "all_genes"},
        {"name": "bin_log", "num_bins": 64, "bin_size": 0.3333333, "cutoff": 8},
    ]
    assert config["data_module"]["change_ratio"] == 0.1
    assert config["data_module"]["nonzero_ratio"] == 0.5
    assert config["model"]["intermediate_size"] == 48
    assert (config["trainer"]["schedule"], config["trainer"]["warmup_steps"]) == ("cosine", 2)
    assert result.steps[0][0] == (
        "omics-data prepare dataset:pbmc_4k_8k settings.prepared --fractions 0.8,0.1,0.1 "
        "--min-gene-counts 10 --min-counts 100 --hvg 2000"
    )
    assert config["data_module"]["path"] == "settings.prepared/cells.store"


def test_bioformers_on_adamson_has_linear_bins_of_the_values_as_they_are(old_file):
    import json

    settings = json.loads(FILES["settings.json"].read_text())
    settings |= {"dataset_name": "adamson", "log_transform": False, "filter_cell_cutoff": 0}
    result = migrate(old_file(json.dumps(settings), "settings.json"))
    assert result.config["data_module"]["transforms"][1]["name"] == "bin_linear"
    assert result.steps[0][0] == (
        "omics-data prepare dataset:adamson_gears settings.prepared --fractions 0.8,0.1,0.1 "
        "--counts X --allow-non-counts --min-gene-counts 10"
    )
    assert entry_of(result, "hvg_num").why.startswith("variable genes are found on counts")
    settings["dataset_name"] = "other"
    with pytest.raises(ConfigError, match="dataset_name 'other'; it is PBMC or adamson"):
        migrate(old_file(json.dumps(settings), "settings.json"))


def test_a_label_reads_a_class_token_of_its_own_only_where_there_is_one(old_file):
    text = """
label_columns: [{label_column_name: a, decode_from: 1}, {label_column_name: b, decode_from: 0}]
task: {_target_: bmfm_targets.config.TrainingTaskConfig}
"""
    new = migrate(old_file(text))
    assert new.config["label_columns"] == ["a", {"label_column_name": "b", "token": 0}]
    assert entry_of(new, "label_columns[0].decode_from").why.startswith("a new model has one")
    tuned = migrate(old_file(f"{text}checkpoint: several/tokens.ckpt"))
    assert tuned.config["label_columns"][0] == {"label_column_name": "a", "token": 1}


def test_values_that_mean_nothing_here_are_dropped_for_their_own_reason(old_file):
    result = migrate(
        old_file(
            """
data_module: {batch_size: 4, sequence_order: chromosomal_uce, sequence_dropout_factor: 5}
model: {_target_: bmfm_targets.config.SCBertConfig, hidden_act: mish, position_embedding_type: absolute, max_position_embeddings: 64}
trainer: {lr_decay_steps: 100, pooling_method: attention_pooling, losses: [{label_column_name: age, name: mse, ignore_zero: true, metrics: [{name: pcc}, {name: f1}]}]}
label_columns: [{label_column_name: age, is_regression_label: true}, {label_column_name: unused}]
task: {_target_: bmfm_targets.config.TrainingTaskConfig, accelerator: tpu, ci_method: jackknife}
"""
        )
    )
    whys = {entry.old: entry.why for entry in result.entries}
    assert "'chromosomal_uce' needs the places of genes" in whys["data_module.sequence_order"]
    assert whys["model.hidden_act"].startswith("'mish' is not known here; known are gelu")
    assert whys["trainer.pooling_method"].startswith("'attention_pooling' is not known here")
    assert whys["task[0].accelerator"].startswith("'tpu' is not known here")
    assert whys["task[0].ci_method"].startswith("'jackknife' is not known here")
    assert whys["trainer.losses[0].ignore_zero"] == "mse has no such option"
    assert whys["trainer.losses[0].metrics"] == "without f1, which it does not have"
    assert whys["label_columns[1].label_column_name"] == "no loss predicts it"
    assert whys["trainer.lr_decay_steps"].startswith("the rate falls in a straight line over all")
    assert result.config["model"]["positions"] == "learned"
    assert result.config["model"]["max_positions"] == 64
    assert result.config["label_columns"] == [{"label_column_name": "age", "kind": "regression"}]
    assert result.config["data_module"]["augmentations"] == [
        {"name": "chunk_dropout", "min_genes": 5, "max_genes": 5}
    ]


def test_adapters_and_frozen_layers(old_file):
    result = migrate(
        old_file(
            r"""
trainer: {lora_config: {_target_: bmfm_targets.config.LoraConfigWrapper, r: 8, lora_dropout: 0.1, target_modules: [query, key, dense], bias: none}}
task: {_target_: bmfm_targets.config.TrainingTaskConfig, freeze_layers: '\.encoder\.|\.pooler\.'}
"""
        )
    )
    assert result.config["trainer"]["lora"] == {
        "r": 8,
        "alpha": 32,
        "dropout": 0.1,
        "use_dora": True,
        "target_modules": ["qkv", "out", "up", "down"],
    }
    assert result.config["trainer"]["freeze"] == [r"encoder\.", r"pooler\."]
    assert entry_of(result, "trainer.lora_config.bias").kind == "dropped"


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("trainer: {lora_config: odd}", "trainer.lora_config", "'odd' is not known here; known are"),
        ("trainer: {lora_config: {target_modules: [odd]}}", "trainer.lora_config.target_modules", "['odd'] is not known here"),
        ("task: {freeze_layers: odd}", "task[0].freeze_layers", "'odd' names parameters of bmfm"),
        ("task: {num_bootstrap_runs: 10}", "task[0].num_bootstrap_runs", "10 are too few for quantiles"),
        ("task: {num_bootstrap_runs: 0}", "task[0].num_bootstrap_runs", "0: the method alone says"),
    ],
)  # fmt: skip
def test_settings_of_a_task_that_cannot_be_carried_over(text, key, why, old_file):
    assert entry_of(migrate(old_file(text)), key).why.startswith(why)


def test_adapters_by_the_name_of_a_model(old_file):
    config = migrate(old_file("trainer: {lora_config: llama}\ntask: {freeze_layers: true}")).config
    assert config["trainer"]["lora"] == {"r": 16, "alpha": 32, "dropout": 0.05, "use_dora": True}
    assert config["trainer"]["freeze"] == [r"encoder\."]


def test_value_encoders_and_vectors_of_genes(old_file):
    result = migrate(
        old_file(
            """
fields:
  - {field_name: genes, pretrained_embedding: {filename: gene2vec.txt, embedding_indices_to_freeze: [1]}}
  - field_name: expressions
    tokenization_strategy: continuous_value_encoder
    encoder_kwargs: {kind: scale_adapt, n_sin_basis: 12, basis_scale: 0.1, trainable: false, zero_as_special_token: false, shift: 0}
trainer: {losses: [{field_name: expressions, name: mse, wced_target: all_genes}]}
"""
        )
    )
    assert result.config["fields"] == [
        {
            "field_name": "genes",
            "encoder": "embedding",
            "vectors": "gene2vec.txt",
            "freeze_vectors": True,
        },
        {
            "field_name": "expression",
            "encoder": "sinusoid",
            "zero_row": False,
            "num_frequencies": 12,
            "frequency_scale": 0.1,
            "learned_frequencies": False,
        },
    ]


# What is refused


def test_a_task_of_attribution_becomes_interpret(old_file):
    text = """
data_module: {_target_: bmfm_targets.datasets.zheng68k.Zheng68kDataModule}
task:
- {_target_: bmfm_targets.config.InterpretTaskConfig, checkpoint: model.ckpt, attribute_kwargs: {n_steps: 9}}
"""
    result = migrate(old_file(text))
    assert result.config["task"] == ["interpret"]
    fate = entry_of(result, "task[0].attribute_kwargs")
    assert (fate.kind, fate.why) == (
        "dropped",
        "the section `attribution` says which classes are explained, and how",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_module: {batchsize: 4}", r"'data_module.batchsize'. Did you mean 'data_module.batch_s"),
        ("fields: [{field_name: genes, is_maskd: true}]", r"'fields\[\].is_maskd'. Did you mean"),
        ("tokenisers: {a: 1}\nseed: 1", r"keys that bmfm does not have.*'tokenisers.a'"),
        ("- 1", "neither a bmfm configuration"),
        ("a: 1", "neither a bmfm configuration"),
        ("seed: 1\ntrainer: {learning_rate: fast}", "Value 'fast'.* for trainer.learning_rate, from trainer.learning_rate"),
        ("data_module: {batch_size: '${num_cores_auto:}'}", r"only \$\{oc.env:NAME\} is known here"),
        ("seed: 1\nworking_dir: '${nowhere}/x'", r"refers to \$\{nowhere\}, which it does not hold"),
        ("seed: 1\na: '${b}'\nb: '${a}'", "refer to each other in a circle"),
        ("fields: [{field_name: dna_chunks}]\ntrainer: {losses: []}", "is about sequences"),
        ("data_module: {_target_: bmfm_targets.datasets.dnaseq.DNASeqChromatinProfileDataModule}", "Sequences are read by omics-dna"),
        ("task: {_target_: bmfm_targets.config.ExportTaskConfig}", "holds no task that is known"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_says_so(text, message, old_file):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        migrate(old_file(text))


def test_references_that_grow_without_bound_are_refused(old_file):
    lines = [
        "seed: 1",
        *(f"a{i}: '${{a{i + 1}}}${{a{i + 1}}}'" for i in range(25)),
        "a25: xxxxxxxx",
    ]
    with pytest.raises(ConfigError, match="grows too large when its references are replaced"):
        migrate(old_file("\n".join(lines)))
    lines = ["seed: 1", *(f"b{i}: ['${{b{i + 1}}}', '${{b{i + 1}}}']" for i in range(25)), "b25: 1"]
    with pytest.raises(ConfigError, match="grows too large"):
        migrate(old_file("\n".join(lines)))


def test_no_class_is_imported(old_file, tmp_path, monkeypatch):
    package = tmp_path / "bmfm_targets"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = migrate(
        old_file(
            """
data_module: {_target_: bmfm_targets.evil.Zheng68kDataModul}
model: {_target_: os.system}
task: [{_target_: bmfm_targets.config.TrainingTaskConfig}, {_target_: subprocess.Popen}]
"""
        )
    )
    whys = {entry.old: entry.why for entry in result.entries}
    assert "nothing is imported. Did you mean 'Zheng68kDataModule'?" in whys["data_module._target_"]
    assert "'os.system' is no model that is known here" in whys["model._target_"]
    assert "'subprocess.Popen' is no task" in whys["task[1]._target_"]
    assert "bmfm_targets" not in sys.modules
    assert result.config["task"] == ["train"]


def test_streams_ask_for_a_store(old_file):
    result = migrate(
        old_file(
            """
data_module: {_target_: bmfm_targets.datasets.cellxgene.CellXGeneNexusDataModule, dataset_kwargs: {uri: /soma, index_dir: /index}}
"""
        )
    )
    assert "make a store of it" in entry_of(result, "data_module._target_").why
    assert "path" not in result.config["data_module"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingPathError, match="There is no configuration file"):
        migrate(tmp_path / "none.yaml")


# Values have an effect

ALTERNATIVES = {
    "seed.seed_value": 5,
    "data_module.batch_size": 7,
    "data_module.max_length": 30,
    "data_module.sequence_order": "random",
    "data_module.change_ratio": 0.4,
    "data_module.mask_ratio": 0.8,
    "data_module.switch_ratio": 0.1,
    "data_module.mlm": False,
    "data_module.log_normalize_transform": False,
    "data_module.rda_transform": 5000,
    "data_module.shuffle": True,
    "data_module.balancing_label_column": "cell_type",
    "data_module.sequence_dropout_factor": 0.3,
    "data_module.comask_across_fields": True,
    "data_module.transform_kwargs.source_h5ad_file_name": "/other.h5ad",
    "data_module.transform_kwargs.stratifying_label": "donor",
    "data_module.transform_kwargs.split_weights": {"train": 0.5, "dev": 0.3, "test": 0.2},
    "data_module.transform_kwargs.random_state": 1,
    "data_module.transform_kwargs.group_column_name": "donor",
    "data_module.dataset_kwargs.split_column_name": "part",
    "model._target_": "bmfm_targets.config.SCBertConfig",
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.hidden_act": "relu",
    "model.hidden_dropout_prob": 0.3,
    "model.initializer_range": 0.1,
    "model.layer_norm_eps": 1e-6,
    "model.num_random_features": 16,
    "model.checkpoint": "a/b.ckpt",
    "trainer.learning_rate": 1e-3,
    "trainer.warmup_steps": 9,
    "trainer.lr_decay_steps": -1,
    "trainer.weight_decay": 0.2,
    "trainer.betas": [0.8, 0.9],
    "trainer.epsilon": 1e-6,
    "trainer.pooling_method": "mean_pooling",
    "task.max_epochs": 8,
    "task.max_steps": 50,
    "task.precision": "bf16-mixed",
    "task.val_check_interval": 0.25,
    "task.accelerator": "gpu",
    "task.accumulate_grad_batches": 3,
    "task.gradient_clip_val": 0.7,
    "task.tf32_mode": "high",
    "task.default_root_dir": "elsewhere",
    "tokenizer.prepend_tokens": [],
}


@pytest.mark.parametrize("key", ALTERNATIVES)
def test_a_key_that_is_carried_over_has_an_effect(key, old_file):
    before = yaml.safe_load(FILES["generic_h5ad.yaml"].read_text())
    after = yaml.safe_load(FILES["generic_h5ad.yaml"].read_text())
    place, *parts = after, *key.split(".")
    for part in parts[:-1]:
        place = place.setdefault(part, {})
    place[parts[-1]] = ALTERNATIVES[key]
    results = [migrate(old_file(content, "old.yaml")) for content in (before, after)]
    first, second = ((result.config, result.steps) for result in results)
    assert first != second
