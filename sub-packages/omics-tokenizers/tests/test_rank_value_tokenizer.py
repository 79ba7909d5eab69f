"""RankValueTokenizer against a plain reading of a cell, and on real files."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data import GeneTable, Loader, open_store
from omics.data.cell_batch import CellBatch
from omics.data.converting.conversion import convert
from omics.data.errors import ConfigError, InputDataError
from omics.data.matching.gene_tables import read_medians
from omics.data.storage.block_encoding import rank_rows
from omics.data.synthetic import synthesize
from omics.data.transforms import FirstGenes, RandomOrder
from omics.tokenizers import (
    GeneTokens,
    LabelSpec,
    RankValueTokenizer,
    Vocabulary,
    bind_store,
    load_tokenizer,
    save_tokenizer,
    write_gene_tokens,
)
from omics.tokenizers.gene_token_file import vocabulary_by_names
from omics.tokenizers.rank_value_tokenizer import RankedCells

REAL = Path(os.environ.get("OMICS_REAL_DATA", "nowhere"))
TABLE = REAL / "genes" / "geneformer_gc95M.tsv"
REAL_FILES = [
    path for path in sorted(REAL.rglob("*")) if path.suffix in {".h5ad", ".RData"}
] * TABLE.is_file()
V1_FRAME, V2_FRAME = ["<pad>", "<mask>"], ["<pad>", "<mask>", "<cls>", "<eos>"]


def tokenizer_of(medians, *, frame=V2_FRAME, **options):
    """Return a tokenizer of genes named like the keys, with the special tokens of a version."""
    vocabulary = vocabulary_by_names([*frame, *medians])
    has_frame = frame is V2_FRAME
    options = {"prepend_cls": has_frame, "append_sep": has_frame, "max_length": 4096} | options
    return RankValueTokenizer(vocabulary, list(medians.values()), **options)


def cells(lists, *, num_genes, dtype=np.uint16, obs=None, targets=None):
    """Return a batch whose cell i has the (gene, count) pairs of lists[i]."""
    entries = [pair for cell in lists for pair in cell]
    return CellBatch(
        indptr=np.cumsum([0, *[len(cell) for cell in lists]]).astype(np.int64),
        genes=np.array([g for g, _ in entries], np.uint16),
        counts=np.array([c for _, c in entries], dtype),
        rows=np.arange(len(lists), dtype=np.int64),
        num_genes=num_genes,
        obs=obs or {},
        targets=targets,
    )


def plain_ranks(cell, token_of, median_of):
    """Return the tokens of one cell as the definition has them: counts of a token are summed."""
    count, first = {}, {}
    for gene, number in cell:
        token = token_of[gene]
        if token >= 0 and median_of[gene] > 0 and number > 0:
            count[token] = count.get(token, 0) + number
            median_here = median_of[gene]
            first[token] = (min(first.get(token, (gene,))[0], gene), median_here)
    # The first gene of the store that has the token decides ties, also where others are expressed.
    position = {token: token_of.index(token) for token in count}
    return sorted(count, key=lambda t: (-(count[t] / first[t][1]), position[t]))


def rows_of(tokens):
    ids, offsets = tokens.fields["genes"].tolist(), tokens.offsets.tolist()
    return [ids[a:b] for a, b in pairwise(offsets)]


MEDIANS = st.sampled_from([0.5, 1.0, 1.105969, 2.211938, 3.0, 1 / 3, 7e-7, 255.6])


@st.composite
def cases(draw):
    """Genes of a store that may share tokens or be unknown, medians that often tie, cells."""
    num_genes = draw(st.integers(1, 14))
    names = [f"ENSG{draw(st.integers(0, 9)):011d}.{i}" for i in range(num_genes)]
    bare = sorted({name.split(".")[0] for name in names})
    known = draw(st.lists(st.sampled_from(bare), min_size=1, unique=True))
    medians = {name: draw(st.one_of(MEDIANS, st.just(float("nan")))) for name in sorted(known)}
    medians[known[0]] = draw(MEDIANS)
    lists = draw(
        st.lists(
            st.dictionaries(st.integers(0, num_genes - 1), st.integers(0, 6), max_size=num_genes),
            max_size=6,
        )
    )
    return names, medians, [draw(st.permutations(sorted(cell.items()))) for cell in lists]


@settings(max_examples=200, deadline=None)
@given(case=cases(), limit=st.integers(3, 9), frame=st.sampled_from([V1_FRAME, V2_FRAME]))
def test_ranks_equal_the_plain_reading_of_each_cell(case, limit, frame):
    names, medians, lists = case
    tokenizer = tokenizer_of(medians, frame=frame, max_length=limit, min_coverage=0.0)
    bound = tokenizer.bind(GeneTable(names))
    token_of = tokenizer.vocabulary.ids([name.split(".")[0] for name in names]).tolist()
    assert bound.table.tolist() == token_of
    median_of = [np.nan_to_num(medians.get(name.split(".")[0], 0.0)) for name in names]
    front, back = ([2], [3]) if frame is V2_FRAME else ([], [])
    expected = []
    for cell in lists:
        ranked = plain_ranks(cell, token_of, median_of)
        expected.append([*front, *ranked[: limit - len(front) - len(back)], *back])
    tokens = bound.encode(cells(lists, num_genes=len(names)))
    assert rows_of(tokens) == expected
    assert tokens.fields["genes"].dtype == np.int32
    assert bound.num_special == len(front) + len(back)
    for dtype in (np.uint8, np.uint32, np.float32, np.int64):
        assert rows_of(bound.encode(cells(lists, num_genes=len(names), dtype=dtype))) == expected


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([1e-13, 1e-7, 1e-3, 1.0]),
    num_genes=st.sampled_from([1, 40, 700]),
)
def test_near_and_equal_ratios_are_in_the_order_of_the_view(seed, spread, num_genes):
    # A narrow spread puts all genes of a cell on one key of the sort, a wide one on many.
    rng = np.random.default_rng(seed)
    medians = 1 + spread * rng.integers(0, 50, num_genes) * rng.random()
    medians[rng.random(num_genes) < 0.2] = np.nan
    medians[0] = 1.0
    names = [f"g{i}" for i in range(num_genes)]
    bound = tokenizer_of(
        dict(zip(names, medians, strict=True)), frame=V1_FRAME, min_coverage=0.0
    ).bind(GeneTable(names))
    counts = rng.integers(1, 4, (5, num_genes)) * (rng.random((5, num_genes)) < 0.8)
    lists = [[(g, c) for g, c in enumerate(row) if c] for row in counts.tolist()]
    batch = cells(lists, num_genes=num_genes)
    ranked = rank_rows(batch.indptr, batch.genes, batch.counts, np.nan_to_num(medians))
    known = ~np.isnan(medians)
    expected = [
        [gene + 2 for gene in ranked[a:b].tolist() if known[gene]]
        for a, b in pairwise(batch.indptr)
    ]
    assert rows_of(bound.encode(batch)) == expected


def test_ties_go_to_the_lower_gene_in_whatever_order_entries_stand():
    bound = tokenizer_of({"a": 1.0, "b": 2.0, "c": 1.0}, frame=V1_FRAME).bind(GeneTable("abc"))
    stored = [(0, 1), (1, 2), (2, 1)]
    for entries in (stored, stored[::-1], [stored[1], stored[2], stored[0]]):
        assert rows_of(bound.encode(cells([entries], num_genes=3))) == [[2, 3, 4]]


def test_genes_of_one_token_are_summed_and_stand_where_the_first_of_them_stands():
    names = ["ENSG00000000001.1", "x", "ENSG00000000001.2"]
    tokenizer = tokenizer_of({"ENSG00000000001": 1.0, "x": 1.0}, frame=V1_FRAME)
    bound = tokenizer.bind(GeneTable(names))
    assert bound.merged is not None
    # 1 + 2 against 3: a tie, and the first gene of the token comes before x.
    assert rows_of(bound.encode(cells([[(0, 1), (1, 3), (2, 2)]], num_genes=3))) == [[2, 3]]
    assert rows_of(bound.encode(cells([[(1, 3), (2, 3)]], num_genes=3))) == [[2, 3]]
    assert rows_of(bound.encode(cells([[(1, 3), (2, 2)]], num_genes=3))) == [[3, 2]]


def test_retired_ids_are_summed_with_the_genes_they_became():
    tokenizer = tokenizer_of({"new": 1.0, "x": 1.0}, frame=V1_FRAME, aliases={"retired": "new"})
    bound = tokenizer.bind(GeneTable(["x", "retired", "new"]))
    assert bound.coverage.matched_by == {"id": 2, "id without version": 0, "alias": 1}
    assert rows_of(bound.encode(cells([[(0, 3), (1, 2), (2, 2)]], num_genes=3))) == [[2, 3]]


def test_no_cells_give_no_tokens():
    bound = tokenizer_of({"a": 1.0}).bind(GeneTable("a"))
    for encoder in (bound, bound.for_view()):
        tokens = encoder.encode(cells([], num_genes=1))
        assert tokens.offsets.tolist() == [0]
        assert tokens.num_tokens == 0


def test_versions_have_their_length_and_special_tokens(tmp_path):
    genes = {f"g{i}": 1.0 for i in range(5000)}
    for frame, name in ((V1_FRAME, "V1"), (V2_FRAME, "V2")):
        tokens = GeneTokens(
            vocabulary=vocabulary_by_names([*frame, *genes]),
            symbols=tuple(genes),
            medians=np.array(list(genes.values())),
        )
        write_gene_tokens(tmp_path / f"{name}.tsv", tokens)
    everything = cells([[(i, 1) for i in range(5000)], []], num_genes=5000)
    table = GeneTable(list(genes))
    first = RankValueTokenizer.from_table(tmp_path / "V1.tsv", version="V1").bind(table)
    assert rows_of(first.encode(everything)) == [list(range(2, 2050)), []]
    second = RankValueTokenizer.from_table(tmp_path / "V2.tsv").bind(table)
    assert rows_of(second.encode(everything)) == [[2, *range(4, 4098), 3], [2, 3]]
    with pytest.raises(ConfigError, match="belongs to models of the other version"):
        RankValueTokenizer.from_table(tmp_path / "V2.tsv", version="V1")
    with pytest.raises(ConfigError, match="V2 has <cls> and <eos>"):
        RankValueTokenizer.from_table(tmp_path / "V1.tsv")
    with pytest.raises(ConfigError, match="no version 'V3'"):
        RankValueTokenizer.from_table(tmp_path / "V1.tsv", version="V3")


def test_targets_are_ranked_whole_and_labels_are_encoded():
    label = LabelSpec(name="t", classes=("a", "b"))
    tokenizer = tokenizer_of({"a": 1.0, "b": 1.0, "c": 1.0}, max_length=3)
    bound = tokenizer.bind(GeneTable("abc"), labels=[label])
    full = cells([[(0, 1), (1, 2), (2, 3)]], num_genes=3)
    batch = cells([[(0, 1), (2, 3)]], num_genes=3, targets=full, obs={"t": np.array(["b"], object)})
    tokens = bound.encode(batch)
    assert rows_of(tokens) == [[2, 6, 3]]
    assert rows_of(tokens.targets) == [[6, 5, 4]]
    assert tokens.labels["t"].tolist() == [1]


def test_a_saved_tokenizer_gives_the_same_tokens(tmp_path):
    tokenizer = tokenizer_of(
        {"a": 1.5, "b": float("nan"), "c": 0.1}, aliases={"old": "c"}, max_length=9
    )
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, RankValueTokenizer)
    assert loaded.to_dict() == tokenizer.to_dict()
    batch = cells([[(0, 9), (1, 4), (2, 1)]], num_genes=3)
    genes = GeneTable(["a", "b", "old"])
    assert rows_of(loaded.bind(genes).encode(batch)) == [[2, 6, 4, 3]]
    assert loaded.bind(genes).measured_tokens().tolist() == [4, 6]


def test_the_field_says_which_tokens_are_special():
    spec = tokenizer_of({"a": 1.0}).fields[0]
    assert (spec.vocabulary_size, spec.special_ids, spec.mask_id) == (5, (0, 1, 2, 3), 1)


@pytest.mark.parametrize(
    ("medians", "options", "message"),
    [
        ({"a": 0.0}, {}, "is not above 0"),
        ({"a": float("nan")}, {}, "no gene has one"),
        ({"a": float("inf")}, {}, "is not above 0"),
        ({"a": 1.0}, {"max_length": 2}, "no place is left for genes"),
        ({"a": 1.0}, {"frame": V1_FRAME, "prepend_cls": True}, "role 'cls'"),
        ({"a": 1.0}, {"min_coverage": 2}, "min_coverage is 2"),
    ],
)
def test_what_cannot_be_is_refused(medians, options, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer_of(medians, **options)


def test_medians_must_be_as_many_as_genes():
    with pytest.raises(ConfigError, match="1 medians for 2 genes"):
        RankValueTokenizer(Vocabulary.of_names("ab"), [1.0])


def test_a_store_of_other_genes_is_refused():
    tokenizer = tokenizer_of({f"ENSG{i:011d}": 1.0 for i in range(100)})
    with pytest.raises(InputDataError, match=r"genes like ENSMUSG0, ENSMUSG1"):
        tokenizer.bind(GeneTable([f"ENSMUSG{i}" for i in range(90)]))


def test_known_genes_without_medians_are_refused():
    tokenizer = tokenizer_of({"a": 1.0, "b": float("nan")})
    with pytest.raises(InputDataError, match="None of the 1 known genes of the store has a median"):
        tokenizer.bind(GeneTable("bx"))


@pytest.fixture(scope="module")
def store_with_view(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    synthesize(60, 80, seed=4).write_h5ad(folder / "cells.h5ad")
    plain = convert(folder / "cells.h5ad", folder / "plain.store")
    rng = np.random.default_rng(0)
    ids = plain.genes.ids.tolist()
    medians = {name: float(rng.choice([0.5, 1.0, 1.7])) for name in ids if rng.random() < 0.8}
    viewed = convert(folder / "cells.h5ad", folder / "view.store", rank_medians=medians)
    return plain, viewed, medians


@pytest.mark.parametrize("max_length", [4096, 12])
def test_the_rank_view_is_read_by_itself_and_gives_the_same_tokens(store_with_view, max_length):
    plain, viewed, medians = store_with_view
    tokenizer = tokenizer_of(medians, max_length=max_length)
    from_counts, bound = bind_store(tokenizer, plain)
    assert from_counts is plain
    reader, by_view = bind_store(tokenizer, viewed)
    assert isinstance(reader, RankedCells)
    assert by_view.from_view
    rows = np.random.default_rng(1).permutation(60)[:41]
    loaders = [
        Loader(each, rows=rows, batch_size=7, obs=("cell_type",), reuse_buffers=True)
        for each in (plain, reader)
    ]
    for counted, ranked in zip(*loaders, strict=True):
        a, b = bound.encode(counted), by_view.encode(ranked)
        assert rows_of(a) == rows_of(b)
        assert a.rows.tolist() == b.rows.tolist()
        assert counted.obs["cell_type"].tolist() == ranked.obs["cell_type"].tolist()
    whole = by_view.encode(reader.take(np.arange(60)))
    assert rows_of(whole) == rows_of(bound.encode(plain.take(np.arange(60))))


def test_the_view_is_left_alone_where_it_would_not_do(store_with_view):
    _, viewed, medians = store_with_view
    other = {**medians, next(iter(medians)): 99.0}
    assert bind_store(tokenizer_of(other), viewed)[0] is viewed
    steps = [RandomOrder(), FirstGenes(max_genes=5)]
    assert bind_store(tokenizer_of(medians), viewed, transforms=steps)[0] is viewed


def converted(path, store, **options):
    """Return the store of a real file; some hold fractions of counts."""
    if path.suffix == ".RData":
        options |= {"location": "sm", "allow_non_counts": True}
    return convert(path, store, **options)


@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("max_length", [None, 300])
def test_real_files_equal_a_plain_implementation_from_counts_and_from_the_view(
    path, max_length, tmp_path
):
    tokenizer = RankValueTokenizer.from_table(TABLE, max_length=max_length)
    store = converted(path, tmp_path / "plain.store")
    reader, bound = bind_store(tokenizer, store)
    assert reader is store
    assert bound.coverage.num_known > len(store.genes) // 2
    batch = store.take(np.arange(len(store)))
    limit = (4096 if max_length is None else max_length) - 2
    expected = []
    for cell in range(len(batch)):
        entries = slice(batch.indptr[cell], batch.indptr[cell + 1])
        genes, counts = batch.genes[entries], batch.counts[entries].astype(np.float64)
        known = bound.medians[genes] > 0
        values = counts / counts.sum() * 10_000 / np.where(known, bound.medians[genes], 1)
        order = np.argsort(-values[known], kind="stable")[:limit]
        expected.append([2, *bound.table[genes[known][order]].tolist(), 3])
    assert rows_of(bound.encode(batch)) == expected
    if store.value_kind != "counts":
        return
    # A view is made with medians by the ids of the store, which may be symbols.
    ids = store.genes.ids.tolist()
    medians = {name: m for name, m in zip(ids, bound.medians.tolist(), strict=True) if m > 0}
    converted(path, tmp_path / "view.store", rank_medians=medians)
    ranked, by_view = bind_store(tokenizer, open_store(tmp_path / "view.store"))
    assert isinstance(ranked, RankedCells)
    assert rows_of(by_view.encode(ranked.take(np.arange(len(store))))) == expected


@pytest.mark.parametrize("table", [TABLE] if REAL_FILES else [], ids=lambda path: path.stem)
def test_the_published_table_keeps_its_ids_and_has_the_medians_of_a_view(table, tmp_path):
    tokenizer = RankValueTokenizer.from_table(table)
    vocabulary = tokenizer.vocabulary
    assert len(vocabulary) == 20_275
    assert [vocabulary.id_of(role) for role in ("pad", "mask", "cls", "sep")] == [0, 1, 2, 3]
    assert vocabulary.ids(["ENSG00000000003"]).tolist() == [4]
    medians = read_medians(table)
    assert [medians[name] for name in vocabulary.names] == tokenizer.medians.tolist()
    save_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["kind"] == "rank_value"
    assert load_tokenizer(tmp_path).to_dict() == tokenizer.to_dict()
