from __future__ import annotations

import itertools
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from omics.data.errors import MissingExtraError, UsageError
from omics.eval.cell_scatter import COLOURS, class_style
from omics.eval.classification import confusion_matrix
from omics.eval.confidence_calibration import calibration
from omics.eval.figures import (
    calibration_figure,
    confusion_figure,
    curve_figure,
    legend,
    scatter_figure,
    top_genes_figure,
)
from omics.eval.projection import umap_coordinates

NASTY = "<b>$x_{$ & \x00 名前 " + "y" * 80


def text_of(picture) -> str:
    return " ".join("".join(node.itertext()) for node in ET.fromstring(picture.data).iter())


def test_the_styles_of_56_classes_differ():
    styles = [class_style(index) for index in range(56)]
    assert len(set(styles)) == 56
    assert len({colour for colour, _ in styles[:12]}) == len(COLOURS)


def test_scatter_is_a_png_that_repeats():
    points = np.random.default_rng(0).random((60, 2))
    names = np.array([["a", "b", None][i % 3] for i in range(60)], dtype=object)
    ringed = np.arange(60) < 5
    first, second = (
        scatter_figure(points, names, ["a", "b"], title="Cells", ringed=ringed) for _ in range(2)
    )
    assert first.data[:4] == b"\x89PNG"
    assert first == second
    assert first.alt == "Cells: 40 cells of 2 groups on two UMAP axes"
    assert first.data_uri.startswith("data:image/png;base64,")
    without = scatter_figure(points, names, ["a", "b"], title="Cells")
    assert without.data != first.data


@pytest.mark.parametrize("num_cells", [0, 1])
def test_scatter_of_hardly_any_cells(num_cells):
    points = np.zeros((num_cells, 2))
    names = np.array(["a"] * num_cells, dtype=object)
    assert scatter_figure(points, names, ["a"], title="t").data[:4] == b"\x89PNG"


def test_legend_lists_the_classes_that_occur_with_their_numbers():
    names = np.array(["b", "b", None, "d"], dtype=object)
    keys = legend(names, ["a", "b", "c", "d"])
    assert [(key.number, key.label, key.num_cells) for key in keys] == [(2, "b", 2), (4, "d", 1)]
    assert legend(names, ["b"], numbered=False)[0].number is None


def test_curves_name_their_axes_and_phases():
    steps = np.arange(5)
    lines = {
        "train": (steps, 1 / (1 + steps)),
        "validation": (steps[1:], np.array([1, np.nan, 2, 3])),
    }
    picture = curve_figure(lines, title="run: loss", value_name="loss")
    text = text_of(picture)
    for name in ("training step (batches)", "loss", "train", "validation", "run: loss"):
        assert name in text
    assert b"http" not in picture.data.split(b">")[0].replace(b"http://www.w3.org", b"")
    assert b"DOCTYPE" not in picture.data


def test_long_curves_are_thinned_to_means():
    steps = np.arange(40_000)
    short = curve_figure({"train": (steps[:400], np.sin(steps[:400]))}, title="t", value_name="v")
    long = curve_figure({"train": (steps, np.sin(steps / 5000))}, title="t", value_name="v")
    assert len(long.data) < 3 * len(short.data)


def test_an_empty_history_is_said_to_be_empty():
    none = np.array([])
    assert "nothing logged" in text_of(curve_figure({}, title="t", value_name="v"))
    assert "t" in text_of(curve_figure({"train": (none, none)}, title="t", value_name="v"))


def test_confusion_shows_counts_and_the_numbers_of_the_page():
    truth = np.array(["a"] * 7 + ["c"] * 5)
    prediction = np.array(["a"] * 4 + ["c"] * 3 + ["c"] * 5)
    picture = confusion_figure(
        confusion_matrix(truth, prediction), numbers={"a": 1, "c": 3}, title="Confusion"
    )
    text = text_of(picture)
    assert "a  1" in text
    assert "c  3" in text
    shown = {"".join(node.itertext()).strip() for node in ET.fromstring(picture.data).iter()}
    assert {"4", "3", "5"} <= shown
    assert "9 of 12" in picture.alt


def test_long_counts_become_per_cents():
    truth = np.repeat(["a", "b"], 3000)
    prediction = truth.copy()
    prediction[:600] = "b"
    picture = confusion_figure(
        confusion_matrix(truth, prediction), numbers={"a": 1, "b": 2}, title="C"
    )
    shown = {"".join(node.itertext()).strip() for node in ET.fromstring(picture.data).iter()}
    assert {"80", "20", "100"} <= shown


@pytest.mark.parametrize("num_classes", [20, 45])
def test_many_classes_still_fit(num_classes):
    labels = np.array([f"class {i:03d}" for i in range(num_classes)])
    numbers = {label: i + 1 for i, label in enumerate(labels)}
    picture = confusion_figure(confusion_matrix(labels, labels), numbers=numbers, title="C")
    assert picture.width <= 760
    assert "class 000  1" in text_of(picture)


def test_names_are_never_parsed():
    names = np.array([NASTY, "b", NASTY], dtype=object)
    confusion = confusion_figure(
        confusion_matrix(names, names), numbers={NASTY: 1, "b": 2}, title=NASTY
    )
    curve = curve_figure(
        {NASTY: (np.arange(3), np.arange(3.0))}, title="$" + NASTY, value_name=NASTY
    )
    for picture in (confusion, curve):
        assert "$x_{$" in text_of(picture)
        assert "…" in text_of(picture)
    assert scatter_figure(np.zeros((3, 2)), names, [NASTY, "b"], title=NASTY).data


def test_pyplot_is_never_touched():
    before = set(sys.modules)
    curve_figure({}, title="t", value_name="v")
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_missing_matplotlib_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[plots\]'"):
        curve_figure({}, title="t", value_name="v")


def test_umap_keeps_classes_apart_and_repeats(clouds):
    points, labels = clouds()
    points = points.copy()
    points[4] = np.nan
    rows, coordinates = umap_coordinates(points, seed=0)
    assert rows.tolist() == [i for i in range(90) if i != 4]
    centres = [coordinates[labels[rows] == name].mean(axis=0) for name in np.unique(labels)]
    spread = max(coordinates[labels[rows] == name].std() for name in np.unique(labels))
    for first, second in itertools.combinations(centres, 2):
        assert np.linalg.norm(first - second) > spread
    again = umap_coordinates(points, seed=0)[1]
    assert np.array_equal(coordinates, again)


def test_umap_of_many_cells_takes_a_seeded_sample(clouds):
    points, _ = clouds()
    rows, coordinates = umap_coordinates(points, seed=0, max_cells=40)
    assert len(rows) == len(coordinates) == 40
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() != umap_coordinates(points, seed=1, max_cells=40)[0].tolist()


def test_umap_of_five_cells_works_and_of_four_is_refused():
    points = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    assert umap_coordinates(points)[1].shape == (5, 2)
    with pytest.raises(UsageError, match="at least 5 cells of 2 dimensions; there are 4"):
        umap_coordinates(points[:4])


def test_missing_umap_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[plots\]'"):
        umap_coordinates(np.random.default_rng(0).random((9, 3)))


def bars(num_classes, num_genes):
    rows = [
        {
            "class": f"class {c}",
            "symbol": f"S{c}_{g}",
            "score": 9.0 - g,
            "low": 8 - g,
            "high": 11 - g,
        }
        for c in range(num_classes)
        for g in range(num_genes)
    ]
    return pd.DataFrame(rows, columns=["class", "symbol", "score", "low", "high"])


def test_top_genes_are_bars_by_class_and_repeat():
    first, second = (top_genes_figure(bars(3, 14), title="Genes") for _ in range(2))
    assert first.data == second.data
    text = text_of(first)
    assert all(f"class {c}" in text for c in range(3))
    assert "S1_9" in text
    assert "S1_10" not in text
    assert "mean score" in text
    assert first.alt == "Genes: bars of the first genes of class 0, class 1, class 2"
    many = top_genes_figure(bars(15, 1), title="Genes")
    assert many.alt.endswith("class 11 (3 more are not drawn)")


def test_top_genes_of_strange_names_and_of_none():
    table = bars(1, 2).assign(**{"class": NASTY, "symbol": NASTY})
    assert text_of(top_genes_figure(table, title=NASTY))
    assert "no gene argues for a class" in text_of(top_genes_figure(bars(0, 0), title="Genes"))


def test_calibration_is_drawn_and_told_bin_by_bin():
    confidence = np.array([0.91, 0.93, 0.55, 0.51, 1.0])
    found = calibration(confidence, np.array([True, False, True, True, True]))
    picture = calibration_figure(found, title=NASTY)
    assert picture == calibration_figure(found, title=NASTY)
    assert picture.alt.endswith(
        "reliability diagram: confidence 0.5 to 0.6: 100% of 2 cells right; "
        "confidence 0.9 to 1.0: 67% of 3 cells right"
    )
    text = text_of(picture)
    for part in ("share that is right", "confidence", "as sure as right", "cells"):
        assert part in text
