"""The command `omics-eval`, with most of its verbs.

- Every verb reads an input, leaves it as it is, and writes one output, whole or not at all.
- Outputs are refused before any work is done; so are names that the input does not have.
"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omics.data.atomic_files import require_free
from omics.data.command_line import make_app, print_json, progress, run, say
from omics.data.errors import UsageError
from omics.eval import embed_command
from omics.eval.annotating import annotate_command
from omics.eval.benchmarking import benchmark_command
from omics.eval.command_options import (
    Label,
    Out,
    Overwrite,
    Seed,
    Split,
    named_paths,
)
from omics.eval.integration import integrate_command

if TYPE_CHECKING:
    from omics.eval.results import EvalResult

app = make_app(
    "omics-eval",
    "Embed cells with a model, transfer labels, and report how it does beside plain baselines.",
)


embed_command.add_to(app)
annotate_command.add_to(app)
integrate_command.add_to(app)
benchmark_command.add_to(app)


class ValuesName(StrEnum):
    """What the values of `perturb` are."""

    counts = "counts"
    log_e = "log-e"
    log_2 = "log-2"
    log_10 = "log-10"
    linear = "linear"


class AttributionMethod(StrEnum):
    """Methods of `attribute`."""

    integrated_gradients = "integrated_gradients"
    rollout = "rollout"


class BaselineName(StrEnum):
    """What `attribute` compares a gene with."""

    mask = "mask"
    zero = "zero"


class TargetName(StrEnum):
    """Which classes `attribute` explains of a cell."""

    predicted = "predicted"
    every = "every"


class TableFormat(StrEnum):
    """Formats of tables."""

    parquet = "parquet"
    csv = "csv"


@app.command("attribute")
def attribute_command(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="An .h5ad file with counts, or a store folder.")
    ],
    *,
    models: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="A fine-tuned bundle folder, hf:owner/name, or another model as in `embed`. Further "
            "ones (other seeds) tell whether they have the same top genes.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    label: Annotated[
        str | None, typer.Option("--label", help="The label to explain. Default: the only one.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class to explain; repeatable. Default: all."),
    ] = None,
    targets: Annotated[
        TargetName,
        typer.Option("--targets", help="Explain the class that the model gives a cell, or every."),
    ] = TargetName.predicted,
    method: Annotated[
        AttributionMethod, typer.Option("--method", help="How genes are scored.")
    ] = AttributionMethod.integrated_gradients,
    baseline: Annotated[
        BaselineName,
        typer.Option(
            "--baseline",
            help="What a gene is compared with: a token that says nothing, or itself at value 0.",
        ),
    ] = BaselineName.mask,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Points on the path of integrated gradients.")
    ] = 32,
    num_top: Annotated[
        int, typer.Option("--top", min=1, help="Genes listed for each class, and hidden in checks.")
    ] = 20,
    max_cells: Annotated[
        int, typer.Option("--max-cells", min=1, help="Cells drawn at random from the input.")
    ] = 1000,
    split: Annotated[
        Path | None,
        typer.Option("--split", help="A split of these cells, from `omics-data split`."),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", help="Its part to explain. Default: test.")
    ] = None,
    checks: Annotated[
        bool, typer.Option("--checks/--no-checks", help="Whether the scores are put to the test.")
    ] = True,
    table_format: Annotated[
        TableFormat, typer.Option("--format", help="Of the tables.")
    ] = TableFormat.parquet,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", min=1, help="Tokens at once. Default: by the device."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[
        int, typer.Option("--seed", help="Of cells drawn, random genes, shuffles, intervals.")
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Tell which genes make a fine-tuned model give cells their class, and whether that holds.

    Writes a score for each gene of each cell, the top genes of each class with intervals and tests,
    the checks, and a figure.
    """
    from omics.data import load_split
    from omics.data.cell_source import open_cells
    from omics.eval.attribution import attribute_files, check_output

    if split is None and query is not None:
        raise UsageError(f"--query {query} is a part of a split: add --split FILE.")
    check_output(out, table_format=table_format.value, overwrite=overwrite)
    with open_cells(source) as store, progress("explaining", None) as advance:
        found = attribute_files(
            store,
            models,
            out,
            rows=None if split is None else load_split(split, store).rows(query or "test"),
            table_format=table_format.value,
            overwrite=overwrite,
            on_progress=advance,
            label=label,
            classes=classes,
            targets=targets.value,
            method=method.value,
            baseline=baseline.value,
            steps=steps,
            num_top=num_top,
            max_cells=max_cells,
            checks=checks,
            seed=seed,
            batch_tokens=batch_tokens,
            device=device,
        )
    for line in found.lines():
        say(line)
    say(f"{out}: scores of {found.num_cells:,} cells, top genes and a figure")


@app.command("report")
def report_command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="An .h5ad file with embeddings; or several of the same cells, one a bundle.",
        ),
    ],
    *,
    label: Label,
    split: Split,
    out: Out,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Folder of `omics-train predict`: the tuned model."),
    ] = None,
    named_runs: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="NAME=DIR", help="A training run to show; repeatable."),
    ] = None,
    use_rep: Annotated[
        list[str] | None,
        typer.Option(
            "--use-rep",
            help="An embedding in obsm; repeatable, the one of interest first. Default: X_omics.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option("--batch", help="The column of batches: also score integration."),
    ] = None,
    genes: Annotated[
        Path | None,
        typer.Option("--genes", help="Folder of `omics-eval attribute`: show the top genes."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A bundle or its name, to show its card; repeatable."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group", help="A column, such as the donor, that the split should not divide."
        ),
    ] = None,
    commands: Annotated[
        list[str] | None,
        typer.Option("--command", metavar="TEXT", help="How to reproduce it; repeatable."),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write one offline HTML page: the verdict, methods with intervals, figures, configuration.

    The baselines are computed here, on the cells and the split given. Several embeddings, or files,
    stand side by side; the page is about the first.
    """
    from omics.data import load_split
    from omics.data.atomic_files import write_bytes
    from omics.eval.joined_embeddings import join_embeddings
    from omics.eval.report import render_report
    from omics.eval.report_inputs import ReportRequest, gather_report

    require_free(out, overwrite=overwrite)
    keys = use_rep or ["X_omics"]
    if len(sources) > 1 and len(keys) > 1:
        raise UsageError(
            "Name several files with one --use-rep, or one file with several: not both at once."
        )
    cells, joined = join_embeddings(sources, keys[0])
    embeddings = joined if len(sources) > 1 else tuple(keys)
    request = ReportRequest(
        label=label,
        dataset=sources[0].name,
        use_rep=embeddings[0],
        others=embeddings[1:],
        batch=batch,
        predictions=predictions,
        runs=named_paths(named_runs or [], "--run"),
        genes=genes,
        models=models or [],
        group=group,
        commands=commands or [],
        seed=seed,
    )
    page = render_report(gather_report(cells, load_split(split), request))
    write_bytes(out, page.encode())
    say(str(out))


@app.command("perturb")
def perturb_command(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="An .h5ad file, or a .parquet table with a column a gene: cells or means.",
        ),
    ],
    *,
    truth: Annotated[
        Path, typer.Option("--truth", metavar="CELLS", help="Measured cells: .h5ad or a store.")
    ],
    perturbation: Annotated[
        str, typer.Option("--perturbation", metavar="COL", help="The column of perturbations.")
    ],
    control: Annotated[
        str, typer.Option("--control", metavar="NAME", help="The value of controls in it.")
    ],
    out: Out,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            help="From `omics-data split --perturbation`. Default: what is predicted is tested, and "
            "all other perturbations teach the baselines.",
        ),
    ] = None,
    query: Annotated[str, typer.Option("--query", help="The split to score.")] = "test",
    separator: Annotated[
        str, typer.Option("--separator", help="Between the parts of a combination.")
    ] = "+",
    covariate: Annotated[
        str | None,
        typer.Option(
            "--covariate", metavar="COL", help="Such as the cell line: compare within each."
        ),
    ] = None,
    truth_values: Annotated[
        ValuesName, typer.Option("--truth-values", help="What the measured values are.")
    ] = ValuesName.counts,
    prediction_values: Annotated[
        ValuesName, typer.Option("--prediction-values", help="What the predicted values are.")
    ] = ValuesName.log_e,
    shared_genes: Annotated[
        bool,
        typer.Option(
            "--shared-genes", help="Leave out, for every method, genes that are not predicted."
        ),
    ] = False,
    each: Annotated[
        Path | None,
        typer.Option("--each", help="Also write the scores of each perturbation (.parquet, .csv)."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What the predictions are of.")] = "model",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score predicted perturbations beside plain baselines, on means over cells.

    Values of log-e, log-2 and log-10 are logarithms of 1 + expression. Genes that the predictions
    lack are never filled in.
    """
    from omics.eval.perturbation_comparison import compare_perturbations
    from omics.eval.perturbation_inputs import ScreenColumns, read_measured, read_predicted
    from omics.eval.results import write_results
    from omics.eval.table_files import check_suffix

    for path in (out, each):
        if path is not None:
            require_free(path, overwrite=overwrite)
    if each is not None:
        check_suffix(each)
    columns = ScreenColumns(
        perturbation=perturbation, control=control, separator=separator, covariate=covariate
    )
    measured = read_measured(truth, columns, values=truth_values.value, split=split, query=query)
    predicted = read_predicted(predictions, measured, values=prediction_values.value)
    compared = compare_perturbations(measured, predicted, model=name, shared_genes=shared_genes)
    rows = compared.rows(task=f"perturb:{perturbation}", dataset=truth.name, seed=seed)
    write_results(out, rows)
    if each is not None:
        compared.write_each(each)
    if as_json:
        counted = {"genes": compared.num_genes, "genes_left_out": compared.num_genes_left_out}
        record = {"out": str(out), **counted, "notes": compared.notes}
        # The interval of an error of a single perturbation has no end, and JSON no infinity.
        finite = [
            {key: None if value in (inf, -inf) else value for key, value in asdict(row).items()}
            for row in rows
        ]
        print_json({**record, "results": finite})
        return
    left_out = compared.num_genes_left_out
    without = f" ({left_out:,} that are not predicted left out)" if left_out else ""
    say(f"{compared.num_genes:,} genes{without}, 95% intervals over perturbations")
    _say_perturbations(rows)
    for note in compared.notes:
        say(f"note: {note}")
    say(str(out))


def _say_perturbations(rows: list[EvalResult]) -> None:
    """Print a line a method and task: the metrics that tell most, with their intervals."""
    shown = ("delta_pearson", "delta_pearson_de", "mae", "discrimination", "direction_accuracy_de")
    by_method: dict[tuple[str, str], dict[str, EvalResult]] = {}
    for row in rows:
        found = by_method.setdefault((row.task, row.method), {})
        found[row.metric.removesuffix("_difference")] = row
    width = max(len(method) for _, method in by_method)
    last = ""
    for (task, method), values in by_method.items():
        if task != last:
            say(f"{task}, {max(row.n for row in values.values()):,} perturbations")
            say(f"{'':{width}}  " + "  ".join(f"{name:23}" for name in shown).rstrip())
            last = task
        texts = [
            f"{values[m].value:.3f} [{values[m].low:.3f}, {values[m].high:.3f}]"
            if m in values
            else "-"
            for m in shown
        ]
        say(f"{method:{width}}  " + "  ".join(f"{text:23}" for text in texts).rstrip())


def main() -> None:
    """Run the command."""
    run(app)
