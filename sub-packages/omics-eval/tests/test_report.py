from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from omics.eval.classification import class_table, confusion_matrix, score, score_difference
from omics.eval.comparison import compared_with_all
from omics.eval.confidence_calibration import (
    answered_by_threshold,
    calibration,
    calibration_error_metric,
)
from omics.eval.figures import (
    calibration_figure,
    confusion_figure,
    curve_figure,
    legend,
    scatter_figure,
)
from omics.eval.integration.integration_table import Integration
from omics.eval.intervals import Interval, confidence_interval
from omics.eval.many_comparisons import Difference
from omics.eval.report import (
    CalibrationPanel,
    Method,
    Panel,
    ReportData,
    Run,
    class_numbers,
    redacted,
    render_report,
    verdict,
)

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<svg onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
    "--><iframe src='//evil.example'></iframe>",
    "&lt;b&gt; & 'quotes' \"\u202e\x07",
]


def small_report(**changes) -> ReportData:
    generator = np.random.default_rng(0)
    names = changes.pop("names", ["T", "B", "NK"])
    truth = np.array([names[i % len(names)] for i in range(60)], dtype=object)
    ours, base = truth.copy(), truth.copy()
    ours[:6] = names[0]
    base[:12] = names[-1]
    predictions = {"fine-tuned model": ours, "PCA + logistic regression": base}
    classes = sorted(names)
    points = generator.random((60, 2))
    numbers = class_numbers(classes)
    text = changes.pop("text", "plain")
    confidence, right = generator.uniform(0.4, 0.9, 60), ours == truth
    data = ReportData(
        dataset=f"blood {text}",
        label=f"cell_type {text}",
        model="fine-tuned model",
        baseline="PCA + logistic regression",
        methods=[
            Method(name=name, how=f"how {text}", scores=score(truth, given))
            for name, given in predictions.items()
        ],
        differences=score_difference(
            truth, predictions, first="fine-tuned model", second="PCA + logistic regression"
        ),
        query="test",
        classes=classes,
        splits=["train", "validation", "test"],
        cells={name: [1200, 3, 20] for name in classes},
        class_scores=class_table(truth, ours),
        confusion=confusion_figure(confusion_matrix(truth, ours), numbers=numbers, title=text),
        panels=[
            Panel(
                picture=scatter_figure(points, truth, classes, title=text),
                keys=legend(truth, classes),
                caption=f"caption {text}",
            )
        ],
        calibrations=[
            CalibrationPanel(
                method=f"method {text}",
                picture=calibration_figure(calibration(confidence, right), title=text),
                error=confidence_interval(calibration_error_metric(confidence, right)),
                num_cells=1357,
            )
        ],
        trust=answered_by_threshold(confidence, right, thresholds=(0.0, 0.95)),
        runs=[
            Run(
                name=f"run {text}",
                facts=[("Task", text)],
                curves=[curve_figure({}, title=text, value_name=text)],
                configuration=f"seed: 0\nname: {text}\n",
                note=text,
            )
        ],
        facts=[("Bundle", text)],
        versions=[("numpy", text)],
        commands=[f"omics-eval report {text}"],
        notes=[f"note {text}"],
        comparisons=compared_with_all(truth, predictions),
        integration=small_integration(text),
    )
    return replace(data, **changes)


def small_integration(text: str) -> Integration:
    """Two embeddings by names that come from data."""
    first = f"X_{text}"
    scores = {
        name: {
            "avg_bio": Interval(value, value - 0.01, value + 0.01),
            "nmi_mean": Interval(-0.0001, np.nan, np.nan),
        }
        for name, value in ((first, 0.4567), ("PCA", 0.5123))
    }
    difference = Difference(Interval(-0.0556, -0.0656, -0.0456), 0.001, 0.0123)
    return Integration(
        label=f"type {text}",
        batch=f"donor {text}",
        methods=tuple(scores),
        num_cells=1234,
        scores=scores,
        differences={"PCA": {"avg_bio": difference}},
        resolutions={},
        seconds={},
        notes=(f"remark {text}",),
    )


class Page(HTMLParser):
    """Every tag with its attributes, and all text outside style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.texts.append(data)


def differing(value, low, high):
    return {"accuracy": Interval(value, low, high), "macro_f1": Interval(value, low, high)}


def test_the_page_is_whole_and_offline():
    html = render_report(small_report())
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    sources = [attributes["src"] for tag, attributes in page.tags if "src" in attributes]
    assert len(sources) == 4
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", source) for source in sources)
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    policy = next(
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert html.startswith("<!doctype html>")


def test_the_page_says_all_that_it_was_given():
    text = Page(render_report(small_report())).text
    for part in (
        "fine-tuned model",
        "0.933",
        "PCA + logistic regression",
        "1,200",
        "note plain",
        "caption plain",
        "run plain",
        "omics-eval report plain",
        "seed: 0",
        "Methods on the same 60 test cells",
        "How far every other method is",
        "PCA is better than X_plain at keeping cell types apart (0.457 beside 0.512, p = 0.012).",
        "1,234 cells, type plain and donor plain; every metric runs from 0 to 1",
        "AvgBio 0.457 0.447 to 0.467 0.512 0.502 to 0.522",
        "NMI, mean over resolutions 0.000 0.000",
        "\N{MINUS SIGN}0.056 \N{MINUS SIGN}0.066 to \N{MINUS SIGN}0.046 p = 0.012",
        "remark plain",
        "1,357 cells",
        "Threshold Cells answered Right of these 0.00 100.0% 60 cells 93.3% ",
        "0.95 0.0% 0 cells no cell",
        "must be found on other cells, as omics-eval annotate --min-accuracy does",
    ):
        assert part in text, part


@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_from_data_stay_text(payload):
    plain = Page(render_report(small_report()))
    names = [payload, "B", "NK"]
    html = render_report(small_report(names=names, text=payload))
    page = Page(html)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in page.tags] == [
        sorted(attributes) for _, attributes in plain.tags
    ]
    assert " ".join(payload.split()) in page.text
    if "<" in payload:
        assert payload not in html


def test_every_image_has_a_description_and_every_table_its_headings():
    page = Page(render_report(small_report()))
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all(
        attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th"
    )


def test_optional_parts_may_be_absent():
    data = small_report(
        confusion=None,
        panels=[],
        calibrations=[],
        trust=[],
        runs=[],
        commands=[],
        notes=[],
        facts=[],
        versions=[],
        comparisons={},
        integration=None,
    )
    text = Page(render_report(data)).text
    assert "Good to know" not in text
    assert "Training" not in text
    assert "Commands" not in text
    assert "every other method" not in text
    assert "confidences" not in text
    assert "batches" not in text


def test_the_same_data_gives_the_same_bytes():
    assert render_report(small_report()) == render_report(small_report())


def test_numbers_of_classes_agree_across_the_page():
    html = render_report(small_report())
    assert re.search(r'<td class="number">2</td><th scope="row">NK</th>', html)
    assert re.search(r"</svg> 2 NK ", html)


@pytest.mark.parametrize(
    ("difference", "kind", "sentence"),
    [
        ((0.08, 0.02, 0.14), "better", "The fine-tuned model is better than PCA"),
        ((0.01, -0.02, 0.04), "level", "cannot be told apart from PCA"),
        ((-0.03, -0.05, -0.01), "worse", "is slightly worse than PCA"),
        ((-0.06, -0.13, 0.01), "much-worse", "is worse than the plain baseline: 6.0 points"),
        ((-0.30, -0.40, -0.20), "much-worse", "is worse than the plain baseline: 30.0 points"),
    ],
)
def test_the_verdict_follows_the_numbers(difference, kind, sentence):
    data = small_report(differences=differing(*difference))
    found = verdict(data)
    assert found.kind == kind
    assert sentence in found.sentence
    assert "labels 93.3% of 60 test cells correctly, the baseline 86.7%." in found.sentence
    page = Page(render_report(data))
    assert sentence in page.text
    assert ("verdict " + kind) in {attributes.get("class") for _, attributes in page.tags}
    assert ("still reaches 0" in found.detail) == (difference == (-0.06, -0.13, 0.01))


def test_the_verdict_names_other_methods_that_did_better():
    data = small_report()
    best = Method(
        name="HVG + kNN",
        how="",
        scores=replace(data.methods[0].scores, accuracy=Interval(0.99, 0.9, 1.0)),
    )
    found = verdict(replace(data, methods=[*data.methods, best]))
    assert "ore accurate here: HVG + kNN (99.0%)." in found.detail
    assert "ore accurate here" not in verdict(data).detail


def test_the_verdict_says_how_other_embeddings_compare():
    data = small_report()
    close, far = (
        {"accuracy": Difference(Interval(value, value - 0.1, value + 0.1), p, p)}
        for value, p in ((0.01, 0.8), (-0.3, 0.0))
    )
    better = {"accuracy": Difference(Interval(0.2, 0.1, 0.3), 0.01, 0.02)}
    compared = {"A + logistic regression": close, "B + logistic regression": far, "C": better}
    detail = verdict(replace(data, comparisons={**compared, data.baseline: far})).detail
    assert "It cannot be told apart from A + logistic regression (+0.010 [" in detail
    assert "It is worse than B + logistic regression (\N{MINUS SIGN}0.300 [" in detail
    assert "It is better than C (+0.200 [+0.100, +0.300], p = 0.020)." in detail
    assert "worse than PCA" not in detail


def test_a_model_no_better_than_the_commonest_class_is_told_so():
    data = small_report()
    phrase = "does no better than giving every cell the commonest class"
    for accuracy, said in ((0.5, False), (0.95, True)):
        majority = Method(
            name="majority class",
            how="",
            scores=replace(data.methods[0].scores, accuracy=Interval(accuracy, 0.4, 1.0)),
        )
        found = verdict(replace(data, methods=[*data.methods, majority]))
        assert (phrase in found.sentence) == said


def test_secrets_are_removed_from_configurations():
    text = (
        "wandb_token: abc123\n"
        "nested:\n"
        "  password: 'hunter 2'\n"
        "  api_key = xyz\n"
        "- aws_secret_access_key: A/B+c\n"
        "max_tokens: 512\n"
        "tokenizer: gene\n"
        "use_auth_token: false\n"
        "secrets:\n"
        "  first: one two three\n"
        "private_token: |\n"
        "  several\n"
        "  lines\n"
        "flow: {sessionToken: inline}\n"
        "seed: 0\n"
    )
    cleaned = redacted(text)
    for secret in ("abc123", "hunter", "xyz", "A/B+c", "one two", "several", "lines", "inline"):
        assert secret not in cleaned
    assert cleaned.count("[removed]") == 7
    assert "tokenizer: gene\n" in cleaned
    assert "max_tokens: 512\n" in cleaned
    assert "use_auth_token: false\n" in cleaned
    assert cleaned.endswith("seed: 0\n")
    assert redacted("a: 1\n\nb:\n  - c\n") == "a: 1\n\nb:\n  - c\n"
    assert "[removed]" in render_report(
        small_report(runs=[Run(name="r", facts=[], curves=[], configuration=text)])
    )
