"""Tables about genes: read by the names of their columns, or refused with the line that is wrong."""

from __future__ import annotations

import pytest

from omics.data.errors import InputDataError, MissingPathError
from omics.data.matching.gene_tables import read_gene_list, read_medians, read_pairs

COLUMNS = ("alias", "gene")


def test_a_table_is_read_by_its_header_or_in_order_without_one(tmp_path):
    path = tmp_path / "t"
    path.write_text("# remark\ngene\tnote\talias\nTP53\tx\tP53\n\nB\ty\t\n")
    assert read_pairs(path, COLUMNS) == [("P53", "TP53")]
    path.write_text('P53,TP53\n"a,b",C\nnone,\n')
    assert read_pairs(path, COLUMNS) == [("P53", "TP53"), ("a,b", "C")]
    assert read_pairs({"P53": "TP53"}, COLUMNS) == read_pairs([("P53", "TP53")], COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a\tb\tc\nd\te\tf\n", "has 3 columns and no header naming 'alias' and 'gene'"),
        ("alias,gene\na,b\nc\n", "Line 3 of .* has 1 columns where 2 belong"),
        ('alias,gene\n"a\nb",c\n', "goes over several lines"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputDataError, match=message):
        read_pairs(path, COLUMNS)


def test_bytes_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,\xff\xfe\n")
    with pytest.raises(InputDataError, match="not text in UTF-8"):
        read_pairs(path, COLUMNS)
    with pytest.raises(MissingPathError, match="no file"):
        read_gene_list(tmp_path / "none")


def test_a_list_is_one_gene_a_line_or_the_first_column(tmp_path):
    path = tmp_path / "genes.tsv"
    path.write_text("gene_name\tindex\nA1BG\t0\nA1CF\t1\nA1BG\t2\n")
    assert read_gene_list(path) == ["A1BG", "A1CF"]
    path.write_text("A1BG\nA1CF\n")
    assert read_gene_list(path) == read_gene_list(("A1BG", "A1CF", "A1BG")) == ["A1BG", "A1CF"]
    path.write_text("gene\n")
    with pytest.raises(InputDataError, match="holds no gene"):
        read_gene_list(path)


def test_medians_have_ids_and_positive_numbers(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text("ensembl_id\tsymbol\tmedian\n<pad>\t\t\nE1\tA\t1.5\n")
    assert read_medians(path) == {"E1": 1.5}
    path.write_text("E1,2\n")
    assert read_medians(path) == {"E1": 2.0}
    for bad in ("0", "x", "nan", "inf"):
        path.write_text(f"gene,median\nE1,{bad}\n")
        with pytest.raises(InputDataError, match=f"the median '{bad}' for 'E1'"):
            read_medians(path)
