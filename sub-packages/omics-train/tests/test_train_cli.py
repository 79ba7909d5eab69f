from __future__ import annotations

import sys

import pyarrow.parquet as pq
import pytest
from run_parts import SMALL

from omics.train.cli import main


@pytest.fixture
def run(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["omics-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code

    return call


def test_a_verb_runs_with_overrides(run, atlas, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("pretrain", *atlas.cells, f"working_dir={folder}", *SMALL) == 0
    captured = capsys.readouterr()
    assert f"Saved {folder}/bundle" in captured.out
    assert (folder / "bundle/MANIFEST.json").is_file()


def test_an_unknown_key_names_the_nearest_and_writes_nothing(run, atlas, tmp_path, capsys):
    folder = tmp_path / "run"
    code = run("pretrain", *atlas.cells, f"working_dir={folder}", "trainer.max_epoch=3")
    assert code == 2
    error = capsys.readouterr().err
    assert error == (
        "error: There is no configuration key 'trainer.max_epoch'. Did you mean 'max_epochs'?\n"
    )
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=abc"], "could not be converted to Integer (configuration key seed)"),
        (["trainr.max_epochs=3"], "no configuration key 'trainr'. Did you mean 'trainer'"),
        (["-cn", "nope"], "There is no recipe 'nope'"),
        (["model=huge"], "huge"),
        (["trainer.losses=[{nme: mse}]"], "Did you mean 'name'"),
        (
            ["label_columns=[{label_column_name: a}]", "label_columns.0.depht=2"],
            "no configuration key 'label_columns[0].depht'. Did you mean 'depth'",
        ),
        (
            ["label_columns=[{label_column_name: a}]", "label_columns.0.depth=2"],
            "label_columns[0].depth is not set yet: add +label_columns.0.depth=VALUE.",
        ),
        (["label_columns.0.depth=2"], "label_columns has no entry 0: give the list as a whole"),
    ],
)
def test_a_wrong_configuration_is_one_paragraph(run, tmp_path, capsys, arguments, message):
    assert run("pretrain", f"working_dir={tmp_path}/r", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "r").exists()


def test_a_missing_working_dir_says_how_to_give_it(run, capsys):
    assert run("predict", "input_file=x") == 2
    assert "working_dir is not set: add working_dir=FOLDER" in capsys.readouterr().err


def test_a_label_column_that_does_not_exist_ends_with_code_2(
    run, atlas, pretrained, tmp_path, capsys
):
    code = run(
        "finetune",
        *atlas.cells,
        f"checkpoint={pretrained}/bundle",
        "label_columns=[celltype]",
        f"working_dir={tmp_path}/r",
    )
    assert code == 2
    assert "no obs column 'celltype'. Did you mean 'cell_type'?" in capsys.readouterr().err


def test_a_damaged_store_ends_with_code_4(run, atlas, pretrained, tmp_path, capsys):
    import shutil

    store = tmp_path / "damaged.store"
    shutil.copytree(atlas.store, store)
    (data,) = store.glob("gen-*/counts.bin")
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    code = run(
        "predict",
        f"input_file={store}",
        f"checkpoint={pretrained}/bundle",
        f"working_dir={tmp_path}/r",
    )
    assert code == 4
    assert "counts.bin" in capsys.readouterr().err
    assert not (tmp_path / "r/embeddings.parquet").exists()


def test_a_bundle_with_a_missing_file_ends_with_code_4(run, atlas, pretrained, tmp_path, capsys):
    import shutil

    shutil.copytree(pretrained / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle/labels.json").unlink()
    code = run(
        "predict", *atlas.cells, f"checkpoint={tmp_path}/bundle", f"working_dir={tmp_path}/r"
    )
    assert code == 4
    assert "labels.json is missing from the bundle" in capsys.readouterr().err


def test_multirun_gives_each_job_a_folder_wherever_the_flag_stands(
    run, atlas, pretrained, tmp_path
):
    code = run(
        "predict",
        *atlas.cells,
        f"checkpoint={pretrained}/bundle",
        f"working_dir={tmp_path}/r",
        "data_module.predict_split=test,validation",
        "-m",
    )
    assert code == 0
    sizes = [len(pq.read_table(tmp_path / f"r/{i}/embeddings.parquet")) for i in (0, 1)]
    assert sizes == [40, 20]


def test_the_composed_configuration_is_printed_without_running(run, capsys, tmp_path):
    assert run("pretrain", "--cfg", "job", f"working_dir={tmp_path}/r", "model=small") == 0
    text = capsys.readouterr().out
    assert "hidden_size: 256" in text
    assert not (tmp_path / "r").exists()


def test_your_own_configuration_folder(run, atlas, pretrained, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [predict, _self_]\ndata_module: {predict_split: test}\n"
    )
    code = run(
        "predict",
        "-cd",
        tmp_path,
        "-cn",
        "mine",
        *atlas.cells,
        f"checkpoint={pretrained}/bundle",
        f"working_dir={tmp_path}/r",
    )
    assert code == 0
    assert len(pq.read_table(tmp_path / "r/embeddings.parquet")) == 40


def test_help_lists_the_verbs_and_each_verb_has_its_own(run, capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for verb in ("pretrain", "finetune", "test", "predict", "interpret"):
        assert verb in text
    assert run("finetune", "--help") == 0
    assert "label_columns" in capsys.readouterr().out


def test_interpret_names_genes_and_checks(run, atlas, finetuned, tmp_path, capsys):
    code = run(
        "interpret",
        *atlas.cells,
        f"checkpoint={finetuned}/bundle",
        f"working_dir={tmp_path}/r",
        "attribution.steps=2",
        "attribution.max_cells=8",
    )
    assert code == 0
    said = capsys.readouterr().out
    assert "8 cells explained" in said
    assert "drop_difference: " in said
    assert f"Wrote scores of 8 cells to {tmp_path}/r" in said
    code = run("interpret", *atlas.cells, f"working_dir={tmp_path}/s", "attribution.step=2")
    assert code == 2
    assert (
        "no configuration key 'attribution.step'. Did you mean 'steps'" in capsys.readouterr().err
    )


def test_an_interrupt_ends_with_code_130_and_leaves_no_bundle(run, atlas, tmp_path, monkeypatch):
    import signal

    from omics.train.lightning_module import RunReporter

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunReporter, "on_train_batch_end", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert run("pretrain", *atlas.cells, f"working_dir={tmp_path}/r", *SMALL) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "r/bundle").exists()
