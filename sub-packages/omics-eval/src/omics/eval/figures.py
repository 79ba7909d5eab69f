"""Figures as SVG or PNG bytes: scatter, training curves, confusion matrix, calibration, top genes.

- Drawn with matplotlib's Figure objects alone; no pyplot, so no global figure, no display.
- Laid out at the width of a phone (400 CSS pixels) with text no smaller than the page's: a wide
  screen puts them side by side instead of scaling them.
- Points are pixels (PNG: 20,000 cells stay small), lines and tables are SVG with real text.
- Names of classes and runs are data: never parsed as mathematics, cut when long.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import MissingExtraError
from omics.eval.cell_scatter import COLOURS, FONT_PT, INK, class_style, draw_cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from omics.eval.classification import ConfusionMatrix
    from omics.eval.confidence_calibration import Calibration

Array = np.ndarray[Any, np.dtype[Any]]

# The same marker shapes for an HTML legend, as SVG paths in a box from -6 to 6.
MARKER_PATHS = {
    "o": "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z",
    "s": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "^": "M0 -5L5 4.5H-5Z",
    "D": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "v": "M0 5L5 -4.5H-5Z",
    "P": "M-2 -5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
    "X": "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
}

_PX_PER_INCH = 96
_WIDTH_PX = 400
_MAX_POINTS_OF_LINE = 400
_MAX_NAME = 22
_MAX_BARS = 10
_MAX_PANELS = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawn figure.

    Attributes:
        media_type: `image/svg+xml` or `image/png`.
        data: the file's bytes.
        alt: what it shows, for readers who cannot see it.
        width: CSS pixels at which its text has the size of the page's.
    """

    media_type: str
    data: bytes
    alt: str
    width: int = _WIDTH_PX

    @property
    def data_uri(self) -> str:
        """The figure as a `data:` address."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend.

    Attributes:
        number: of the class, as drawn in the figure; None for none.
        label: the class.
        colour: of its points.
        path: SVG path of its marker in a box from -6 to 6.
        num_cells: cells drawn.
    """

    number: int | None
    label: str
    colour: str
    path: str
    num_cells: int


def legend(categories: Array, classes: Sequence[str], *, numbered: bool = True) -> list[Key]:
    """Return the legend of a scatter figure: the classes that occur, in order.

    Args:
        categories: object [n], the class of each cell; None for a cell drawn in grey.
        classes: all classes, whose positions give styles and numbers.
        numbered: whether the figure carries the numbers.
    """
    keys = []
    for index, label in enumerate(classes):
        count = int((categories == label).sum())
        if count:
            colour, marker = class_style(index)
            number = index + 1 if numbered else None
            keys.append(Key(number, label, colour, MARKER_PATHS[marker], count))
    return keys


def scatter_figure(
    coordinates: Array,
    categories: Array,
    classes: Sequence[str],
    *,
    title: str,
    axis: str = "UMAP",
    numbered: bool = True,
    ringed: Array | None = None,
    seed: int = 0,
) -> Picture:
    """Draw cells in the plane, coloured by class.

    Args:
        coordinates: float [n, 2].
        categories: object [n], the class of each cell; None is drawn small and grey, beneath.
        classes: all classes, whose positions give styles and numbers.
        title: of the panel.
        axis: what the axes are; their units are arbitrary.
        numbered: write each class's number amid its cells.
        ringed: None, or bool [n]: cells to ring in black.
        seed: of the drawing order, so that no class hides another.

    Returns:
        A PNG.
    """
    figure, axes = _figure(_WIDTH_PX, 380, title)
    draw_cells(
        axes,
        coordinates,
        categories,
        classes,
        axis=axis,
        numbered=numbered,
        ringed=ringed,
        seed=seed,
    )
    named = [name for name in categories if name is not None]
    alt = f"{title}: {len(named)} cells of {len(set(named))} groups on two {axis} axes"
    return picture_of(figure, alt)


def curve_figure(
    lines: Mapping[str, tuple[Array, Array]], *, title: str, value_name: str
) -> Picture:
    """Draw what a run logged of one term, by phase.

    Args:
        lines: by phase (`train`, `validation`), steps [k] and values [k]; not-finite values are
            left out.
        title: of the panel.
        value_name: name of the value axis.

    Returns:
        An SVG. A long line is thinned to means over equal stretches of steps.
    """
    figure, axes = _figure(_WIDTH_PX, 250, title)
    for index, (phase, (steps, values)) in enumerate(lines.items()):
        finite = np.isfinite(values)
        x, y = _thinned(np.asarray(steps)[finite], np.asarray(values)[finite])
        few = len(x) <= 40
        axes.plot(
            x,
            y,
            label=shown_name(phase),
            color=COLOURS[(0, 4, 2, 3)[index % 4]],
            linestyle=("-", "--", "-.", ":")[index % 4],
            marker=("o", "s", "^", "D")[index % 4] if few else "",
            markersize=3.5,
            linewidth=1.5,
        )
    axes.set_xlabel("training step (batches)", parse_math=False)
    axes.set_ylabel(shown_name(value_name, 32), parse_math=False)
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
    if any(len(steps) for steps, _ in lines.values()):
        box = axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=FONT_PT)
        for text in box.get_texts():
            text.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(figure, f"{title}: {value_name} by training step for {', '.join(lines)}")


def _thinned(steps: Array, values: Array) -> tuple[Array, Array]:
    if len(steps) <= _MAX_POINTS_OF_LINE:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), _MAX_POINTS_OF_LINE)
    means = [(steps[part].mean(), values[part].mean()) for part in parts]
    thinned = np.array(means, np.float64)
    return thinned[:, 0], thinned[:, 1]


def confusion_figure(
    confusion: ConfusionMatrix, *, numbers: Mapping[str, int], title: str
) -> Picture:
    """Draw a confusion matrix: rows the true class, columns the prediction by its number.

    Args:
        confusion: counts by true and predicted class.
        numbers: of the classes, as in the other figures of the page.
        title: of the figure.

    Returns:
        An SVG; colour is the share of the true class. Cells carry counts, or whole per cents where
        a count has more than three digits; above 30 classes colour alone.
    """
    counts = confusion.counts
    num_classes = len(confusion.classes)
    share = counts / np.maximum(counts.sum(axis=1) + confusion.unanswered, 1)[:, None]
    cell_px = 25 if num_classes <= 12 else 21 if num_classes <= 30 else 12
    names = [shown_name(label) for label in confusion.classes]
    # Beside the matrix: the names with their numbers, and margins.
    beside_px = 60 + 7 * max(len(name) for name in names)
    width = max(320, beside_px + cell_px * num_classes)
    figure, axes = _figure(width, cell_px * num_classes + 80, "")
    figure.suptitle(shown_name(title, 44), fontsize=FONT_PT + 2, color=INK, parse_math=False)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
    step = 1 if cell_px > 12 else 2
    shown = [str(numbers[label]) for label in confusion.classes]
    ticks = range(0, num_classes, step)
    axes.set_xticks(ticks, [shown[i] for i in ticks])
    axes.set_yticks(ticks, [f"{names[i]}  {shown[i]}" for i in ticks], parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class (number)")
    # Over the names, to be read without turning the head.
    axes.text(
        -0.01, 1.01, "true class", transform=axes.transAxes, ha="right", va="bottom", size=FONT_PT
    )
    if num_classes <= 30:
        as_percent = bool(counts.max(initial=0) > 999)
        for row, column in zip(*np.nonzero(counts), strict=True):
            value = round(100 * share[row, column]) if as_percent else counts[row, column]
            axes.text(
                column,
                row,
                str(value),
                ha="center",
                va="center",
                fontsize=FONT_PT - (1 if num_classes <= 12 else 2),
                color="white" if share[row, column] > 0.55 else INK,
            )
    alt = f"{title}: {int(np.trace(counts))} of {int(counts.sum())} answered cells on the diagonal"
    return _svg(figure, alt, width)


def calibration_figure(found: Calibration, *, title: str) -> Picture:
    """Draw how often answers are right beside how sure they are: a reliability diagram.

    Args:
        found: bins of confidence.
        title: of the figure.

    Returns:
        An SVG: a point with Wilson's interval for each bin with cells, the line on which a method lies
        that is right as often as it says, and bars of how many cells each bin has.
    """
    figure = blank_figure(_WIDTH_PX, 400)
    figure.suptitle(shown_name(title, 44), fontsize=FONT_PT + 2, color=INK, parse_math=False)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    held = np.flatnonzero(found.number)
    centre, share = found.confidence[held], found.accuracy[held]
    ends = np.stack([share - found.low[held], found.high[held] - share]).clip(min=0)
    upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    upper.text(0.98, 0.02, "dashed: as sure as right", fontsize=FONT_PT, color=INK, ha="right")
    upper.errorbar(
        *(centre, share),
        yerr=ends,
        color=COLOURS[0],
        linestyle="none",
        marker="o",
        markersize=6,
        elinewidth=1.4,
        capsize=2.5,
    )
    upper.set_ylim(-0.03, 1.03)
    upper.set_ylabel("share that is right", fontsize=FONT_PT)
    edges = np.arange(len(found.number) + 1) / len(found.number)
    lower.bar(
        edges[:-1],
        found.number,
        width=np.diff(edges),
        align="edge",
        color=COLOURS[5],
        edgecolor="white",
    )
    for place in held:
        lower.annotate(
            f"{found.number[place]:,}",
            ((edges[place] + edges[place + 1]) / 2, found.number[place]),
            ha="center",
            va="bottom",
            fontsize=FONT_PT - 2,
            color=INK,
        )
    lower.set_ylim(0, 1.3 * found.number.max())
    lower.set_ylabel("cells", fontsize=FONT_PT)
    lower.set_xlabel("confidence", fontsize=FONT_PT)
    lower.set_xlim(0, 1)
    for axes in (upper, lower):
        axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=FONT_PT, colors=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    told = "; ".join(
        f"confidence {edges[place]:.1f} to {edges[place + 1]:.1f}: "
        f"{100 * found.accuracy[place]:.0f}% of {found.number[place]:,} cells right"
        for place in held
    )
    return _svg(figure, f"{title}, reliability diagram: {told}")


def top_genes_figure(top_genes: pd.DataFrame, *, title: str) -> Picture:
    """Draw the first genes of each class as bars, one panel below the other.

    Args:
        top_genes: with the columns `class`, `symbol`, `score`, `low` and `high`, in the order of the
            ranks of each class.
        title: of the figure.

    Returns:
        An SVG: at most ten genes of each of at most twelve classes, with their intervals.
    """
    groups = list(top_genes.groupby("class", sort=False))
    panels = [(str(name), rows.head(_MAX_BARS)) for name, rows in groups[:_MAX_PANELS]]
    heights = [45 + 17 * len(rows) for _, rows in panels] or [60]
    figure = blank_figure(_WIDTH_PX, 40 + sum(heights))
    figure.suptitle(shown_name(title, 44), fontsize=FONT_PT + 2, color=INK, parse_math=False)
    rows_of_axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)
    for index, ((name, rows), (axes,)) in enumerate(zip(panels, rows_of_axes, strict=False)):
        colour, _ = class_style(index)
        score = rows["score"].to_numpy()
        ends = np.stack([score - rows["low"], rows["high"] - score]).clip(min=0)
        places = np.arange(len(rows))
        axes.barh(places, score, xerr=ends, color=colour, height=0.7, ecolor=INK, capsize=2)
        axes.set_yticks(places, [shown_name(each) for each in rows["symbol"]], parse_math=False)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_title(
            shown_name(name, 44), fontsize=FONT_PT, color=INK, loc="left", parse_math=False
        )
        axes.tick_params(labelsize=FONT_PT, colors=INK, length=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if panels:
        rows_of_axes[-1][0].set_xlabel("mean score", fontsize=FONT_PT)
    else:
        rows_of_axes[0][0].text(0.5, 0.5, "no gene argues for a class", ha="center")
    more = f" ({len(groups) - len(panels)} more are not drawn)" if len(groups) > len(panels) else ""
    alt = f"{title}: bars of the first genes of {', '.join(name for name, _ in panels)}{more}"
    return _svg(figure, alt)


def shown_name(text: str, limit: int = _MAX_NAME) -> str:
    """Return a name fit for a figure: printable, and cut in the middle when long.

    Args:
        text: of any letters.
        limit: letters at most.
    """
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(clean) <= limit:
        return clean
    tail = limit // 3
    return f"{clean[: limit - tail - 1]}…{clean[-tail:]}"


def require_matplotlib() -> None:
    """Refuse to work towards a figure that cannot be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Figures need matplotlib, which is not installed. Run: pip install 'omics-eval[plots]'"
        ) from error


def blank_figure(width_px: int, height_px: int) -> Figure:
    """Return an empty figure that belongs to no display.

    Args:
        width_px: in CSS pixels.
        height_px: in CSS pixels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width_px / _PX_PER_INCH, height_px / _PX_PER_INCH),
        dpi=_PX_PER_INCH,
        layout="constrained",
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    return figure


def _figure(width_px: int, height_px: int, title: str) -> tuple[Figure, Axes]:
    figure = blank_figure(width_px, height_px)
    axes = figure.add_subplot()
    axes.set_title(shown_name(title, 44), fontsize=FONT_PT + 2, color=INK, parse_math=False)
    axes.tick_params(labelsize=FONT_PT, colors=INK)
    axes.xaxis.label.set_fontsize(FONT_PT)
    axes.yaxis.label.set_fontsize(FONT_PT)
    return figure, axes


def picture_of(figure: Figure, alt: str, width: int = _WIDTH_PX) -> Picture:
    """Return a figure as a PNG.

    Args:
        figure: drawn.
        alt: what it shows.
        width: in CSS pixels.
    """
    # Twice the CSS resolution: sharp on phones and in print.
    data = _saved(figure, "png", dpi=2 * _PX_PER_INCH, metadata={})
    return Picture("image/png", data, alt, width)


def _svg(figure: Figure, alt: str, width: int = _WIDTH_PX) -> Picture:
    data = _saved(figure, "svg", dpi=_PX_PER_INCH, metadata={"Date": None})
    # The prologue names a DTD by address; browsers need neither.
    return Picture("image/svg+xml", data[data.index(b"<svg") :], alt, width)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Real text in the SVG, and ids that depend on the content alone: same data, same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "omics"}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A name in a script that the measuring font lacks: the reader's browser has a font for it.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
