from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from omics.data.converting.conversion import convert
from omics.data.errors import ConfigError
from omics.data.storage.store import open_store
from omics.data.storage.store_collection import open_collection
from omics.data.synthetic import synthesize
from omics.tokenizers import (
    GeneTokenizer,
    RankValueTokenizer,
    SequenceTokenizer,
    ValueField,
    corpus_medians,
    load_tokenizer,
    read_gene_tokens,
    save_tokenizer,
    write_gene_tokens,
)
from omics.tokenizers.cli import main
from omics.tokenizers.gene_medians import median_tokens
from omics.tokenizers.transform_file import read_transforms


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    synthesize(30, 50, seed=2).write_h5ad(folder / "cells.h5ad")
    convert(folder / "cells.h5ad", folder / "cells.store")
    return folder / "cells.store"


@pytest.fixture
def run(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["omics-tokenizers", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code

    return call


def test_encode_writes_one_row_per_cell_in_store_order(run, store, tmp_path, capsys):
    out = tmp_path / "tokens.parquet"
    assert run("encode", store, "--out", out, "--target-sum", 1000) == 0
    assert "Wrote 30 cells" in capsys.readouterr().out
    table = pq.read_table(out)
    opened = open_store(store)
    assert table["cell"].to_pylist() == [str(name) for name in opened.obs.names]
    batch = opened.take(np.arange(30))
    first = slice(int(batch.indptr[0]), int(batch.indptr[1]))
    assert table["input_ids"][0].as_py() == [2, *(batch.genes[first].astype(int) + 5)]
    counts = batch.counts[first].astype(float)
    expected = np.log1p(counts * 1000 / counts.sum())
    assert table["expression"][0].as_py()[1:] == pytest.approx(expected.tolist(), rel=1e-5)


def test_encode_uses_a_saved_tokenizer_and_never_replaces_a_file_unasked(
    run, store, tmp_path, capsys
):
    genes = open_store(store).genes
    save_tokenizer(GeneTokenizer.from_list([str(g) for g in genes.ids[:20]]), tmp_path)
    out = tmp_path / "tokens.parquet"
    assert run("encode", store, "--out", out, "--tokenizer", tmp_path) == 0
    assert max(max(ids) for ids in pq.read_table(out)["input_ids"].to_pylist()) < 25
    assert run("encode", store, "--out", out) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert run("encode", store, "--out", out, "--overwrite") == 0


def test_inspect_says_how_well_a_store_fits(run, store, tmp_path, capsys):
    genes = open_store(store).genes
    save_tokenizer(GeneTokenizer.from_list([*(str(g) for g in genes.ids[:20]), "ELSE"]), tmp_path)
    assert run("inspect", tmp_path, "--store", store, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fields"] == {"genes": ["discrete", 26], "expression": ["continuous", 5]}
    assert facts["coverage"]["num_known"] == 20
    assert facts["coverage"]["num_vocabulary"] == 21
    assert run("inspect", tmp_path) == 0
    assert "kind" in capsys.readouterr().out


def test_a_sequence_tokenizer_cannot_read_cells(run, store, tmp_path, capsys):
    save_tokenizer(SequenceTokenizer(), tmp_path)
    assert run("encode", store, "--out", tmp_path / "t.parquet", "--tokenizer", tmp_path) == 2
    assert "'sequence' tokenizer; it cannot read cells" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_ends_with_code_2(run, tmp_path, capsys):
    assert run("inspect", tmp_path) == 2
    assert "tokenizer.json does not exist" in capsys.readouterr().err


@pytest.fixture(scope="module")
def table(store):
    """A table of gene tokens with the medians of the store."""
    opened = open_store(store)
    path = store.parent / "genes.tsv"
    write_gene_tokens(path, median_tokens(opened.genes, corpus_medians(opened)))
    return path


def test_medians_make_the_table_that_geneformer_encodes_with(run, store, table, tmp_path, capsys):
    out, tokens = tmp_path / "medians.tsv", tmp_path / "tokens.parquet"
    assert run("medians", store, "--out", out) == 0
    assert "over 30 cells" in capsys.readouterr().out
    assert out.read_bytes() == table.read_bytes()
    assert run("medians", store, "--out", out) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert run("encode", store, "--tokenizer", "geneformer", "--table", out, "--out", tokens) == 0
    assert "(matched by id) and hold 100.0 % of its counts" in capsys.readouterr().out
    written = pq.read_table(tokens)
    assert written.column_names == ["cell", "input_ids"]
    opened = open_store(store)
    assert written["cell"].to_pylist() == [str(name) for name in opened.obs.names]
    bound = RankValueTokenizer.from_table(out).bind(opened.genes)
    expected = bound.encode(opened.take(np.arange(30)))
    assert written["input_ids"].combine_chunks().values.to_pylist() == (
        expected.fields["genes"].tolist()
    )
    facts = {key.decode(): value.decode() for key, value in written.schema.metadata.items()}
    assert facts["omics_tokenizers.tokenizer"] == "rank_value"
    assert facts["omics_tokenizers.store_digest"] == opened.digest


def test_medians_of_several_stores_are_those_of_all_cells(run, store, tmp_path):
    out = tmp_path / "m.tsv"
    other = tmp_path / "other.store"
    synthesize(20, 50, seed=9).write_h5ad(tmp_path / "other.h5ad")
    convert(tmp_path / "other.h5ad", other)
    assert run("medians", store, other, "--out", out) == 0
    both = open_collection([store, other])
    expected = tmp_path / "expected.tsv"
    write_gene_tokens(expected, median_tokens(both.genes, corpus_medians(both)))
    assert out.read_bytes() == expected.read_bytes()


def test_a_store_of_symbols_is_matched_by_symbol(run, store, table, tmp_path, capsys):
    cells = open_store(store).to_anndata()
    ids = cells.var_names.tolist()
    cells.var_names = [f"SYMBOL{i}" for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "symbols.h5ad")
    symbol_of = dict(zip(ids, cells.var_names, strict=True))
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    with_symbols = tmp_path / "symbols.tsv"
    with_symbols.write_text(
        "".join(
            "\t".join([row[0], symbol_of.get(row[0], row[1]), *row[2:]]) + "\n" for row in lines
        )
    )
    by_id, by_symbol = tmp_path / "a.parquet", tmp_path / "b.parquet"
    name = ["--tokenizer", "geneformer"]
    assert run("encode", store, *name, "--table", table, "--out", by_id) == 0
    capsys.readouterr()
    source = tmp_path / "symbols.h5ad"
    assert run("encode", source, *name, "--table", with_symbols, "--out", by_symbol) == 0
    assert "matched by symbol" in capsys.readouterr().out
    assert pq.read_table(by_id) == pq.read_table(by_symbol)


def test_a_store_with_a_rank_view_gives_the_same_file(run, store, table, tmp_path):
    opened = open_store(store)
    medians = read_gene_tokens(table)
    of_gene = dict(zip(medians.vocabulary.names, medians.medians.tolist(), strict=True))
    opened.to_anndata().write_h5ad(tmp_path / "cells.h5ad")
    convert(tmp_path / "cells.h5ad", tmp_path / "view.store", rank_medians=of_gene)
    written = []
    for number, cells in enumerate((store, tmp_path / "view.store")):
        out = tmp_path / f"{number}.parquet"
        name = ["--tokenizer", "geneformer", "--table", table]
        assert run("encode", cells, *name, "--out", out) == 0
        written.append(pq.read_table(out))
    assert written[0] == written[1]


def test_import_saves_published_vocabularies_that_encode_reads(run, store, table, tmp_path, capsys):
    folder, out = tmp_path / "geneformer", tmp_path / "t.parquet"
    assert run("import", table, "--out", folder, "--max-length", 12) == 0
    assert "rank_value tokenizer of" in capsys.readouterr().out
    assert run("encode", store, "--tokenizer", folder, "--out", out) == 0
    lengths = [len(ids) for ids in pq.read_table(out)["input_ids"].to_pylist()]
    assert max(lengths) == 12
    assert run("import", table, "--out", folder) == 2
    assert run("import", table, "--out", tmp_path / "v1", "--kind", "geneformer-v1") == 2
    assert "belongs to models of the other version" in capsys.readouterr().err


def test_a_list_of_genes_becomes_a_tokenizer(run, store, tmp_path):
    genes = tmp_path / "genes.txt"
    ids = open_store(store).genes.ids[:9].tolist()
    genes.write_text("gene\n" + "\n".join(ids) + "\n")
    options = ["--kind", "list", "--depth-tokens", "--max-length", 8]
    assert run("import", genes, "--out", tmp_path / "made", *options) == 0
    made = load_tokenizer(tmp_path / "made")
    assert made.vocabulary.tokens[5:] == ("[S]", "[T]", *ids)
    assert (made.max_length, made.num_special) == (8, 3)


def test_a_tokenizer_of_bins_is_encoded_with_its_transforms(run, store, tmp_path, capsys):
    genes = open_store(store).genes
    folder, out = tmp_path / "bins", tmp_path / "t.parquet"
    folder.mkdir()
    save_tokenizer(GeneTokenizer.from_genes(genes, values=[ValueField.binned(11)]), folder)
    assert run("encode", store, "--tokenizer", folder, "--out", out) == 2
    assert "reads the field 'bin' of cells, and log_normalize does not make it" in (
        capsys.readouterr().err
    )
    steps = tmp_path / "preprocessing.json"
    steps.write_text('{"transforms": [{"name": "bin_percentile", "num_bins": 10}]}')
    options = ["--tokenizer", folder, "--transforms", steps, "--out", out]
    assert run("encode", store, *options) == 0
    bins = pq.read_table(out)["expression"].to_pylist()
    assert {each for row in bins for each in row[1:]} <= set(range(6, 16))
    assert all(row[0] == 2 for row in bins)


def test_inspect_names_the_unknown_genes_with_the_most_counts(run, store, tmp_path, capsys):
    opened = open_store(store)
    order = np.argsort(-opened.gene_sums(), kind="stable")
    ids = opened.genes.ids
    save_tokenizer(GeneTokenizer.from_list([str(ids[g]) for g in order[3:]]), tmp_path)
    assert run("inspect", tmp_path, "--store", store) == 0
    shown = capsys.readouterr().out
    assert f"such as {', '.join(str(ids[g]) for g in order[:3])}" in shown
    assert "special_tokens" in shown


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--tokenizer", "geneformer"], 2, "add --table FILE"),
        (["--table", "TABLE"], 2, "belong to --tokenizer geneformer"),
        (["--gene-aliases", "TABLE"], 2, "belong to --tokenizer geneformer"),
        (["--tokenizer", "geneformer-v1", "--table", "TABLE"], 2, "of the other version"),
        (
            ["--tokenizer", "geneformer", "--table", "TABLE", "--target-sum", 5],
            2,
            "ranks do not depend on it",
        ),
        (["--transforms", "TABLE", "--target-sum", 5], 2, "with --transforms say it there"),
        (["--transforms", "TABLE"], 2, "is not JSON"),
        (["--transforms", "nowhere"], 2, "no file nowhere"),
        (["--tokenizer", "geneformer", "--table", "WRONG"], 3, "Line 2 of"),
        (["--tokenizer", "geneformer", "--table", "nowhere"], 2, "no file nowhere"),
        (["--tokenizer", "geneformer", "--table", "OTHER"], 3, "at least 10% is needed"),
        (["--tokenizer", "nowhere"], 2, "tokenizer.json does not exist"),
    ],
)
def test_what_encode_cannot_do_ends_with_one_paragraph_and_its_code(
    run, store, table, tmp_path, capsys, options, code, message
):
    header = "ensembl_id\tsymbol\ttoken_id\tmedian\n"
    (tmp_path / "wrong.tsv").write_text(header + "A\tA\t0\t-1\n")
    frame = "".join(f"<{n}>\t\t{i}\t\n" for i, n in enumerate(("pad", "mask", "cls", "eos")))
    others = "".join(f"MOUSE{i}\t\t{i + 4}\t1\n" for i in range(50))
    (tmp_path / "other.tsv").write_text(header + frame + others)
    files = {"TABLE": table, "WRONG": tmp_path / "wrong.tsv", "OTHER": tmp_path / "other.tsv"}
    out = tmp_path / "t.parquet"
    assert run("encode", store, "--out", out, *(files.get(each, each) for each in options)) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TABLE", "--binned"], "--binned has no effect on a source of the kind 'geneformer'"),
        (["TABLE", "--depth-tokens"], "--depth-tokens has no effect"),
        (["TABLE", "--kind", "list", "--binned"], "of the kind 'list'"),
        (["FOLDER", "--gene-aliases", "TABLE"], "of the kind 'checkpoint'"),
        (["TABLE", "--kind", "lst"], "no kind 'lst' of vocabulary. Did you mean 'list'"),
        (["FOLDER"], "There is no"),
    ],
)
def test_what_import_cannot_do_is_said(run, table, tmp_path, capsys, options, message):
    files = {"TABLE": table, "FOLDER": tmp_path}
    options = [files.get(each, each) for each in options]
    assert run("import", *options, "--out", tmp_path / "made") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "holds no list of transforms"),
        ('[{"name": "log_normalise"}]', "Did you mean 'log_normalize'"),
        ('[{"name": "top_genes", "max_genes": 3}, {"name": "log_normalize"}]', "comes before"),
    ],
)
def test_a_file_that_holds_no_transforms_is_refused(tmp_path, text, message):
    path = tmp_path / "steps.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_transforms(path)
