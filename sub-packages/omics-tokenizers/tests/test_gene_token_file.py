"""Tables of gene tokens: read as published, refused when wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import InputDataError, MissingPathError
from omics.tokenizers import GeneTokens, read_gene_tokens, write_gene_tokens
from omics.tokenizers.gene_token_file import vocabulary_by_names

HEADER = "ensembl_id\tsymbol\ttoken_id\tmedian\n"
SPECIALS = "<pad>\t\t0\t\n<mask>\t\t1\t\n"


def test_a_table_is_read_by_its_token_ids_whatever_the_order_of_rows_and_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "median,token_id,note,symbol,ensembl_id\n"
        "# a comment\n"
        "1.5,3,x,TSPAN6,ENSG3\n,0,,,<pad>\n,2,,,ENSG2\n\n,1,,,<mask>\n"
    )
    found = read_gene_tokens(path)
    assert found.vocabulary.tokens == ("<pad>", "<mask>", "ENSG2", "ENSG3")
    assert found.vocabulary.specials == {"pad": "<pad>", "mask": "<mask>"}
    assert found.symbols == ("ENSG2", "TSPAN6")
    assert math.isnan(found.medians[0])
    assert found.medians[1] == 1.5


@given(
    st.lists(
        st.tuples(
            st.text("abc XYZ.-\"',", min_size=1, max_size=5).map(str.strip).filter(bool),
            st.one_of(st.just(math.nan), st.floats(1e-300, 1e300)),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[0],
    )
)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    names = [name for name, _ in rows]
    genes = GeneTokens(
        vocabulary=vocabulary_by_names(["<pad>", "<mask>", "<cls>", "<eos>", *names, "[S]"]),
        symbols=tuple(names),
        medians=np.array([median for _, median in rows]),
    )
    write_gene_tokens(path, genes)
    again = read_gene_tokens(path)
    assert again.vocabulary == genes.vocabulary
    assert again.symbols == genes.symbols
    assert np.array_equal(again.medians, genes.medians, equal_nan=True)


def test_special_tokens_are_told_by_their_names():
    vocabulary = vocabulary_by_names(["<cls>", "A", "<eos>", "[S]", "<unk>", "<sep>"])
    assert vocabulary.specials == {"cls": "<cls>", "sep": "<eos>", "unk": "<unk>"}
    assert vocabulary.other_specials == ("[S]", "<sep>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'ensembl_id'; its header is ''"),
        ("ensembl_id\tsymbol\ttoken_id\nA\ta\t0\n", r"no column 'median'; its header \(line 1\)"),
        (HEADER + SPECIALS, "holds no gene"),
        (
            HEADER + "A\ta\t0\t1\nB\tb\t0\t1\n",
            "Line 3 of .* gives 'B' the token id 0, which line 2",
        ),
        (HEADER + "A\ta\t0\t1\nA\tb\t1\t1\n", "Line 3 of .* repeats 'A' of line 2"),
        (HEADER + "A\ta\t0\t1\nB\tb\t2\t1\n", "has 2 token ids up to 2, and none is 1"),
        (HEADER + "A\ta\tone\t1\n", "Line 2 of .* has the token id 'one'"),
        (HEADER + "A\ta\t-1\t1\n", "has the token id '-1'"),
        (HEADER + "A\ta\t99999999999\t1\n", "has the token id '99999999999'"),
        (HEADER + "A\ta\t0\t0\n", "Line 2 of .* has the median '0' for 'A'"),
        (HEADER + "A\ta\t0\t-1\n", "has the median '-1'"),
        (HEADER + "A\ta\t0\tnan\n", "has the median 'nan'"),
        (HEADER + "A\ta\t0\tinf\n", "has the median 'inf'"),
        (HEADER + "A\ta\t0\tmuch\n", "has the median 'much'"),
        (HEADER + "<pad>\t\t0\t1\nA\ta\t1\t1\n", "has the median '1' for '<pad>'"),
        (HEADER + "A\ta\t0\n", "Line 2 of .* has 3 columns where 4 belong"),
        (HEADER + "\ta\t0\t1\n", "Line 2 of .* has no ensembl_id"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "t.tsv"
    path.write_text(text)
    with pytest.raises(InputDataError, match=message):
        read_gene_tokens(path)


def test_a_table_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(MissingPathError, match="no file"):
        read_gene_tokens(tmp_path / "t.tsv")
