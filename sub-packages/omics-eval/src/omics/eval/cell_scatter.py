"""Cells in the plane, drawn into the axes of a figure, with colours and markers of their classes.

- Colours are those of Okabe and Ito, then four of Tol's, chosen for colour-blind readers. Markers
  change after eight classes, so colour and marker repeat together only after 56; every class
  also carries its number in the plot, for print in grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

COLOURS = (
    "#0072B2",  # blue
    "#E69F00",  # orange
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#D55E00",  # vermilion
    "#56B4E9",  # sky blue
    "#3A3A3A",  # near black
    "#F0E442",  # yellow
    "#882255",  # wine
    "#44AA99",  # teal
    "#332288",  # indigo
    "#999933",  # olive
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BACKGROUND = "#D3D3D3"
INK = "#222222"
FONT_PT = 9

_CLASSES_PER_MARKER = 8
_NUMBER_GAP = 0.065


def class_style(index: int) -> tuple[str, str]:
    """Return the colour and the marker of a class.

    Args:
        index: its position among the sorted classes, from 0.
    """
    return COLOURS[index % len(COLOURS)], MARKERS[index // _CLASSES_PER_MARKER % len(MARKERS)]


def draw_cells(
    axes: Axes,
    coordinates: Array,
    categories: Array,
    classes: Sequence[str],
    *,
    axis: str = "UMAP",
    numbered: bool = True,
    ringed: Array | None = None,
    colours: Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """Draw cells in the plane into axes of a figure.

    Args:
        axes: of matplotlib.
        coordinates: float [n, 2].
        categories: object [n], the class of each cell; None is drawn small and grey, beneath.
        classes: all classes, whose positions give styles and numbers.
        axis: what the axes are; their units are arbitrary.
        numbered: write each class's number amid its cells.
        ringed: None, or bool [n]: cells to ring in black.
        colours: of the classes; None for ours.
        seed: of the drawing order, so that no class hides another.
    """
    order = np.random.default_rng(seed).permutation(len(coordinates))
    points, names = coordinates[order], categories[order]
    size = float(np.clip(9000 / max(len(points), 1), 2.5, 26))
    grey = np.array([name is None for name in names], bool)
    axes.scatter(points[grey, 0], points[grey, 1], s=size * 0.6, c=BACKGROUND, linewidths=0)
    _scatter_classes(axes, points, names, classes, size, colours=colours)
    if ringed is not None and ringed.any():
        axes.scatter(
            coordinates[ringed, 0],
            coordinates[ringed, 1],
            s=size * 2.2,
            facecolors="none",
            edgecolors="black",
            linewidths=0.9,
        )
    if numbered:
        _write_numbers(axes, points, [names == label for label in classes])
    axes.set_xlabel(f"{axis} 1 (arbitrary units)")
    axes.set_ylabel(f"{axis} 2 (arbitrary units)")
    axes.set_xticks([])
    axes.set_yticks([])


def _scatter_classes(
    axes: Axes,
    points: Array,
    names: Array,
    classes: Sequence[str],
    size: float,
    *,
    colours: Sequence[str] | None,
) -> None:
    styles = {label: class_style(index) for index, label in enumerate(classes)}
    if colours is not None:
        styles = {
            label: (colour, styles[label][1])
            for label, colour in zip(classes, colours, strict=True)
        }
    for marker in MARKERS:
        drawn = np.array([name in styles and styles[name][1] == marker for name in names], bool)
        if drawn.any():
            axes.scatter(
                points[drawn, 0],
                points[drawn, 1],
                s=size,
                c=[styles[name][0] for name in names[drawn]],
                marker=marker,
                edgecolors="white",
                linewidths=0.2 if size > 5 else 0,
            )


def _write_numbers(axes: Axes, points: Array, members: list[Array]) -> None:
    """Write each class's number amid its cells, pushed apart where two would touch."""
    from matplotlib.patheffects import withStroke

    drawn = [index for index, inside in enumerate(members) if inside.any()]
    if not drawn:
        return
    # In units of the panel, where two numbers need about 0.06 of its width between them.
    low, extent = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-9)
    places = np.array([_middle((points[members[i]] - low) / extent) for i in drawn])
    # An order of angles breaks the tie of numbers that fall on one point.
    places += 1e-3 * np.array([(np.cos(2.4 * i), np.sin(2.4 * i)) for i in drawn])
    for _ in range(100):
        apart = places[:, None] - places[None]
        distance = np.linalg.norm(apart, axis=2)
        np.fill_diagonal(distance, np.inf)
        push = np.maximum(_NUMBER_GAP - distance, 0) / 2
        if not push.any():
            break
        places += (apart / np.maximum(distance, 1e-9)[..., None] * push[..., None]).sum(axis=1)
    for index, place in zip(drawn, places * extent + low, strict=True):
        axes.text(
            float(place[0]),
            float(place[1]),
            str(index + 1),
            fontsize=FONT_PT + 1,
            fontweight="bold",
            color=INK,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _middle(points: Array) -> Array:
    """Return the point nearest to the median: a class in two islands is marked on one of them."""
    away = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    return np.asarray(points[away.argmin()])
