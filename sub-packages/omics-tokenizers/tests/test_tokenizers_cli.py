from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from omics.data.converting.conversion import convert
from omics.data.storage.store import open_store
from omics.data.synthetic import synthesize
from omics.tokenizers import GeneTokenizer, SequenceTokenizer, save_tokenizer
from omics.tokenizers.cli import main


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
