"""Files with `defaults` of Hydra are composed from the files beside them."""

from __future__ import annotations

import pytest

from omics.data.errors import ConfigError
from omics.train.migrating.composed_file import read_composed


@pytest.fixture
def folder(tmp_path):
    def write(**files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path / "top.yaml"

    return write


def test_groups_are_merged_in_order_and_the_file_itself_comes_last(folder):
    top = folder(
        top="defaults: [other, {model: bert}, {task: both}]\nmodel: {layers: 3}\na: 1",
        other="a: 0\nb: 2\nlist: [1, 2]",
        model__bert="defaults: [base]\nwidth: 8",
        model__base="layers: 2\nwidth: 4\nheads: 1",
        task__both="[{x: 1}, {x: 2}]",
    )
    assert read_composed(top) == {
        "a": 1,
        "b": 2,
        "list": [1, 2],
        "model": {"layers": 3, "width": 8, "heads": 1},
        "task": [{"x": 1}, {"x": 2}],
    }


def test_self_says_where_the_file_itself_goes(folder):
    top = folder(top="defaults: [_self_, other, base_scbert_config]\na: 1", other="a: 0")
    assert read_composed(top) == {"a": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "defaults: [missing]",
            r"names 'missing', and there is no .*missing.yaml. Give the file in",
        ),
        ("defaults: [{model: none}]", r"names 'model: none', and there is no"),
        ("defaults: [{model: ../../secret}]", r"'model: ../../secret', which is no file beside it"),
        ("defaults: [{'../model': x}]", "which is no file beside it"),
        ("defaults: ['${x}']", "which is no file beside it"),
        ("defaults: other", "it must be a list"),
        ("defaults: [[1]]", r"holds \[1\], which is no name"),
        ("defaults: [top]", "name each other in a circle"),
    ],
)
def test_defaults_that_name_nothing_are_refused(text, message, folder):
    with pytest.raises(ConfigError, match=message):
        read_composed(folder(top=text))
