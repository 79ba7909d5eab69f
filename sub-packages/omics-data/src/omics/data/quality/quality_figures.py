"""Figures of quality control as PNG: distributions with their limits, counts against genes, doublets.

- Drawn with matplotlib's Figure objects alone; no pyplot, so no global figure and no display.
- Histograms count every cell; points and violins show a fixed sample of at most 20,000 cells, so
  that a figure of an atlas takes seconds and kilobytes.
- Colours are those of Okabe and Ito and viridis, which colour-blind readers can tell apart; removed
  cells differ in shape, not in colour alone. Names of batches are never parsed as mathematics.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import MissingExtraError
from omics.data.quality.thresholds import COUNTS, GENES, MITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from omics.data.quality.quality_table import QualityTable

Array = np.ndarray[Any, np.dtype[Any]]

KEPT, REMOVED, LIMIT, SIMULATED, INK = "#0072B2", "#E69F00", "#D55E00", "#3A3A3A", "#222222"
MAX_POINTS = 20_000
MAX_BATCHES = 24
_MAX_LINES = 12
_MAX_NAME = 18
_DPI = 160
_BINS = 60


def draw_figures(table: QualityTable) -> dict[str, bytes]:
    """Draw what there is to see.

    Args:
        table: the result of quality control.

    Returns:
        `{file name: PNG}`: `distributions.png`, `counts_against_genes.png`, and
        `mitochondrial_share.png` and `doublet_scores.png` where they were measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pictures = {
        "distributions.png": _distributions(table),
        "counts_against_genes.png": _counts_against_genes(table),
    }
    if MITO in table.cells and np.isfinite(table.cells[MITO]).any():
        pictures["mitochondrial_share.png"] = _mitochondrial_share(table)
    if table.summary["doublets"] and table.summary["doublets"]["batches"]:
        pictures["doublet_scores.png"] = _doublet_scores(table)
    return pictures


def _distributions(table: QualityTable) -> bytes:
    figure = _figure(9.0, 3.4)
    keep = table.cells["keep"]
    shown = [(COUNTS, "counts per cell"), (GENES, "genes per cell")]
    for place, (column, label) in enumerate(shown):
        axes = figure.add_subplot(1, 2, place + 1)
        values = _shown_values(table, column)
        bins = np.geomspace(values.min(), max(values.max() * 1.001, values.min() * 1.1), _BINS)
        axes.hist(
            [values[keep], values[~keep]],
            bins=bins.tolist(),
            stacked=True,
            color=[KEPT, REMOVED],
            label=[f"kept ({int(keep.sum()):,})", f"left out ({int((~keep).sum()):,})"],
        )
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, values)
        axes.set_xlabel(label)
        axes.set_ylabel("cells")
        _draw_limits(axes, table, column)
        _finish(axes)
        if place == 0:
            _legend(axes)
    return _png(figure)


def _counts_against_genes(table: QualityTable) -> bytes:
    figure = _figure(5.6, 4.4)
    axes = figure.add_subplot()
    cells = _sample(len(table))
    counts = _shown_values(table, COUNTS)[cells]
    genes = _shown_values(table, GENES)[cells]
    keep = table.cells["keep"][cells]
    size = float(np.clip(12_000 / max(len(cells), 1), 3, 18))
    colours: dict[str, Any] = {"color": KEPT}
    share: Array | None = None
    if MITO in table.cells and np.isfinite(table.cells[MITO]).any():
        share = np.nan_to_num(table.cells[MITO][cells], nan=0.0)
        top = max(float(np.percentile(share, 99)), 1.0)
        colours = {"cmap": "viridis", "vmin": 0, "vmax": top}
    drawn = None
    for chosen, marker, name in ((~keep, "x", "left out"), (keep, "o", "kept")):
        if not chosen.any():
            continue
        given = {**colours, "c": share[chosen]} if share is not None else colours
        edge = 0.7 if marker == "x" else 0.0
        drawn = axes.scatter(
            counts[chosen],
            genes[chosen],
            s=size,
            marker=marker,
            linewidths=edge,
            label=name,
            **given,
        )
    if share is not None and drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, extend="max")
        bar.set_label("mitochondrial counts (%)")
        bar.outline.set_visible(False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes.xaxis, counts)
    _plain_ticks(axes.yaxis, genes)
    axes.set_xlabel("counts per cell")
    axes.set_ylabel("genes per cell")
    _draw_limits(axes, table, COUNTS)
    _draw_limits(axes, table, GENES, horizontal=True)
    _finish(axes)
    _legend(axes)
    return _png(figure)


def _mitochondrial_share(table: QualityTable) -> bytes:
    share = table.cells[MITO].astype(np.float64)
    known = np.isfinite(share)
    names = table.cells.get("batch", np.full(len(table), "all cells", dtype=object))
    labels, sizes = np.unique(names[known].astype(str), return_counts=True)
    largest = np.sort(np.argsort(-sizes, kind="stable")[:MAX_BATCHES])
    labels = labels[largest]
    figure = _figure(max(3.6, 1.6 + 0.6 * len(labels)), 3.8)
    axes = figure.add_subplot()
    parts = [share[known & (names == label)] for label in labels]
    drawn = [part[_sample(len(part))] for part in parts]
    spread = [place for place, part in enumerate(drawn) if np.ptp(part) > 0]
    if spread:
        bodies = axes.violinplot([drawn[place] for place in spread], spread, widths=0.85, showextrema=False, bw_method=0.2)  # fmt: skip
        for body in bodies["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=KEPT, edgecolor="none", alpha=0.45)
    for place, part in enumerate(parts):
        low, middle, high = np.percentile(part, (25, 50, 75))
        axes.vlines(place, low, high, color=INK, linewidth=3)
        axes.plot(place, middle, "o", color="white", markersize=4, markeredgecolor=INK)
        for bound in _upper_bounds(table, MITO, str(labels[place])):
            label = "_limit of the batch" if place else "limit of the batch"
            axes.hlines(bound, place - 0.43, place + 0.43, color=LIMIT, linewidth=1.4, label=label)
    for place, bound in enumerate(_upper_bounds(table, MITO, None)):
        axes.axhline(bound, color=LIMIT, linewidth=1.2, linestyle="--", label="_" * place + "limit")
    axes.set_xticks(range(len(labels)), [_short(str(label)) for label in labels])
    if len(labels) > 4:
        axes.tick_params(axis="x", rotation=40)
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
        text.set_horizontalalignment("right" if len(labels) > 4 else "center")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mitochondrial counts (%)")
    if len(sizes) > len(labels):
        axes.set_xlabel(f"the {len(labels)} largest of {len(sizes)} batches")
    _finish(axes)
    _legend(axes)
    return _png(figure)


def _doublet_scores(table: QualityTable) -> bytes:
    batches = table.summary["doublets"]["batches"]
    figure = _figure(5.6, 3.4)
    axes = figure.add_subplot()
    observed = np.sum([each["observed"] for each in batches], axis=0)
    simulated = np.sum([each["simulated"] for each in batches], axis=0)
    edges = np.linspace(0, 1, len(observed) + 1)
    widths = np.diff(edges)
    axes.bar(edges[:-1], observed / max(observed.sum(), 1) * 100, widths, align="edge", color=KEPT, label="cells")  # fmt: skip
    axes.stairs(simulated / max(simulated.sum(), 1) * 100, edges, color=SIMULATED, linewidth=1.2, label="simulated doublets")  # fmt: skip
    thresholds = [each["threshold"] for each in batches if each["threshold"] is not None]
    for place, threshold in enumerate(thresholds[:_MAX_LINES]):
        label = "threshold" if len(thresholds) == 1 else "threshold of a batch"
        axes.axvline(threshold, color=LIMIT, linewidth=1.2, label=None if place else label)
    top = np.flatnonzero(observed + simulated)
    axes.set_xlim(0, float(edges[min(int(top.max()) + 2, len(edges) - 1)]) if len(top) else 1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("doublet score")
    axes.set_ylabel("share (%)")
    _finish(axes)
    _legend(axes)
    return _png(figure)


def _bounds(table: QualityTable, column: str) -> list[dict[str, Any]]:
    rules = [rule for rule in table.summary["rules"] if rule["column"] == column]
    return [bound for rule in rules for bound in rule["bounds"]]


def _upper_bounds(table: QualityTable, column: str, batch: str | None) -> list[float]:
    mine = [each for each in _bounds(table, column) if each["batch"] == batch]
    return [float(each["high"]) for each in mine if each["high"] is not None]


def _draw_limits(axes: Axes, table: QualityTable, column: str, *, horizontal: bool = False) -> None:
    """Draw every limit of a metric that lies within the data; those of single batches lightly."""
    low, high = axes.get_ylim() if horizontal else axes.get_xlim()
    draw = axes.axhline if horizontal else axes.axvline
    drawn = 0
    for bound in _bounds(table, column):
        for value in (bound["low"], bound["high"]):
            if value is None or not low <= value <= high or drawn == 2 * _MAX_LINES:
                continue
            weak = bound["batch"] is not None
            label = "limit of a batch" if weak else "limit"
            if label in axes.get_legend_handles_labels()[1]:
                label = f"_{label}"
            draw(value, color=LIMIT, label=label, linestyle=":" if weak else "--", linewidth=1.1)
            drawn += 1


def _shown_values(table: QualityTable, column: str) -> Array:
    """Return float64 [n] for a logarithmic axis: the few lowest cells are drawn at its edge."""
    values = table.cells[column].astype(np.float64)
    return np.maximum(values, max(1.0, float(np.percentile(values, 0.5)) / 3))


def _plain_ticks(axis: Axis, values: Array) -> None:
    """Label a logarithmic axis with plain numbers, as many as its range has room for."""
    from matplotlib.ticker import LogLocator, NullFormatter

    decades = float(np.log10(values.max() / values.min())) if len(values) else 0.0
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1,)))
    axis.set_major_formatter("{x:,.0f}")
    axis.set_minor_formatter(NullFormatter())


def _sample(number: int) -> Array:
    """Return ascending positions of at most `MAX_POINTS` of `number` cells."""
    if number <= MAX_POINTS:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).choice(number, MAX_POINTS, replace=False))


def _short(name: str) -> str:
    clean = " ".join(name.split())
    return clean if len(clean) <= _MAX_NAME else f"{clean[: _MAX_NAME - 1]}…"


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Figures need matplotlib, which is not installed. Run: pip install 'omics-data[qc]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no cell."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            frameon=False,
            fontsize=9,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=4,
            columnspacing=1.2,
            handletextpad=0.5,
            handlelength=1.4,
        )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
