"""The report: everything a reader needs to trust or doubt one result, in one offline HTML page.

- `render_report` is a pure function of `ReportData`: no file, no clock, no randomness.
- The first sentence is the verdict, in words chosen by the numbers alone: a model that is worse
  than PCA with logistic regression is called so in the headline.
- No script and no address outside the page; the page's own policy forbids both. Whatever comes
  from data is escaped; figures are images in which nothing can run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omics.eval.baselines import HVG_KNN, MAJORITY
from omics.eval.integration.integration_table import AVERAGES, TITLES
from omics.eval.many_comparisons import shown_p

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from omics.eval.classification import ClassScore, Scores
    from omics.eval.confidence_calibration import TrustLevel
    from omics.eval.figures import Key, Picture
    from omics.eval.integration.integration_table import Integration
    from omics.eval.intervals import Interval
    from omics.eval.many_comparisons import Difference
    from omics.eval.report_evidence import Card, Finding, Genes

CLEARLY_WORSE = 0.05

_SECRET_LINE = re.compile(
    r"(?i)(?P<key>^.*?[\w.-]*(?:token|secret|password|passwd|api_?key|access_?key|credential)s?"
    r"(?:[_.-][\w.-]*)?[\"']?\s*[:=])\s*(?P<value>.*)$"
)
_HARMLESS = re.compile(r"[-+\d_.eE]+|true|false|null|none|~|\[\]|\{\}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the table of methods.

    Attributes:
        name: of the method.
        how: what it does, in a few words.
        scores: on the test cells.
    """

    name: str
    how: str
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One scatter figure with its legend.

    Attributes:
        picture: the points.
        keys: the legend.
        caption: what to look at.
    """

    picture: Picture
    keys: list[Key]
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPanel:
    """How far the confidence of one method can be trusted.

    Attributes:
        method: its name.
        picture: the reliability diagram.
        error: the expected calibration error.
        num_cells: answered cells behind both.
    """

    method: str
    picture: Picture
    error: Interval
    num_cells: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        name: as given by the user.
        facts: what it was, as (name, value): task, duration, seed, versions.
        curves: what it logged.
        configuration: its resolved configuration, as YAML text.
        note: what is not shown; empty if all is.
    """

    name: str
    facts: list[tuple[str, str]]
    curves: list[Picture]
    configuration: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that the page shows.

    Attributes:
        dataset: a name for the cells.
        label: the label column.
        model: name of the method the page is about.
        baseline: name of the method it is held against.
        methods: in the order of the table; contains both.
        differences: model minus baseline, by metric (`accuracy`, `macro_f1`).
        query: name of the split scored.
        classes: every class of the labels or predictions; its number is its place here.
        splits: names of the splits, columns of `cells`.
        cells: by class, the number of cells of each split; in class order.
        class_scores: of the model.
        confusion: of the model; None where figures are not wanted.
        panels: scatter figures.
        calibrations: of the methods that say how sure they are, in the order of the table.
        trust: what thresholds of confidence leave of the model's answers.
        runs: training runs.
        facts: about data and model, as (name, value).
        versions: of the software that made the page.
        commands: that reproduce it.
        notes: what a careful reader must know (cells left out, classes never taught, ...).
        comparisons: the model minus each other method, by method and metric (`accuracy`,
            `macro_f1`), p-values corrected for all of them.
        integration: what the embeddings keep of cell types and how they mix batches.
        crossings: what was looked for on both sides of the split.
        genes: behind the answers of a model.
        cards: of the bundles.
    """

    dataset: str
    label: str
    model: str
    baseline: str
    methods: list[Method]
    differences: Mapping[str, Interval]
    query: str
    classes: list[str]
    splits: list[str]
    cells: dict[str, list[int]]
    class_scores: list[ClassScore]
    confusion: Picture | None = None
    panels: list[Panel] = field(default_factory=list)
    calibrations: list[CalibrationPanel] = field(default_factory=list)
    trust: list[TrustLevel] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    versions: list[tuple[str, str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comparisons: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    integration: Integration | None = None
    crossings: list[Finding] = field(default_factory=list)
    genes: Genes | None = None
    cards: list[Card] = field(default_factory=list)

    def method(self, name: str) -> Method:
        """Return a row of the table by its name."""
        return next(method for method in self.methods if method.name == name)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the page says first.

    Attributes:
        kind: `better`, `level`, `worse` or `much-worse`.
        sentence: the headline.
        detail: the numbers behind it.
    """

    kind: str
    sentence: str
    detail: str


def verdict(data: ReportData) -> Verdict:
    """Say in plain English how the model does, judged by accuracy against the baseline.

    Args:
        data: of the report.

    Returns:
        The headline. `much-worse` is a loss of more than 0.05, whatever its interval; otherwise
        the interval of the difference decides whether the two can be told apart.
    """
    difference = data.differences["accuracy"]
    subject = f"The {data.model}"
    if difference.value < -CLEARLY_WORSE:
        kind = "much-worse"
        sentence = (
            f"{subject} is worse than the plain baseline: {-100 * difference.value:.1f} points of "
            f"accuracy below {data.baseline}"
        )
    elif difference.high < 0:
        kind = "worse"
        sentence = f"{subject} is slightly worse than {data.baseline}"
    elif difference.low > 0:
        kind = "better"
        sentence = f"{subject} is better than {data.baseline}"
    else:
        kind = "level"
        sentence = f"{subject} cannot be told apart from {data.baseline}"
    ours, theirs = (data.method(name).scores for name in (data.model, data.baseline))
    sentence += (
        f"{'. It' if kind == 'much-worse' else ': it'} labels {_percent(ours.accuracy.value)} of "
        f"{ours.num_cells:,} {data.query} cells correctly, the baseline "
        f"{_percent(theirs.accuracy.value)}."
    )
    commonest = [method for method in data.methods if method.name == MAJORITY]
    if commonest and ours.accuracy.value <= commonest[0].scores.accuracy.value:
        sentence += " It does no better than giving every cell the commonest class."
    detail = (
        f"Difference in accuracy {_signed(difference)}; in macro-F1 "
        f"{_signed(data.differences['macro_f1'])} (95% intervals over the same cells)."
    )
    above = [
        f"{method.name} ({_percent(method.scores.accuracy.value)})"
        for method in data.methods
        if method.name not in (data.model, data.baseline, MAJORITY)
        and method.scores.accuracy.value > ours.accuracy.value
    ]
    if above:
        detail += (
            f" {'Also more' if difference.value < 0 else 'More'} accurate here: {', '.join(above)}."
        )
    detail += "".join(_beside(data))
    if kind == "much-worse" and difference.high >= 0:
        detail += " With so few cells the interval still reaches 0: score more cells to be sure."
    return Verdict(kind, sentence, detail)


def _beside(data: ReportData) -> Iterator[str]:
    """Yield a sentence for each embedding that stands beside the model."""
    for name, found in data.comparisons.items():
        if name not in (data.baseline, HVG_KNN, MAJORITY):
            accuracy = found["accuracy"]
            how = (
                "It cannot be told apart from"
                if not accuracy.p_holm < 0.05
                else "It is better than"
                if accuracy.interval.value > 0
                else "It is worse than"
            )
            yield f" {how} {name} ({_signed(accuracy.interval)}, {shown_p(accuracy.p_holm)})."


def render_report(data: ReportData) -> str:
    """Return the page.

    Args:
        data: what it shows.

    Returns:
        One HTML document that needs no other file and no network.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("omics.eval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "three": _three,
        "thousands": lambda value: f"{value:,}",
        "signed": _signed,
        "place": lambda value: f"{100 * min(max(value, 0.0), 1.0):.2f}%",
        "percent": _percent,
        "redacted": redacted,
        "p": shown_p,
    }
    template = environment.get_template("report.html.j2")
    return template.render(
        data=data,
        verdict=verdict(data),
        numbers=class_numbers(data.classes),
        averages=tuple(AVERAGES),
        titles=TITLES,
        totals=[sum(column) for column in zip(*data.cells.values(), strict=True)],
    )


def class_numbers(classes: list[str]) -> dict[str, int]:
    """Return the number by which each class goes in figures and tables, from 1.

    Args:
        classes: in their order.
    """
    return {label: index + 1 for index, label in enumerate(classes)}


def redacted(configuration: str) -> str:
    """Return a configuration without the values of secrets.

    Args:
        configuration: YAML text.

    Returns:
        The text; values of keys that name a token, secret, password, key or credential are
        replaced by `[removed]`. Numbers stay: `max_tokens: 512` is not a secret.
    """
    kept, inside = [], None
    for line in configuration.split("\n"):
        indent = len(line) - len(line.lstrip())
        if inside is not None and line.strip() and indent > inside:
            continue
        inside = None
        found = _SECRET_LINE.match(line)
        if found is None or _HARMLESS.fullmatch(found["value"].strip()):
            kept.append(line)
        else:
            # What is indented below belongs to the value: a block of text, or a mapping.
            inside = indent
            kept.append(f"{found['key']} [removed]")
    return "\n".join(kept)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _three(value: float) -> str:
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "\N{MINUS SIGN}")


def _signed(found: Any) -> str:
    """Return a number, or an interval, with the sign of each."""
    if isinstance(found, float):
        return f"{found:+.3f}".replace("-", "\N{MINUS SIGN}")
    text = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return text.replace("-", "\N{MINUS SIGN}")
