"""What `omics-train predict` writes: numbers, order, forms, and memory."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from run_parts import compose

from omics.data.errors import ConfigError, ExistingPathError, UsageError
from omics.data.splits import load_split
from omics.data.storage.store import open_store
from omics.data.transforms import TopGenes
from omics.eval import embed, embed_file
from omics.eval.h5ad_output import NOT_ASKED
from omics.models import Bundle, OmicsModel, embed_genes, run_cells
from omics.models.gene_embedding import GeneNames
from omics.models.inference import NO_COUNTS, NO_KNOWN_GENE, InferenceBatch
from omics.models.label_answers import best_class, label_sets, probabilities
from omics.models.model_config import LabelHeadConfig
from omics.tokenizers import LabelSpec
from omics.train import prediction_files
from omics.train.prediction_files import Prediction, table_names
from omics.train.runs import run_tasks

LABEL = "cell_type"


def predicted(folder, source, bundle, *overrides):
    """Run predict and return its folder."""
    settings = [f"input_file={source}", f"checkpoint={bundle}", f"working_dir={folder}"]
    run_tasks(compose("predict", [*settings, *overrides]), folder)
    return folder


def read(path):
    """Return the cells of a file whose names repeat."""
    with pytest.warns(UserWarning, match="names are not unique"):
        return ad.read_h5ad(path)


def vectors_of(table, prefix="e"):
    names = [name for name in table.columns if name[: len(prefix)] == prefix]
    return table[names].to_numpy(np.float32)


@pytest.fixture(scope="module")
def cells(atlas, tmp_path_factory):
    """The atlas, where cell 5 is empty, cell 9 expresses an unknown gene, and names repeat."""
    adata = ad.read_h5ad(atlas.h5ad)
    counts = adata.X.tolil()
    counts[5] = 0
    counts[9] = 0
    unknown = ad.AnnData(counts.tocsr(), obs=adata.obs, var=adata.var)
    extra = np.zeros((adata.n_obs, 1), np.float32)
    extra[9] = 3
    more = ad.AnnData(extra, obs=adata.obs, var=pd.DataFrame(index=["unheard of"]))
    joined = ad.concat([unknown, more], axis=1, merge="same")
    joined.obs_names = [f"=cell{i % 150}" for i in range(adata.n_obs)]
    joined.obsm["X_mine"] = np.ones((adata.n_obs, 2))
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    joined.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def everything(cells, finetuned, tmp_path_factory):
    """A prediction of these cells in all forms."""
    folder = tmp_path_factory.mktemp("all") / "predict"
    return predicted(folder, cells, finetuned / "bundle", "output.formats=[parquet,csv,h5ad]")


@pytest.fixture(scope="module")
def expected(cells, finetuned):
    """The numbers of `embed`, and the results of the loop."""
    from omics.data.cell_source import open_cells

    bundle = Bundle.load(finetuned / "bundle")
    with open_cells(cells) as store:
        (result,) = run_cells(bundle, store, batch_tokens=10**6)
    return result


def test_a_run_on_an_h5ad_gives_the_bits_of_embed_and_of_the_loop(
    cells, finetuned, everything, expected, tmp_path
):
    found = vectors_of(pd.read_parquet(everything / "embeddings.parquet"))
    assert np.array_equal(found, expected.embeddings, equal_nan=True)
    with pytest.warns(UserWarning, match="names are not unique"):
        embedded = embed(cells, finetuned / "bundle", device="cpu").obsm["X_omics"]
    assert np.array_equal(found, embedded, equal_nan=True)
    embed_file(cells, finetuned / "bundle", tmp_path / "out.h5ad", device="cpu")
    ours, theirs = read(everything / "predictions.h5ad"), read(tmp_path / "out.h5ad")
    assert np.array_equal(ours.obsm["X_omics"], theirs.obsm["X_omics"], equal_nan=True)
    assert np.array_equal(ours.obsm["X_omics"], found, equal_nan=True)
    assert ours.obs["omics_reason"].tolist() == theirs.obs["omics_reason"].tolist()
    same = {"bundle_digest", "pooling", "layer", "genes", "num_without_embedding"}
    records = [each.uns["omics"]["X_omics"] for each in (ours, theirs)]
    assert {key: records[0][key] for key in same} == {key: records[1][key] for key in same}


def test_every_form_holds_the_same_cells_in_input_order(cells, everything, expected, finetuned):
    source = read(cells)
    names = source.obs_names.tolist()
    (spec,) = Bundle.load(finetuned / "bundle").label_specs
    classes = spec.classes
    codes, confidence = best_class(spec, expected)
    answers = [None if code < 0 else classes[code] for code in codes]
    tables = {"embeddings", "predictions", "probabilities", "logits"}
    wanted = {
        "embeddings": expected.embeddings,
        "logits": expected.logits[LABEL],
        "probabilities": probabilities(spec, expected),
    }
    for table in tables:
        parquet = pd.read_parquet(everything / f"{table}.parquet")
        assert parquet["row"].tolist() == list(range(len(names)))
        assert parquet["cell"].tolist() == names
        assert dict(parquet["reason"][parquet["reason"] != ""]) == {5: NO_COUNTS, 9: NO_KNOWN_GENE}
        text = pd.read_csv(everything / f"{table}.csv", index_col=0)
        assert text.index.name == "cell"
        # Text that a spreadsheet would run has an apostrophe in front.
        assert text.index.tolist() == [f"'{name}" for name in names]
        assert list(text.columns) == [
            name for name in parquet.columns if name not in ("row", "cell", "reason")
        ]
        if table != "predictions":
            for found in (parquet[list(text.columns)], text):
                assert np.array_equal(found.to_numpy(np.float32), wanted[table], equal_nan=True)
            continue
        for found in (parquet, text):
            assert [None if pd.isna(x) else x for x in found[LABEL]] == answers
            sure = found[f"{LABEL}_probability"].to_numpy(np.float32)
            assert np.array_equal(sure, confidence, equal_nan=True)
    h5ad = read(everything / "predictions.h5ad")
    assert h5ad.obs_names.tolist() == names
    assert (h5ad.X != source.X).nnz == 0
    assert np.array_equal(h5ad.obsm["X_mine"], source.obsm["X_mine"])
    assert [None if pd.isna(x) else x for x in h5ad.obs[f"{LABEL}_pred"]] == answers
    sure = h5ad.obs[f"{LABEL}_confidence"].to_numpy()
    assert np.array_equal(sure, confidence, equal_nan=True)
    assert h5ad.obs[LABEL].tolist() == source.obs[LABEL].tolist()


def test_some_cells_only(atlas, finetuned, tmp_path):
    folder = predicted(
        tmp_path / "p",
        atlas.store,
        finetuned / "bundle",
        f"data_module.split={atlas.split}",
        "data_module.predict_split=test",
        "output.formats=[csv,h5ad]",
    )
    rows = load_split(atlas.split, open_store(atlas.store)).rows("test")
    text = pd.read_csv(folder / "embeddings.csv", index_col=0)
    h5ad = ad.read_h5ad(folder / "predictions.h5ad")
    assert text.index.tolist() == h5ad.obs_names[rows].tolist()
    assert h5ad.n_obs == 200
    assert np.array_equal(h5ad.obsm["X_omics"][rows], text.to_numpy(np.float32))
    others = np.delete(np.arange(200), rows)
    assert np.isnan(h5ad.obsm["X_omics"][others]).all()
    assert set(h5ad.obs["omics_reason"].iloc[others]) == {NOT_ASKED}
    assert h5ad.obs[f"{LABEL}_pred"].iloc[others].isna().all()
    assert h5ad.uns["omics"]["X_omics"]["num_without_embedding"] == 0
    assert not list(folder.glob("*.parquet"))


def test_pooling_and_layer(atlas, pretrained, tmp_path):
    options = ["embedding.pooling=mean+token:0", "embedding.layer=0"]
    folder = predicted(tmp_path / "p", atlas.store, pretrained / "bundle", *options)
    store, bundle = open_store(atlas.store), Bundle.load(pretrained / "bundle")
    (result,) = run_cells(bundle, store, pooling="mean+token:0", layer=0, batch_tokens=10**6)
    found = pd.read_parquet(folder / "embeddings.parquet")
    assert np.array_equal(vectors_of(found), result.embeddings)
    metadata = pq.read_schema(folder / "embeddings.parquet").metadata
    assert (metadata[b"pooling"], metadata[b"layer"]) == (b"mean+token:0", b"0")


def test_genes_get_their_mean_and_a_row_in_each_cell(cells, finetuned, tmp_path):
    from omics.data.cell_source import open_cells

    folder = predicted(
        tmp_path / "p",
        cells,
        finetuned / "bundle",
        "embedding.level=gene",
        "embedding.per_cell=true",
        "embedding.layer=-1",
        "output.formats=[parquet,csv]",
        "data_module.batch_tokens=700",
    )
    bundle = Bundle.load(finetuned / "bundle")
    names = GeneNames.of(bundle.tokenizer)
    with open_cells(cells) as store:
        means = embed_genes(bundle, store, layer=-1)
        (result,) = run_cells(bundle, store, level="gene", layer=-1, batch_tokens=10**6)
        cell_names = store.obs.names
    rows = np.repeat(result.rows, np.diff(result.genes.offsets))
    for reader, end in ((pd.read_parquet, "parquet"), (pd.read_csv, "csv")):
        table = reader(folder / f"gene_embeddings.{end}")
        assert table["gene"].tolist() == means.genes.tolist()
        assert table["symbol"].tolist() == means.symbols.tolist()
        assert table["num_cells"].tolist() == means.num_cells.tolist()
        assert np.array_equal(vectors_of(table), means.vectors)
        table = reader(folder / f"gene_embeddings_per_cell.{end}")
        assert np.array_equal(vectors_of(table), result.genes.vectors)
        assert table["gene"].tolist() == names.genes[result.genes.tokens].tolist()
        mark = "'" if end == "csv" else ""
        assert table["cell"].tolist() == [f"{mark}{name}" for name in cell_names[rows]]
        if end == "parquet":
            assert table["row"].tolist() == rows.tolist()
    assert not (folder / "embeddings.parquet").exists()
    assert (folder / "predictions.parquet").exists()


def bundle_with_labels(pretrained, specs):
    """Return the pretrained bundle with untrained label heads."""
    start = Bundle.load(pretrained / "bundle")
    heads = tuple(LabelHeadConfig(name=s.name, num_classes=s.num_outputs) for s in specs)
    config = replace(start.model.model_config, field_heads=(), wced=(), labels=heads)
    return Bundle(
        model=OmicsModel.build(config, seed=0),
        tokenizer=start.tokenizer,
        transforms=start.transforms,
        label_specs=specs,
    )


def test_labels_of_every_kind_have_their_own_answers(cells, pretrained, tmp_path):
    number = LabelSpec(name="age", classes=(), kind="regression")
    several = LabelSpec(name="states", classes=("p", "q"), kind="multilabel")
    tree = LabelSpec(
        name="tree", classes=("x", "y", "z"), kind="hierarchy", nodes={"x or y": (0, 1)}
    )
    specs = [number, several, tree]
    bundle_with_labels(pretrained, specs).save(tmp_path / "bundle")
    folder = predicted(
        tmp_path / "p", cells, tmp_path / "bundle", "output.formats=[parquet,csv,h5ad]"
    )
    from omics.data.cell_source import open_cells

    with open_cells(cells) as store:
        (result,) = run_cells(Bundle.load(tmp_path / "bundle"), store, batch_tokens=10**6)
    codes, sure = best_class(tree, result)
    wanted = {
        "age": result.logits["age"][:, 0],
        "states": label_sets(several, result),
        "tree": np.array(["x", "y", "z", None], dtype=object)[codes],
        "tree_probability": sure,
    }
    obs = read(folder / "predictions.h5ad").obs
    tables = [
        pd.read_parquet(folder / "predictions.parquet"),
        pd.read_csv(folder / "predictions.csv", keep_default_na=False, na_values=[]),
        obs.rename(
            columns={
                "age_pred": "age",
                "states_pred": "states",
                "tree_pred": "tree",
                "tree_confidence": "tree_probability",
            }
        ),
    ]
    for table in tables:
        for name, values in wanted.items():
            if values.dtype == np.float32:
                found = pd.to_numeric(table[name]).to_numpy(np.float32)
                assert np.array_equal(found, values, equal_nan=True)
            else:
                found = [None if pd.isna(x) else x for x in table[name]]
                blank = "" if table is tables[1] else None
                assert found == [blank if x is None else x for x in values]
    assert not {"age_confidence", "states_confidence"} & set(obs.columns)
    for name in ("logits", "probabilities"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        nodes = ["tree_x or y"] if name == "probabilities" else []
        names = ["states_p", "states_q", "tree_x", "tree_y", "tree_z", *nodes]
        assert list(table.columns[3:]) == names
        for spec in (several, tree):
            chosen = result.logits[spec.name] if name == "logits" else probabilities(spec, result)
            found = vectors_of(table, f"{spec.name}_")
            assert np.array_equal(found, chosen, equal_nan=True)


def test_numbers_alone_have_no_table_of_classes(atlas, pretrained, tmp_path):
    number = LabelSpec(name="age", classes=(), kind="regression")
    bundle_with_labels(pretrained, [number]).save(tmp_path / "bundle")
    folder = predicted(tmp_path / "p", atlas.store, tmp_path / "bundle")
    assert {path.name for path in folder.iterdir()} == {"embeddings.parquet", "predictions.parquet"}
    settings = [*atlas.cells, f"checkpoint={tmp_path}/bundle", f"working_dir={tmp_path}/t"]
    with pytest.raises(ConfigError, match="no label heads that choose a class"):
        run_tasks(compose("test", settings), tmp_path / "t")


def test_labels_of_any_name_have_columns_of_their_own(pretrained):
    labels = {"cell": ("x", "y"), "a": ("b_c", "d"), "a_b": ("c", "e")}
    specs = [LabelSpec(name=name, classes=classes) for name, classes in labels.items()]
    prediction = Prediction(
        tables=table_names(specs, level="cell", per_cell=False),
        cells=np.array(["one"]),
        labels=specs,
        width=1,
        gene_width=1,
        genes=GeneNames.of(Bundle.load(pretrained / "bundle").tokenizer),
        metadata={},
    )
    names = [name for column in prediction.columns("predictions") for name in column.names]
    assert names[:5] == ["row", "cell", "reason", "cell_2", "cell_probability"]
    names = [name for column in prediction.columns("logits") for name in column.names]
    assert names[3:] == ["cell_x", "cell_y", "a_b_c", "a_d", "a_b_c_2", "a_b_e"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output.formats=[parqet]"], "output.formats holds 'parqet'. Did you mean 'parquet'"),
        (["output.formats=[]"], "name some of parquet, csv, h5ad, once each"),
        (["output.formats=[csv,csv]"], "once each"),
        (["embedding.pooling=maen"], "embedding.pooling is 'maen'. Did you mean 'mean'"),
        (["embedding.pooling=pooler"], "needs model.pooler=true"),
        (["embedding.layer=7"], r"the layers 0 \(its inputs\) to 1"),
        (["embedding.level=genes"], "embedding.level is 'genes'. Did you mean 'gene'"),
        (["embedding.level=gene", "embedding.pooling=mean"], "embedding.pooling is about vectors"),
        (["embedding.level=gene", "output.formats=[h5ad]"], "output.formats=h5ad is about vectors"),
        (["embedding.per_cell=true"], "add embedding.level=gene"),
        (["trainer.precision=64-true"], "which test and predict do not have"),
        (["data_module.batch_tokens=0"], "batch_tokens is 0"),
    ],
)
def test_what_cannot_be_written_is_refused_first(atlas, pretrained, tmp_path, overrides, message):
    with pytest.raises((ConfigError, UsageError), match=message):
        predicted(tmp_path / "p", atlas.store, pretrained / "bundle", *overrides)
    assert not (tmp_path / "p").exists()


def test_what_is_wrong_with_a_prediction_is_found_before_the_training(atlas, tmp_path):
    for wrong in ("output.formats=[parqet]", "embedding.pooling=maen", "trainer.precision=64-true"):
        settings = [*atlas.cells, f"working_dir={tmp_path}/r", "task=[train,predict]", wrong]
        with pytest.raises(ConfigError):
            run_tasks(compose("pretrain", settings), tmp_path / "r")
        assert not (tmp_path / "r").exists()


def test_reference_fault_11_settings_that_nothing_reads_are_refused(atlas, pretrained, tmp_path):
    """Misspelt and idle options were swallowed there without a word."""
    for wrong in ("embedding.poling=mean", "output.format=[csv]", "trainer.lora.rank=3"):
        with pytest.raises(ConfigError):
            compose("predict", [wrong])
    settings = [*atlas.cells, f"working_dir={tmp_path}/r"]
    for idle, message in (
        ("embedding.layer=0", "embedding is read by the task predict"),
        ("output.formats=[csv]", "output is read by the task predict"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_tasks(compose("pretrain", [*settings, idle]), tmp_path / "r")
        assert not (tmp_path / "r").exists()
    bundle, store = Bundle.load(pretrained / "bundle"), open_store(atlas.store)
    with pytest.raises(TypeError, match="poling"):
        run_cells(bundle, store, poling="mean")


def test_reference_fault_1_predictions_repeat_and_do_not_depend_on_the_way(
    atlas, pretrained, tmp_path
):
    """Cells were cut after an unseeded shuffle there, and by column order in the other door."""
    bundle = pretrained / "bundle"
    loaded = Bundle.load(bundle)
    assert isinstance(loaded.transforms[-1], TopGenes)
    loaded.transforms = [*loaded.transforms[:-1], TopGenes(max_genes=7)]
    loaded.save(tmp_path / "cut")
    tables = []
    for number, source in enumerate([atlas.store, atlas.store, atlas.h5ad]):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: TID251, NPY002
        folder = predicted(tmp_path / str(number), source, tmp_path / "cut", f"seed={number}")
        tables.append(vectors_of(pd.read_parquet(folder / "embeddings.parquet")))
    tables.append(embed(atlas.h5ad, tmp_path / "cut", device="cpu").obsm["X_omics"])
    # The order of columns in the file decides nothing either.
    mixed = ad.read_h5ad(atlas.h5ad)
    order = np.random.default_rng(0).permutation(mixed.n_vars)
    found = embed(mixed[:, order].copy(), tmp_path / "cut", device="cpu").obsm["X_omics"]
    for table in tables[1:]:
        assert np.array_equal(table, tables[0])
    counts = mixed.X.toarray()
    no_tie = [
        len(np.unique(-np.sort(-row)[6:8])) == 2 for row in counts
    ]  # Of equal counts the gene that comes first in the file is kept.
    assert np.allclose(found[no_tie], tables[0][no_tie], atol=1e-5)
    assert sum(no_tie) > 20


def test_an_earlier_prediction_is_replaced_as_a_whole(atlas, finetuned, pretrained, tmp_path):
    folder = tmp_path / "p"
    predicted(folder, atlas.store, finetuned / "bundle", "output.formats=[parquet,csv]")
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ExistingPathError, match="overwrite=true"):
        predicted(folder, atlas.store, pretrained / "bundle", "output.formats=[h5ad]")
    predicted(folder, atlas.store, pretrained / "bundle", "overwrite=true")
    assert {path.name for path in folder.iterdir()} == {"embeddings.parquet", "mine.txt"}


def test_the_input_is_never_replaced(atlas, pretrained, tmp_path):
    source = tmp_path / "predictions.h5ad"
    source.write_bytes(atlas.h5ad.read_bytes())
    with pytest.raises(ConfigError, match="is the input and would be replaced"):
        predicted(tmp_path, source, pretrained / "bundle", "overwrite=true")
    assert source.read_bytes() == atlas.h5ad.read_bytes()


def test_a_name_that_the_input_has_is_refused(atlas, finetuned, tmp_path):
    adata = ad.read_h5ad(atlas.h5ad)
    adata.obs[f"{LABEL}_pred"] = "mine"
    adata.write_h5ad(tmp_path / "in.h5ad")
    arguments = (tmp_path / "in.h5ad", finetuned / "bundle", "output.formats=[h5ad]")
    with pytest.raises(UsageError, match="obs already holds 'cell_type_pred'"):
        predicted(tmp_path / "p", *arguments)
    predicted(tmp_path / "p", *arguments, "overwrite=true", "output.key_added=X_new")
    found = ad.read_h5ad(tmp_path / "p/predictions.h5ad")
    assert "mine" not in set(found.obs[f"{LABEL}_pred"])
    assert "X_new" in found.obsm


def test_a_configuration_file_of_a_run_keeps_its_sections(pretrained):
    text = (pretrained / "config.yaml").read_text()
    assert "embedding:" in text
    assert json.loads((pretrained / "run.json").read_text())["task"] == "pretrain"


def made_batches(count, cells, width, alive):
    """Yield results, and count how many of those before are still in memory."""
    for number in range(count):
        rows = np.arange(number * cells, (number + 1) * cells, dtype=np.int64)
        batch = InferenceBatch(
            rows=rows,
            embeddings=np.full((cells, width), number, np.float32),
            logits={LABEL: np.zeros((cells, 3), np.float32)},
            num_tokens=np.ones(cells, np.int64),
            reasons=np.zeros(cells, np.int8),
        )
        alive.append(weakref.ref(batch.embeddings))
        yield batch


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_reference_fault_memory_of_predict_does_not_grow_with_the_cells(
    tmp_path, monkeypatch, pretrained, suffix
):
    """All embeddings and predictions were kept until the end there, and written as CSV."""
    width, cells, limit = 32, 50, 20_000
    monkeypatch.setattr(prediction_files, "WAITING_BYTES", limit)
    written, most = [], []
    labels = [LabelSpec(name=LABEL, classes=("a", "b", "c"))]
    flush = prediction_files._Table.flush

    def counted(table):
        most.append(table._bytes)
        flush(table)

    monkeypatch.setattr(prediction_files._Table, "flush", counted)
    for count in (20, 200):
        most.clear()
        alive = []
        prediction = Prediction(
            tables=table_names(labels, level="cell", per_cell=False),
            cells=np.array([f"c{i}" for i in range(count * cells)], dtype=object),
            labels=labels,
            width=width,
            gene_width=1,
            genes=GeneNames.of(Bundle.load(pretrained / "bundle").tokenizer),
            metadata={},
        )
        in_memory = []
        with prediction.writer(tmp_path, [suffix]) as writer:
            for batch in made_batches(count, cells, width, alive):
                writer.add(batch)
                in_memory.append(sum(ref() is not None for ref in alive))
        del batch
        gc.collect()
        # What waits is less than the limit and one batch more, however many cells there were.
        one = cells * (8 + 8 + 1 + 4 * width)
        assert max(most) < limit + one
        assert max(in_memory) <= limit // one + 3
        assert sum(ref() is not None for ref in alive) == 0
        written.append(max(in_memory))
    assert written[0] == written[1]
    reader = pd.read_parquet if suffix == ".parquet" else pd.read_csv
    table = reader(tmp_path / f"embeddings{suffix}")
    assert vectors_of(table)[:, 0].tolist() == np.repeat(np.arange(200), cells).tolist()


def test_parquet_has_few_row_groups(everything):
    for path in everything.glob("*.parquet"):
        assert pq.ParquetFile(path).num_row_groups == 1
        assert isinstance(pq.read_schema(path).field("row").type, type(pa.int64()))
