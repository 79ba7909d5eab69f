from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError, InputDataError, UnknownNameError
from omics.data.genes import GeneTable
from omics.tokenizers import (
    GeneTokenizer,
    LabelSpec,
    SequenceTokenizer,
    ValueField,
    Vocabulary,
    load_tokenizer,
    reads_cells,
    save_tokenizer,
)
from omics.tokenizers.vocabulary import special_value

CLS_ID = 2


def cells(lists, *, num_genes, obs=None, targets=None):
    """Return a batch whose cell i has the (gene, value) pairs of lists[i]."""
    entries = [pair for cell in lists for pair in cell]
    return CellBatch(
        indptr=np.cumsum([0, *[len(cell) for cell in lists]]).astype(np.int64),
        genes=np.array([g for g, _ in entries], np.uint16),
        counts=np.ones(len(entries), np.uint8),
        rows=np.arange(len(lists), dtype=np.int64),
        num_genes=num_genes,
        fields={"expression": np.array([v for _, v in entries], np.float32)},
        obs=obs or {},
        targets=targets,
    )


def table(ids, symbols=None):
    columns = {} if symbols is None else {"symbol": np.array(symbols)}
    return GeneTable(list(ids), columns)


def test_tokens_are_flat_with_cls_and_unknown_genes_leave_with_their_values():
    tokenizer = GeneTokenizer.from_list(["A", "C"])
    bound = tokenizer.bind(table("ABC"))
    batch = cells([[(0, 0.5), (1, 9.0), (2, 1.5)], [], [(1, 9.0)]], num_genes=3)
    tokens = bound.encode(batch)
    assert tokens.offsets.tolist() == [0, 3, 4, 5]
    assert tokens.fields["genes"].tolist() == [CLS_ID, 5, 6, CLS_ID, CLS_ID]
    special = special_value(CLS_ID)
    assert tokens.fields["expression"].tolist() == [special, 0.5, 1.5, special, special]
    assert bound.measured_tokens().tolist() == [5, 6]


def test_without_cls_a_cell_holds_its_genes_only():
    bound = GeneTokenizer.from_list(["A", "B"], prepend=()).bind(table("AB"))
    tokens = bound.encode(cells([[(1, 2.0)], []], num_genes=2))
    assert tokens.offsets.tolist() == [0, 1, 1]
    assert tokens.fields["genes"].tolist() == [6]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_encoding_agrees_with_a_cell_by_cell_reading(data):
    num_genes = data.draw(st.integers(1, 12))
    known = data.draw(st.sets(st.integers(0, num_genes - 1), min_size=1))
    lists = data.draw(
        st.lists(
            st.dictionaries(
                st.integers(0, num_genes - 1), st.floats(0, 9, width=32), max_size=num_genes
            ),
            max_size=6,
        )
    )
    lists = [sorted(cell.items()) for cell in lists]
    names = [f"g{i}" for i in range(num_genes)]
    tokenizer = GeneTokenizer.from_list([names[i] for i in sorted(known)], min_coverage=0.0)
    tokens = tokenizer.bind(table(names)).encode(cells(lists, num_genes=num_genes))
    position = {gene: 5 + i for i, gene in enumerate(sorted(known))}
    for i, cell in enumerate(lists):
        begin, end = tokens.offsets[i], tokens.offsets[i + 1]
        expected = [CLS_ID, *[position[g] for g, _ in cell if g in known]]
        assert tokens.fields["genes"][begin:end].tolist() == expected
        values = [special_value(CLS_ID), *[v for g, v in cell if g in known]]
        assert tokens.fields["expression"][begin:end].tolist() == values


def test_targets_are_encoded_without_cls():
    bound = GeneTokenizer.from_list(["A", "B"]).bind(table("AB"))
    full = cells([[(0, 1.0), (1, 2.0)]], num_genes=2)
    tokens = bound.encode(cells([[(1, 2.0)]], num_genes=2, targets=full))
    assert tokens.fields["genes"].tolist() == [CLS_ID, 6]
    assert tokens.targets.fields["genes"].tolist() == [5, 6]
    assert tokens.targets.offsets.tolist() == [0, 2]


def test_genes_match_by_symbol_where_that_finds_more():
    tokenizer = GeneTokenizer.from_list(["ENSG1", "ENSG2"], ["CD3E", "CD19"])
    bound = tokenizer.bind(table(["CD19", "ACTB"]))
    assert bound.coverage.matched_by == {"symbol": 1}
    assert bound.table.tolist() == [6, -1]


def test_a_symbol_that_two_genes_share_matches_neither():
    tokenizer = GeneTokenizer.from_list(["ENSG1", "ENSG2", "ENSG3"], ["X", "X", "Y"])
    assert tokenizer.bind(table(["X", "Y"])).table.tolist() == [-1, 7]


def test_a_store_of_other_genes_is_refused_with_examples_of_both():
    tokenizer = GeneTokenizer.from_list([f"ENSG{i}" for i in range(100)])
    with pytest.raises(
        InputDataError, match=r"genes like M0, M1, M2; the vocabulary has genes like ENSG0"
    ):
        tokenizer.bind(table([f"M{i}" for i in range(50)]))


def test_a_small_panel_of_known_genes_is_accepted():
    tokenizer = GeneTokenizer.from_list([f"ENSG{i}" for i in range(1000)])
    assert tokenizer.bind(table(["ENSG7", "ENSG8"])).coverage.num_known == 2


def test_labels_come_from_obs_and_a_missing_column_is_named():
    label = LabelSpec(name="cell_type", classes=("a", "b"))
    bound = GeneTokenizer.from_list(["A"]).bind(table("A"), labels=[label])
    obs = {"cell_type": np.array(["b", None], dtype=object)}
    tokens = bound.encode(cells([[(0, 1.0)], []], num_genes=1, obs=obs))
    assert tokens.labels["cell_type"].tolist() == [1, -100]
    with pytest.raises(
        UnknownNameError, match=r"no column 'cell_type'\. Did you mean 'cell_types'"
    ):
        bound.encode(cells([[]], num_genes=1, obs={"cell_types": np.array(["a"], dtype=object)}))


def test_a_batch_without_the_expression_field_says_which_transform_makes_it():
    bound = GeneTokenizer.from_list(["A"]).bind(table("A"))
    batch = cells([[(0, 1.0)]], num_genes=1)
    batch.fields.clear()
    with pytest.raises(UnknownNameError, match="log_normalize"):
        bound.encode(batch)


def test_saved_and_loaded_tokenizers_are_equal(tmp_path):
    tokenizer = GeneTokenizer.from_list(["A", "B"], ["a", "b"], prepend=(), min_coverage=0.5)
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, GeneTokenizer)
    assert loaded.to_dict() == tokenizer.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a tokenizer file"),
        ('{"kind": "gene"}', "is not a tokenizer file"),
        ('{"kind": "gen", "format_version": 1}', "Did you mean 'gene'"),
        ('{"kind": "gene", "format_version": 2}', "format version 2"),
        ('{"kind": "gene", "format_version": 1}', "lacks or misuses the key"),
    ],
)
def test_a_damaged_tokenizer_file_is_refused(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(tmp_path)


def test_symbols_must_be_as_many_as_ids():
    with pytest.raises(ConfigError, match="1 symbols for 2 gene ids"):
        GeneTokenizer.from_list(["A", "B"], ["a"])


def with_bins(lists, **options):
    """Return a batch whose entries are (gene, expression, bin)."""
    batch = cells([[(g, v) for g, v, _ in cell] for cell in lists], **options)
    bins = np.array([b for cell in lists for *_, b in cell], np.int32)
    return batch.with_field("bin", bins)


def test_a_published_layout_with_several_first_tokens_depths_and_an_end():
    # Ids as in the published vocabularies: specials first, [S] and [T] at the very end.
    tokens = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "[CLS_0]", "A", "B", "[S]", "[T]"]
    vocabulary = Vocabulary(
        tokens,
        specials={"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
        other_specials=["[CLS_0]", "[S]", "[T]"],
    )
    tokenizer = GeneTokenizer(
        vocabulary,
        values=[ValueField(name="expressions")],
        prepend=["[CLS]", "[CLS_0]"],
        depth_tokens=True,
        append_sep=True,
    )
    bound = tokenizer.bind(table("AB"))
    depths = {"S": np.array([7.5, 6.0]), "T": np.array([9.0, 8.0])}
    batch = cells([[(0, 0.5), (1, 1.5)], []], num_genes=2, obs=depths)
    encoded = bound.encode(batch)
    assert encoded.offsets.tolist() == [0, 7, 12]
    assert encoded.fields["genes"].tolist() == [3, 5, 8, 9, 6, 7, 1, 3, 5, 8, 9, 1]
    values = encoded.fields["expressions"].tolist()
    assert values == [-4, -6, 7.5, 9, 0.5, 1.5, -2, -4, -6, 6, 8, -2]
    assert bound.num_special == tokenizer.num_special == 5
    genes, expressions = tokenizer.fields
    assert genes.special_ids == (0, 1, 2, 3, 4, 5, 8, 9)
    # [S] and [T] have real values: the table of special values ends at [CLS_0].
    assert expressions.vocabulary_size == 6
    assert genes.is_special(encoded.fields["genes"]).sum() == 10
    with pytest.raises(UnknownNameError, match=r"no depth 'S' for the tokens \[S\] and \[T\]"):
        bound.encode(cells([[]], num_genes=2))


def test_values_and_bins_side_by_side():
    tokenizer = GeneTokenizer.from_list(
        ["A", "B"], values=[ValueField(), ValueField.binned(4, name="bins")], append_sep=True
    )
    encoded = tokenizer.bind(table("AxB")).encode(
        with_bins([[(0, 0.5, 1), (1, 2.0, 2), (2, 3.0, 3)]], num_genes=3)
    )
    assert encoded.fields["genes"].tolist() == [2, 5, 6, 3]
    assert encoded.fields["expression"].tolist() == [-3, 0.5, 3.0, -4]
    assert encoded.fields["bins"].tolist() == [2, 6, 8, 3]
    assert encoded.fields["bins"].dtype == np.int32


@settings(max_examples=80, deadline=None)
@given(data=st.data(), limit=st.integers(2, 7), by_bins=st.booleans())
def test_a_cell_that_is_too_long_keeps_its_highest_values_in_their_order(data, limit, by_bins):
    num_genes = data.draw(st.integers(1, 10))
    entry = st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.5]), st.integers(0, 3))
    lists = data.draw(
        st.lists(st.dictionaries(st.integers(0, num_genes - 1), entry, max_size=9), max_size=4)
    )
    # Entries stand in any order, as after an ordering.
    lists = [[(g, *cell[g]) for g in data.draw(st.permutations(sorted(cell)))] for cell in lists]
    values = ValueField.binned(4) if by_bins else ValueField()
    names = [f"g{i}" for i in range(num_genes)]
    tokenizer = GeneTokenizer.from_list(names, max_length=limit, values=[values])
    batch = with_bins(lists, num_genes=num_genes)
    encoded = tokenizer.bind(table(names)).encode(batch)
    column = 2 if by_bins else 1
    for cell, begin, end in zip(lists, encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        kept = sorted(cell, key=lambda e: (-e[column], e[0]))[: limit - 1]
        expected = [gene + 5 for gene, *_ in cell if gene in {g for g, *_ in kept}]
        assert encoded.fields["genes"][begin:end].tolist() == [CLS_ID, *expected]


def test_of_genes_that_are_one_in_the_vocabulary_the_first_is_kept():
    names = ["ENSG00000000001.1", "ENSG00000000002", "ENSG00000000001.2"]
    tokenizer = GeneTokenizer.from_list(["ENSG00000000001", "ENSG00000000002"])
    bound = tokenizer.bind(table(names))
    assert bound.table.tolist() == [5, 6, -1]
    assert bound.measured_tokens().tolist() == [5, 6]


def test_a_vocabulary_is_taken_from_a_store_a_list_or_as_published():
    from_genes = GeneTokenizer.from_genes(table(["id1", "id2"], ["A", "B"]))
    assert from_genes.vocabulary.names == ("id1", "id2")
    assert from_genes.symbols == ("A", "B")
    assert GeneTokenizer.from_list(["A"], depth_tokens=True).vocabulary.tokens[5:] == (
        "[S]",
        "[T]",
        "A",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prepend": ["[CSL]"]}, r"cannot begin with '\[CSL\]'.*Did you mean '\[CLS\]'"),
        ({"prepend": ["A"]}, "cannot begin with 'A'"),
        ({"max_length": 1}, "max_length is 1 and 1 tokens of each cell are special"),
        ({"values": []}, "there must be one for values"),
        ({"values": [ValueField(name="genes")]}, "a name of its own"),
        (
            {"values": [ValueField(bins=Vocabulary(["0"], specials={}))]},
            r"no special token '\[CLS\]'",
        ),
        ({"depth_tokens": True, "values": [ValueField.binned(3)]}, r"no special token '\[S\]'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        GeneTokenizer.from_list(["A"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"\(prepend\) needs a special token with the role 'cls'"),
        ({"prepend": [], "append_sep": True}, "append_sep needs a special token"),
        ({"prepend": [], "depth_tokens": True}, r"cannot begin with '\[S\]'"),
    ],
)
def test_special_tokens_that_a_vocabulary_lacks_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        GeneTokenizer(Vocabulary(["A"], specials={}), **options)


def test_every_option_is_saved_and_loaded(tmp_path):
    tokenizer = GeneTokenizer(
        Vocabulary.of_names(["A", "B"], other_specials=["[S]", "[T]", "[CLS_0]"]),
        ["a", ""],
        aliases=[("old", "A")],
        min_coverage=0.3,
        values=[ValueField(), ValueField(name="x", source="y")],
        prepend=["[CLS]", "[CLS_0]"],
        depth_tokens=True,
        append_sep=True,
        max_length=30,
    )
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.to_dict() == tokenizer.to_dict()
    assert loaded.fields == tokenizer.fields
    assert reads_cells(loaded)
    assert not reads_cells(SequenceTokenizer())


def test_no_cells_give_no_tokens():
    bound = GeneTokenizer.from_list(["A"], append_sep=True, max_length=5).bind(table("A"))
    tokens = bound.encode(cells([], num_genes=1))
    assert tokens.offsets.tolist() == [0]
    assert tokens.num_tokens == 0
