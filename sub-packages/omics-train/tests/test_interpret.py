"""What `omics-train interpret` writes: the tables of `omics.eval.attribute`, from a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from run_parts import compose

from omics.data.errors import ConfigError, ExistingPathError, UnknownNameError, UsageError
from omics.data.splits import load_split
from omics.eval import attribute
from omics.eval.results import read_results
from omics.train.runs import run_tasks

QUICK = ["attribution.steps=4", "attribution.num_top=5", "attribution.max_cells=20"]
FILES = {"attributions.parquet", "top_genes.parquet", "checks.parquet", "top_genes.svg"}


def interpreted(atlas, bundle, folder, *overrides):
    """Run interpret and return its folder."""
    settings = [*atlas.cells, f"checkpoint={bundle}", f"working_dir={folder}", *QUICK]
    run_tasks(compose("interpret", [*settings, *overrides]), folder)
    return folder


def test_its_tables_are_those_of_attribute_bit_for_bit(atlas, finetuned, tmp_path, capsys):
    bundle = finetuned / "bundle"
    folder = interpreted(
        atlas, bundle, tmp_path / "r", "data_module.predict_split=test", "seed=3",
        "attribution.targets=every", "attribution.classes=[type0,type2]",
        "data_module.batch_tokens=300",
    )  # fmt: skip
    expected = attribute(
        atlas.store, bundle, rows=load_split(atlas.split).rows("test"), seed=3, device="cpu",
        steps=4, num_top=5, max_cells=20, targets="every", classes=["type0", "type2"],
        batch_tokens=300,
    )  # fmt: skip
    assert {path.name for path in folder.iterdir()} == FILES
    scores = pd.read_parquet(folder / "attributions.parquet")
    assert len(scores)
    for column in scores.columns:
        assert np.array_equal(scores[column].to_numpy(), expected.scores[column].to_numpy()), column
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "top_genes.parquet"), expected.top_genes)
    assert str(read_results(folder / "checks.parquet")) == str(expected.checks)
    said = capsys.readouterr().out
    for line in expected.lines():
        assert line in said


def test_a_list_of_tasks_explains_the_bundle_it_trained(atlas, pretrained, tmp_path):
    overrides = [
        *(*atlas.cells, *QUICK, f"working_dir={tmp_path}/r", f"checkpoint={pretrained}/bundle"),
        *("label_columns=[cell_type]", "trainer.max_epochs=1", "attribution.checks=false"),
        *("task=[train,test,predict,interpret]", "data_module.predict_split=test"),
    ]
    run_tasks(compose("finetune", overrides), tmp_path / "r")
    names = {file.name for file in (tmp_path / "r").iterdir()}
    assert {"bundle", "results.parquet", "predictions.parquet", "attributions.parquet"} <= names
    assert "checks.parquet" not in names


def test_an_earlier_attribution_is_kept_unless_overwrite_is_set(atlas, finetuned, tmp_path):
    bundle = finetuned / "bundle"
    quick = ["attribution.method=rollout", "attribution.format=csv", "attribution.max_cells=4"]
    interpreted(atlas, bundle, tmp_path, *quick)
    before = (tmp_path / "attributions.csv").read_bytes()
    with pytest.raises(ExistingPathError, match=r"attributions.csv exists already.*overwrite"):
        interpreted(atlas, bundle, tmp_path, *quick)
    interpreted(atlas, bundle, tmp_path, *quick, "overwrite=true")
    assert (tmp_path / "attributions.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["attribution.method=ig"], ConfigError, "method is 'ig'. Known: 'integrated_gradients'"),
        (["attribution.label=celltype"], UnknownNameError, "Did you mean 'cell_type'"),
        (["attribution.steps=0"], UsageError, "steps is 0"),
        (["attribution.format=xlsx"], ConfigError, "The format is 'xlsx'"),
        (["trainer.precision=bf16-mixed"], ConfigError, "interpret computes in 32-true"),
        (["data_module.batch_size=4"], ConfigError, "has data_module.batch_tokens"),
        (["checkpoint=null"], ConfigError, "add checkpoint=BUNDLE"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    atlas, finetuned, tmp_path, overrides, error, message
):
    with pytest.raises(error) as caught:
        interpreted(atlas, finetuned / "bundle", tmp_path / "r", *overrides)
    assert message in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_bundle_without_label_heads_is_refused(atlas, pretrained, tmp_path):
    with pytest.raises(ConfigError, match="no label heads, so there is no answer to explain"):
        interpreted(atlas, pretrained / "bundle", tmp_path / "r")


def test_the_section_is_refused_where_nothing_reads_it(atlas, finetuned, tmp_path):
    overrides = [*atlas.cells, f"checkpoint={finetuned}/bundle", "attribution.steps=4"]
    with pytest.raises(ConfigError, match=r"attribution is read by the task interpret"):
        run_tasks(compose("predict", [*overrides, f"working_dir={tmp_path}"]), tmp_path)
    assert not list(tmp_path.iterdir())
