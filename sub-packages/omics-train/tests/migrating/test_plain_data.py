"""Files of others are plain data: tags, depth, aliases, repeated keys and sizes are bounded."""

from __future__ import annotations

import json

import pytest

from omics.data.errors import ConfigError
from omics.train.migrating.plain_data import MAX_DEPTH, read_plain


@pytest.fixture
def read(tmp_path):
    def read_text(text, name="old.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_plain(path)

    return read_text


def test_values_are_read_as_hydra_reads_them(read):
    found = read("a: 1e-12\nb: 5.0e-6\nc: 32\nd: yes\ne: null\nf: '1e-5'\ng: [x, .5]\nh: 1.2.3")
    assert found == {
        "a": 1e-12,
        "b": 5e-6,
        "c": 32,
        "d": True,
        "e": None,
        "f": "1e-5",
        "g": ["x", 0.5],
        "h": "1.2.3",
    }


def test_aliases_and_merges_are_written_out(read):
    found = read("base: &b {x: 1, y: [2]}\nother: *b\nmerged: {<<: *b, x: 3}")
    assert found["other"] == {"x": 1, "y": [2]}
    assert found["merged"] == {"x": 3, "y": [2]}
    assert found["other"] is not found["base"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [ls]", r"line 1 has the tag .*os.system.*refused"),
        ("a: 1\nb: !!str 3", r"line 2 has the tag"),
        ("a: !custom x", r"has the tag '!custom'"),
        ("a: 1\na: 2", r"the key 'a' is given twice in the mapping of line 1"),
        ("a: {b: 1, b: 2}", r"the key 'b' is given twice"),
        ("1: x", r"has the key 1, which is not a name"),
        ("a: [1, 2", r"cannot be read: "),
        ("a: " + "[" * (MAX_DEPTH + 5) + "]" * (MAX_DEPTH + 5), "nested deeper than 40 levels"),
        ("a: !!binary aGVsbG8=", "has the tag"),
        (b"a: \xff\xfe", "is not a text in UTF-8"),
        ("a: &x [*x]", "nested deeper than 40|more than 20,000 values"),
        ("- " * 60 + "x", "nested deeper than 40 levels"),
    ],
)
def test_what_is_no_plain_data_is_refused(text, message, read):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_dates_stay_texts(read):
    assert read("a: 2024-05-10") == {"a": "2024-05-10"}


def test_aliases_cannot_grow_without_bound(read):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="holds more than 20,000 values, aliases written out"):
        read("\n".join(lines))


def test_a_file_that_is_too_large_is_not_read(read):
    with pytest.raises(ConfigError, match=r"has 1,000,0\d\d bytes; a configuration of more than"):
        read("a: " + "x" * 1_000_010)


def test_json_is_held_to_the_same(read):
    assert read('{"a": [1, 2.5, null, true]}', "s.json") == {"a": [1, 2.5, None, True]}
    with pytest.raises(ConfigError, match="the key 'a' is given twice"):
        read('{"a": 1, "a": 2}', "s.json")
    with pytest.raises(ConfigError, match="nested deeper than 40 levels"):
        read("[" * 5000 + "]" * 5000, "s.json")
    with pytest.raises(ConfigError, match=r"s.json cannot be read: .*line 1"):
        read("{", "s.json")
    assert read(json.dumps({"a": "x" * 100}), "s.json") == {"a": "x" * 100}
