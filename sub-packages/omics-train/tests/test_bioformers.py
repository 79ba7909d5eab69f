"""Bioformers from end to end: prepare, train and evaluate, each one command, on tiny data."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from run_parts import compose
from training_parts import LABEL

from omics.data import load_split, open_store
from omics.data.command_line import Verbosity
from omics.data.errors import ConfigError, InputDataError
from omics.data.export import write_h5ad
from omics.data.synthetic import synthesize
from omics.data.transforms import AllGenes, LogBins
from omics.eval.results import read_results
from omics.models import Bundle, ConversionOptions, ModelConfig, OmicsModel, convert_checkpoint
from omics.models.model_config import FieldHeadConfig, FieldInput
from omics.tokenizers import GeneBinTokenizer, LabelSpec
from omics.train import hidden_field_scoring
from omics.train.hidden_field_scoring import MODEL, ZERO, HiddenField, hidden_fields
from omics.train.mask_settings import mask_plan
from omics.train.runs import run_tasks
from omics.train.train_run import prepare_training

SMALL = [
    "model=tiny",
    "model.hidden_size=16",
    "model.num_heads=1",
    "model.dropout=0",
    "data_module.batch_size=16",
    "trainer.warmup_steps=5",
    "trainer.max_epochs=4",
    "trainer.learning_rate=0.01",
]
COMMONEST = "commonest bin of the gene"


@pytest.fixture(scope="module")
def command():
    """Run a console command; return its exit code."""

    def call(main, *arguments):
        before = sys.argv
        sys.argv = [str(each) for each in arguments]
        Verbosity.quiet = Verbosity.traceback = False
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            sys.argv = before
        return 0

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory, command):
    """Return a folder with cells that were prepared, trained on and tested by one command each."""
    from omics.data import cli as data_cli
    from omics.train import cli

    folder = tmp_path_factory.mktemp("bioformers")
    adata = synthesize(200, 90, num_types=3, seed=5)
    adata.X.data *= np.random.default_rng(0).integers(1, 12, adata.X.nnz)
    write_h5ad(adata, folder / "cells.h5ad")
    prepared = folder / "prepared"
    assert command(
        data_cli.main, "omics-data", "prepare", folder / "cells.h5ad", prepared,
        "--min-gene-counts", 10, "--min-counts", 100, "--hvg", 40, "--fractions", "0.7,0.1,0.2",
    ) == 0  # fmt: skip
    cells = [
        f"input_file={prepared}/cells.store",
        f"data_module.split={prepared}/split.parquet",
    ]
    train = ["omics-train", "pretrain", "-cn", "bioformers", *cells, *SMALL]
    assert command(cli.main, *train, f"working_dir={folder}/run") == 0
    test = ["omics-train", "test", "-cn", "bioformers_test", *cells]
    test += [f"checkpoint={folder}/run/bundle", "scoring.num_bootstrap_runs=100"]
    assert command(cli.main, *test, f"working_dir={folder}/test") == 0
    return folder


def cells_of(folder):
    return [
        f"input_file={folder}/prepared/cells.store",
        f"data_module.split={folder}/prepared/split.parquet",
    ]


def rows_of(path):
    """Return `{(method, metric): row}`."""
    return {(row.method, row.metric): row for row in read_results(path)}


def test_three_commands_give_all_figures_beside_guesses(folder):
    rows = rows_of(folder / "test/results.parquet")
    figures = {metric for method, metric in rows if method == MODEL}
    assert {
        "exact", "within_1", "zeros_as_zero", "zeros_as_nonzero", "ones_as_one", "ones_as_zero",
        "ones_as_other", "nonzeros_exact", "nonzeros_within_1", "nonzeros_within_2",
    } <= figures  # fmt: skip
    for method in (COMMONEST, ZERO):
        assert {metric for each, metric in rows if each == method} == figures
        assert (f"{MODEL} minus {method}", "exact_difference") in rows
        assert rows[method, "exact"].bundle == ""
    bundle = Bundle.load(folder / "run/bundle")
    split = load_split(folder / "prepared/split.parquet")
    for row in rows.values():
        assert row.task == "hidden:expression"
        assert row.low <= row.value <= row.high
    # 40 genes: 4 hidden in each test cell, 2 of them above 0 in all but the emptiest cells.
    asked = 4 * split.sizes["test"]
    assert rows[MODEL, "exact"].n == asked
    assert rows[MODEL, "exact"].bundle == bundle.digest
    zeros, above = rows[MODEL, "zeros_as_zero"].n, rows[MODEL, "nonzeros_exact"].n
    assert zeros + above == asked
    assert 0.4 * asked < above <= 0.5 * asked
    assert rows[ZERO, "exact"].value == pytest.approx(zeros / asked)
    assert rows[ZERO, "zeros_as_zero"].value == 1.0
    assert rows[ZERO, "nonzeros_exact"].value == 0.0


def test_the_figures_are_those_of_a_calculation_by_hand(folder):
    """Mask, ask and count a second time, with plain loops over the tokens of the test cells."""
    bundle = Bundle.load(folder / "run/bundle")
    store = open_store(folder / "prepared/cells.store")
    split = load_split(folder / "prepared/split.parquet", store)
    config = compose("bioformers_test", [*cells_of(folder), "working_dir=x"])
    field = hidden_fields(bundle)[0]
    plan = mask_plan(config, bundle.tokenizer, [field.spec])
    counts = store.to_anndata(split.rows("test")).X.toarray()
    bins = np.where(counts > 8, 8 + np.ceil(3 * np.log2(np.maximum(counts, 1) / 8) - 1e-9), counts)
    training = store.to_anndata(split.rows("train")).X.toarray()
    of_training = np.where(
        training > 8, 8 + np.ceil(3 * np.log2(np.maximum(training, 1) / 8) - 1e-9), training
    )
    commonest = [np.bincount(column.astype(int)).argmax() for column in of_training.T]
    bound = bundle.tokenizer.bind(store.genes)
    gene_of_token = {token: gene for gene, token in enumerate(bound.table.tolist())}
    hits = {MODEL: 0, COMMONEST: 0, "model nonzero": 0}
    total = nonzero = 0
    for place, row in enumerate(split.rows("test").tolist()):
        batch = store.take(np.array([row]))
        for step in bundle.transforms:
            batch = step.bind(store.genes)(batch, seed=0, epoch=0)
        shown, asked = plan.hide(bound.encode(batch), epoch=0)
        asked = asked["expression"]
        with torch.no_grad():
            output = bundle.model(
                shown.to_torch("cpu"),
                field_tokens={"expression_token_scores": torch.from_numpy(asked.positions)},
            )
        scores = output.fields["expression_token_scores"][:, 5:]
        for token, best in zip(asked.genes.tolist(), scores.argmax(-1).tolist(), strict=True):
            truth = bins[place, gene_of_token[token]]
            total += 1
            nonzero += truth > 0
            hits[MODEL] += best == truth
            hits["model nonzero"] += best == truth and truth > 0
            hits[COMMONEST] += commonest[gene_of_token[token]] == truth
    rows = rows_of(folder / "test/results.parquet")
    assert rows[MODEL, "exact"].n == total
    assert rows[MODEL, "exact"].value == pytest.approx(hits[MODEL] / total)
    assert rows[COMMONEST, "exact"].value == pytest.approx(hits[COMMONEST] / total)
    assert rows[MODEL, "nonzeros_exact"].n == nonzero
    assert rows[MODEL, "nonzeros_exact"].value == pytest.approx(hits["model nonzero"] / nonzero)


def test_the_model_learns_more_than_the_commonest_bin(folder):
    lines = (folder / "run/history.csv").read_text().splitlines()[1:]
    losses = [
        float(line.split(",")[4])
        for line in lines
        if line.split(",")[2:4] == ["train", "expression_masked_cross_entropy_loss"]
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("recipe", ["bioformers", "bioformers_linear"])
def test_a_recipe_composes_builds_and_takes_two_steps(folder, tmp_path, recipe):
    settings = [*cells_of(folder), f"working_dir={tmp_path}", *SMALL, "trainer.max_steps=2"]
    config = compose(recipe, settings)
    training = prepare_training(config, open_store(folder / "prepared/cells.store"))
    (batch,) = next(iter(training.batches)).batches
    # Every cell shows all genes in one order; nothing stands around them.
    genes = batch.tokens.fields["genes"].reshape(16, 40)
    assert (genes == genes[0]).all()
    assert len(batch.questions["expression"].positions) == 16 * 4
    (head,) = training.model.model_config.field_heads
    assert (head.kind, training.model.model_config.field("expression").vocabulary_size) == (
        "token_scores",
        64 + 5,
    )
    run_tasks(config, tmp_path)
    names = [step.name for step in Bundle.load(tmp_path / "bundle").transforms]
    assert names == ["all_genes", "bin_log" if recipe == "bioformers" else "bin_linear"]


def test_the_default_sizes_are_those_of_the_publication():
    config = compose("bioformers", ["working_dir=x"])
    model, data, trainer = config.model, config.data_module, config.trainer
    assert (model.num_layers, model.hidden_size, model.num_heads) == (12, 768, 12)
    assert (model.intermediate_size, model.field_transform, model.norm) == (
        3072,
        "shared_norm",
        "post",
    )
    assert (data.change_ratio, data.nonzero_ratio, data.mask_ratio) == (0.1, 0.5, 1.0)
    assert (data.batch_size, trainer.max_epochs, trainer.warmup_steps) == (2, 10, 2000)
    assert (trainer.learning_rate, trainer.schedule) == (2e-4, "cosine")
    tested = compose("bioformers_test", ["working_dir=x"]).data_module
    assert (tested.change_ratio, tested.nonzero_ratio) == (0.1, 0.5)


def scores_of(folder, checkpoint, target, *overrides, recipe="bioformers_test"):
    """Test a bundle; return its rows."""
    settings = [*cells_of(folder), f"checkpoint={checkpoint}", f"working_dir={target}"]
    run_tasks(compose(recipe, [*settings, "scoring.num_bootstrap_runs=50", *overrides]), target)
    return rows_of(target / "results.parquet")


def test_bioformers_fault_masks_have_a_seed(folder, tmp_path):
    bundle = folder / "run/bundle"
    first, again, other = (
        scores_of(folder, bundle, tmp_path / name, f"seed={seed}")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first[MODEL, "within_1"].value != other[MODEL, "within_1"].value
    # However the cells fall on batches.
    small = scores_of(folder, bundle, tmp_path / "d", "data_module.batch_size=3")
    assert {key: row.value for key, row in small.items()} == {
        key: row.value for key, row in first.items()
    }


def composite(store, scores):
    """Return a bundle of composite tokens, whose head says `scores` [G, 4] of every token."""
    tokenizer = GeneBinTokenizer(store.genes.ids.tolist(), 4)
    size = tokenizer.fields[0].vocabulary_size
    config = ModelConfig(
        fields=(FieldInput(name="gene_bins", encoder="embedding", vocabulary_size=size),),
        hidden_size=8,
        num_heads=1,
        intermediate_size=8,
        pooling="mean",
        field_heads=(FieldHeadConfig(field="gene_bins", kind="token_scores"),),
    )
    model = OmicsModel.build(config, seed=0)
    decoder = model.field_heads["gene_bins_token_scores"].decoder
    with torch.no_grad():
        decoder.weight.zero_()
        decoder.bias.copy_(torch.tensor([*scores.ravel(), 1e3], dtype=torch.float32))
    return Bundle(model=model, tokenizer=tokenizer, transforms=[LogBins(num_bins=4, cutoff=3)])


def test_bioformers_fault_one_bin_beside_never_crosses_a_gene(folder, tmp_path):
    """In the reference the last bin of a gene is one beside the first bin of the next."""
    store = open_store(folder / "prepared/cells.store")
    scores = np.zeros((40, 4))
    scores[:, 3] = 5.0  # Bin 3 of its own gene is the likeliest of every token ...
    scores[7, 0] = 100.0  # ... although a bin of another gene, and the mask, are likelier still.
    composite(store, scores).save(tmp_path / "bundle")
    rows = scores_of(folder, tmp_path / "bundle", tmp_path / "t", "scoring.high_bin=2")
    assert rows[MODEL, "exact"].task == "hidden:gene_bins"
    split = load_split(folder / "prepared/split.parquet", store)
    assert rows[MODEL, "exact"].n == 4 * split.sizes["test"]
    # Gene 7 says bin 0 and all others bin 3: a zero of theirs is three bins away, and not one.
    zeros = rows[MODEL, "zeros_as_zero"]
    assert zeros.value < 0.2
    assert rows[MODEL, "high_exact"].value > 0.8
    everything = rows[MODEL, "within_1"].value * rows[MODEL, "within_1"].n
    near = zeros.value * zeros.n
    near += rows[MODEL, "nonzeros_within_1"].value * rows[MODEL, "nonzeros_within_1"].n
    assert everything == pytest.approx(near)
    guessed = rows[COMMONEST, "exact"]
    assert 0 < guessed.value < 1


def published(store, target):
    """Write a bare state dict as Bioformers published it, with random weights; return its bundle."""
    from transformers import BertConfig, BertModel

    num_ids = 40 * 12 + 1
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 128}
    heads = {"num_attention_heads": 1, "max_position_embeddings": 40}
    model = torch.nn.Module()
    model.Bert = BertModel(BertConfig(vocab_size=num_ids, **sizes, **heads))
    model.ClassificationHead = torch.nn.Sequential(
        torch.nn.GELU(),
        torch.nn.LayerNorm(32, eps=1e-12),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(32, num_ids),
    )
    torch.save(model.state_dict(), target / "bioformers.pt")
    (target / "genes.txt").write_text("\n".join(store.genes.ids.tolist()))
    options = ConversionOptions(genes=target / "genes.txt", num_bins=12)
    bundle = convert_checkpoint(
        target / "bioformers.pt", known_as="bioformers-log", options=options
    )
    bundle.save(target / "bundle")
    return target / "bundle"


def test_a_published_checkpoint_is_tested_and_trained_on(folder, tmp_path):
    store = open_store(folder / "prepared/cells.store")
    bundle = published(store, tmp_path)
    before = scores_of(folder, bundle, tmp_path / "before")
    split = load_split(folder / "prepared/split.parquet", store)
    assert before[MODEL, "exact"].n == 4 * split.sizes["test"]
    settings = [
        *cells_of(folder),
        f"checkpoint={bundle}",
        f"working_dir={tmp_path}/run",
        "fields=[{field_name: gene_bins, encoder: embedding, is_masked: true}]",
        "trainer.losses=[{field_name: gene_bins, name: cross_entropy}]",
        "data_module.augmentations=[]",
        "data_module.change_ratio=0.1",
        "data_module.nonzero_ratio=0.5",
        "trainer.max_epochs=3",
        "trainer.encoder_learning_rate=null",
        "trainer.learning_rate=0.01",
    ]
    run_tasks(compose("finetune", settings), tmp_path / "run")
    after = scores_of(folder, tmp_path / "run/bundle", tmp_path / "after")
    assert after[MODEL, "exact"].value > before[MODEL, "exact"].value
    # Both were asked the same: guesses and numbers of tokens are equal.
    for method in (COMMONEST, ZERO):
        assert after[method, "exact"].value == before[method, "exact"].value


def test_bioformers_fault_composite_answers_are_of_the_gene_that_is_asked(folder):
    store = open_store(folder / "prepared/cells.store")
    scores = np.zeros((40, 4))
    scores[:20, 1] = scores[20:, 2] = 1.0
    bundle = composite(store, scores)
    (field,) = hidden_fields(bundle)
    assert (field.kind, field.num_genes) == ("bins", 41)
    ids = np.array([0, 79, 80, 159])  # The first and the last gene of each half.
    genes = field.gene_of(ids)
    assert genes.tolist() == [0, 19, 20, 39]
    row = torch.tensor([*scores.ravel(), 9.0])
    answers = field.answers({"gene_bins_token_scores": row.expand(4, -1)}, genes)
    assert answers.tolist() == [1, 1, 2, 2]
    assert field.truth(ids).tolist() == [0, 3, 0, 3]


def test_bioformers_fault_no_token_is_counted_twice(folder):
    rows = rows_of(folder / "test/results.parquet")
    for method in (MODEL, COMMONEST, ZERO):
        groups = [rows[method, name].n for name in ("zeros_as_zero", "nonzeros_exact")]
        assert sum(groups) == rows[method, "exact"].n
        found = {
            name: rows[method, name].value * rows[method, name].n
            for name in ("exact", "zeros_as_zero", "nonzeros_exact")
        }
        assert found["exact"] == pytest.approx(found["zeros_as_zero"] + found["nonzeros_exact"])
        high = rows[method, "high_exact"]
        store = open_store(folder / "prepared/cells.store")
        split = load_split(folder / "prepared/split.parquet", store)
        assert high.n <= (store.to_anndata(split.rows("test")).X > 8).sum()


def test_values_without_bins_have_errors_and_correlation(atlas, pretrained, tmp_path):
    settings = [*atlas.cells, f"checkpoint={pretrained}/bundle", "scoring.num_bootstrap_runs=50"]
    run_tasks(compose("test", [*settings, f"working_dir={tmp_path}"]), tmp_path)
    rows = rows_of(tmp_path / "results.parquet")
    assert {metric for method, metric in rows if method == MODEL} == {
        "mae",
        "mae_nonzeros",
        "pcc",
    }
    assert rows[ZERO, "mae"].value == pytest.approx(rows[ZERO, "mae_nonzeros"].value)
    assert rows["mean of the gene", "mae"].value < rows[ZERO, "mae"].value
    assert (f"{MODEL} minus mean of the gene", "mae_difference") in rows


def test_a_bundle_with_labels_and_hidden_fields_gets_both(folder, tmp_path):
    settings = [*cells_of(folder), f"working_dir={tmp_path}/run", *SMALL, "trainer.max_steps=3"]
    both = [
        "label_columns=[cell_type]",
        (
            "trainer.losses=[{field_name: expression, name: cross_entropy},"
            "{label_column_name: cell_type, name: cross_entropy}]"
        ),
    ]
    run_tasks(compose("bioformers", [*settings, *both]), tmp_path / "run")
    found = scores_of(folder, tmp_path / "run/bundle", tmp_path / "t", recipe="test")
    assert {row.task for row in found.values()} == {"annotate:cell_type", "hidden:expression"}
    assert {("label head", "accuracy"), ("label head", "macro_f1")} <= set(found)


def test_gene_ids_that_were_hidden_are_right_or_wrong(folder, tmp_path):
    settings = [*cells_of(folder), f"working_dir={tmp_path}/run", *SMALL, "trainer.max_steps=3"]
    fields = [
        (
            "fields=[{field_name: genes, encoder: embedding, is_masked: true},"
            "{field_name: expression, encoder: embedding}]"
        ),
        "trainer.losses=[{field_name: genes, name: cross_entropy}]",
        "data_module.nonzero_ratio=null",
    ]
    run_tasks(compose("bioformers", [*settings, *fields]), tmp_path / "run")
    found = scores_of(folder, tmp_path / "run/bundle", tmp_path / "t", recipe="test")
    assert {metric for _, metric in found} == {"exact", "exact_difference"}
    assert found["commonest id", "exact"].n == found[MODEL, "exact"].n


def test_without_training_cells_there_is_no_guess_from_them(folder, tmp_path, capsys):
    store = open_store(folder / "prepared/cells.store")
    table = load_split(folder / "prepared/split.parquet", store)
    table.codes[:] = 2
    table.save(tmp_path / "all_test.parquet")
    rows = scores_of(
        folder,
        folder / "run/bundle",
        tmp_path / "t",
        f"data_module.split={tmp_path}/all_test.parquet",
    )
    said = capsys.readouterr().out
    assert "note: the split has no train cells" in said
    exact = rows[MODEL, "exact"]
    assert f"hidden:expression: exact {exact.value:.3f} [{exact.low:.3f}," in said
    assert f"hidden:expression, {MODEL} minus {ZERO}: exact_difference" in said
    assert f"hidden:expression, {ZERO}" not in said
    assert {method for method, _ in rows} == {MODEL, ZERO, f"{MODEL} minus {ZERO}"}


def test_guesses_are_what_the_training_cells_have():
    spec = GeneBinTokenizer(["a", "b", "c"], 3).fields[0]
    field = HiddenField(spec=spec, heads={}, num_gene_ids=10, bins_of_gene=3)
    seen = hidden_field_scoring._SeenInTraining.of(field)
    from omics.tokenizers import TokenBatch

    # Gene a is 2 twice and 0 once, gene b is 1 always; gene c stands in no training cell.
    ids = np.array([2, 4, 2, 4, 0, 4], np.int32)
    seen.add(TokenBatch(fields={"gene_bins": ids}, offsets=np.array([0, 6]), rows=[0]), spec)
    assert seen.guess()[:3].tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data_module.change_ratio=0.001"], InputDataError, "No value was hidden in the cells"),
        (["data_module.nonzero_ratio=2"], ConfigError, r"'expression' has nonzero_ratio 2\.0"),
        (["scoring.ci_method=bootstrp"], ConfigError, "Did you mean 'bootstrap'"),
        (
            ["data_module.pattern_weights=[[G, 0.5]]"],
            ConfigError,
            "nonzero_ratio says which tokens of 'expression' are hidden, and so do",
        ),
    ],
)
def test_a_test_that_cannot_work_is_refused(folder, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        scores_of(folder, folder / "run/bundle", tmp_path / "t", *overrides)
    assert not (tmp_path / "t").exists()


def test_a_bundle_with_nothing_to_test_is_refused(folder, tmp_path):
    bundle = Bundle.load(folder / "run/bundle")
    config = bundle.model.model_config
    number = LabelSpec(name="age", classes=(), kind="regression")
    assert LABEL.kind == "class"
    from dataclasses import replace

    from omics.models.model_config import LabelHeadConfig

    sizes = replace(config, field_heads=(), labels=(LabelHeadConfig(name="age", num_classes=1),))
    Bundle(
        model=OmicsModel.build(sizes, seed=0),
        tokenizer=bundle.tokenizer,
        transforms=[AllGenes(), LogBins()],
        label_specs=[number],
    ).save(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="no label heads that choose a class, and no heads that"):
        scores_of(folder, tmp_path / "bundle", tmp_path / "t")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data_module.nonzero_ratio=-1"], r"'expression' has nonzero_ratio -1\.0"),
        (
            ["data_module.adaptive_masking.enabled=true"],
            "nonzero_ratio says which tokens of 'expression' are hidden, and so do",
        ),
        (
            [
                "fields=[{field_name: genes, encoder: embedding}]",
                "trainer.losses=[{field_name: expression, name: mse, wced_target: all_genes}]",
            ],
            "nonzero_ratio says which values are hidden, and no field is masked",
        ),
    ],
)
def test_settings_of_the_recipe_that_cannot_work_are_refused(folder, overrides, message):
    config = compose("bioformers", [*cells_of(folder), "working_dir=x", *SMALL, *overrides])
    with pytest.raises(ConfigError, match=message):
        prepare_training(config, open_store(folder / "prepared/cells.store"))


def test_whole_cells_are_not_decoded_from_composite_tokens(folder):
    store = open_store(folder / "prepared/cells.store")
    from omics.train.head_plan import Asked, plan_heads
    from omics.train.run_config import LossConfig

    (spec,) = composite(store, np.zeros((40, 4))).tokenizer.fields
    loss = LossConfig(name="mse", field_name="gene_bins", wced_target="all_genes")
    with pytest.raises(ConfigError, match="of whole cells is about 'gene_bins', which holds no"):
        plan_heads([loss], Asked(fields={"gene_bins": spec}, labels={}))
