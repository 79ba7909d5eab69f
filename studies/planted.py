"""What training does to cells whose truth was planted: five studies, each a figure and its numbers.

- Every study runs the public commands, printed before they run, on cells of `omics-data
  synthesize`; only the scores are computed here. Model numbers stand beside PCA or a model that
  lacks the thing studied.
- Scores are those of cells that no model was trained on, with 95 % bootstrap intervals over them.
- `nox -s studies -- NAME` writes `work/studies/NAME/`; `--figures docs/_static/studies` writes the
  figure that the guide shows.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pyarrow.parquet as pq

from omics.data import open_store
from omics.data.splits import load_split
from omics.eval.baselines import PCA_LOGISTIC
from omics.eval.figures import COLOURS
from omics.eval.results import read_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.eval.results import EvalResult

Array = np.ndarray[Any, np.dtype[Any]]
# What `omics-train test` scores, and what the figure calls it.
HEADS = {
    "annotate:batch": "batch, by the model's head",
    "annotate:cell_type": "type, by the model's head",
}
# Embeddings of 20 values with noise of 1: how far apart types and batches are in each.
PLANTED = {"good": (4.0, 0.0), "mediocre": (2.0, 2.0), "random": (0.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a study is.

    Attributes:
        cells: made up.
        genes: made up.
        epochs: of every training.
    """

    cells: int = 1500
    genes: int = 400
    epochs: int = 20


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number with its interval.

    Attributes:
        what: is measured.
        of: which embedding or model.
        value: the number.
        low: end of the interval.
        high: end of the interval.
    """

    what: str
    of: str
    value: float
    low: float
    high: float


@dataclass
class Study:
    """A study that runs in a folder.

    Attributes:
        folder: for everything that is written.
        size: of the cells and trainings.
        seed: of everything.
        scores: found so far.
        curves: lines of the figure, `{name: (x, y)}`.
    """

    folder: Path
    size: Size
    seed: int = 0
    scores: list[Score] = field(default_factory=list)
    curves: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def make_cells(self, options: str) -> None:
        """Make up cells, a store and a split of them.

        Args:
            options: of `omics-data synthesize`.
        """
        f, size = self.folder, self.size
        run(
            f"omics-data synthesize {f}/cells.h5ad --cells {size.cells} --genes {size.genes} "
            f"--seed {self.seed} {options}"
        )
        run(f"omics-data convert {f}/cells.h5ad {f}/cells.store")
        run(f"omics-data split {f}/cells.store {f}/split.parquet --seed {self.seed}")

    def train(self, name: str, overrides: str, *, recipe: str = "pretrain") -> None:
        """Train a model.

        Args:
            name: of its folder.
            overrides: of the configuration.
            recipe: that is trained.
        """
        f = self.folder
        run(
            f"omics-train pretrain -cn {recipe} input_file={f}/cells.store "
            f"data_module.split={f}/split.parquet working_dir={f}/{name} seed={self.seed} "
            f"trainer.max_epochs={self.size.epochs} {overrides}"
        )

    def embed(self, name: str, cells: str = "cells.store") -> Array:
        """Return the embeddings of all cells by a trained model, float32 [n, d].

        Args:
            name: of the model's folder.
            cells: which are embedded.
        """
        f = self.folder
        out = f"{f}/{name}-{Path(cells).stem}.h5ad"
        run(f"omics-eval embed {f}/{cells} --model {f}/{name}/bundle --out {out}")
        return np.asarray(anndata.read_h5ad(out).obsm["X_omics"])

    def rows(self, part: str) -> Array:
        """Return the rows of a part of the split."""
        return load_split(self.folder / "split.parquet").rows(part)

    def obs(self, column: str) -> Array:
        """Return a column of obs."""
        return np.asarray(open_store(self.folder / "cells.store").obs[column]).astype(str)

    def history(self, name: str, term: str) -> tuple[Array, Array]:
        """Return epochs and validation values of a term of a model's history."""
        lines = (self.folder / name / "history.csv").read_text().splitlines()[1:]
        rows = [line.split(",") for line in lines]
        kept = [(int(r[1]), float(r[4])) for r in rows if r[2] == "validation" and r[3] == term]
        return np.array([e for e, _ in kept]), np.array([v for _, v in kept])

    def add(self, what: str, of: str, values: Array) -> None:
        """Add the mean of one number per cell, with its interval.

        Args:
            what: is measured.
            of: which model.
            values: [n], one for each held-out cell.
        """
        draws = np.random.default_rng(self.seed).integers(0, len(values), (2000, len(values)))
        low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
        self.scores.append(
            Score(what=what, of=of, value=float(values.mean()), low=float(low), high=float(high))
        )

    def add_rows(self, what: str, rows: list[EvalResult]) -> None:
        """Add numbers that a command measured.

        Args:
            what: is measured.
            rows: one of each method.
        """
        self.scores += [
            Score(what=what, of=row.method, value=row.value, low=row.low, high=row.high)
            for row in rows
        ]

    def value(self, what: str, of: str) -> Score:
        """Return a score that was added."""
        return next(score for score in self.scores if (score.what, score.of) == (what, of))


def run(command: str) -> None:
    """Run a command of the packages in this process, as if it were typed."""
    import importlib

    import typer

    print(f"$ {' '.join(command.split())}", flush=True)
    name, *arguments = shlex.split(command)
    app = importlib.import_module(f"omics.{name.removeprefix('omics-')}.cli").app
    typer.main.get_command(app)(arguments, standalone_mode=False)


def right_by_regression(x: Array, labels: Array, train: Array, test: Array) -> Array:
    """Return 1 for each test cell whose label a logistic regression finds, else 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(x[train], labels[train])
    return (model.predict(x[test]) == labels[test]).astype(float)


def right_by_neighbours(x: Array, labels: Array, train: Array, test: Array) -> Array:
    """Return 1 for each test cell with the label of most of its 15 nearest training cells."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(15).fit(x[train], labels[train])
    return (model.predict(x[test]) == labels[test]).astype(float)


def principal_components(study: Study) -> Array:
    """Return 30 components of the log-normalised counts, found on the training cells."""
    from sklearn.decomposition import PCA

    counts = open_store(study.folder / "cells.store").to_anndata().X.toarray()
    values = np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))
    return PCA(30, random_state=0).fit(values[study.rows("train")]).transform(values)


def pretraining(study: Study) -> None:
    """Pretraining lowers the loss, and its embeddings show types that it was never told."""
    study.make_cells("--marker-fold 5 --batch-effect 0.1")
    study.train("before", "trainer.learning_rate=1e-12 trainer.max_steps=1", recipe="wced")
    study.train("after", "", recipe="wced")
    study.curves["validation loss"] = study.history("after", "loss")
    types, train, test = study.obs("cell_type"), study.rows("train"), study.rows("test")
    embeddings = {
        "at initialisation": study.embed("before"),
        "pretrained": study.embed("after"),
        "PCA": principal_components(study),
    }
    for name, x in embeddings.items():
        study.add("types by neighbours", name, right_by_neighbours(x, types, train, test))


def gradient_reversal(study: Study) -> None:
    """Gradient reversal hides most of the batch, also from a new classifier, and keeps the type."""
    study.make_cells("--marker-fold 6 --batches 3 --batch-effect 0.5")
    f = study.folder
    both = "label_columns.0.label_column_name=cell_type label_columns.1.label_column_name=batch"
    # So weak that the head learns the batch, and the encoder does not notice.
    study.train("watched", f"{both} label_columns.1.gradient_reversal=1e-9", recipe="grl")
    study.train("reversed", both, recipe="grl")
    train, test, batches = study.rows("train"), study.rows("test"), study.obs("batch")
    types = study.obs("cell_type")
    for name, model in (("without reversal", "watched"), ("with reversal", "reversed")):
        run(
            f"omics-train test input_file={f}/cells.store data_module.split={f}/split.parquet "
            f"checkpoint={f}/{model}/bundle working_dir={f}/{model}-test seed={study.seed}"
        )
        for row in read_results(f / f"{model}-test/results.parquet"):
            if row.metric == "accuracy" and row.task in HEADS:
                study.scores.append(
                    Score(
                        what=HEADS[row.task],
                        of=name,
                        value=row.value,
                        low=row.low,
                        high=row.high,
                    )
                )
        x = study.embed(model)
        for what, labels in (("batch", batches), ("type", types)):
            right = right_by_regression(x, labels, train, test)
            study.add(f"{what}, by a new classifier", name, right)
    names, counts = np.unique(batches[train], return_counts=True)
    for what in ("batch, by the model's head", "batch, by a new classifier"):
        study.add(what, "most frequent", (batches[test] == names[counts.argmax()]).astype(float))


def read_depth(study: Study) -> None:
    """A model that is told depths embeds a cell and its thinned copy closer together."""
    study.make_cells("--marker-fold 8 --batch-effect 0.1")
    f = study.folder
    thin(f / "cells.h5ad", f / "thinned.h5ad", share=0.3, seed=study.seed)
    run(f"omics-data convert {f}/thinned.h5ad {f}/thinned.store")
    deepest = int(anndata.read_h5ad(f / "cells.h5ad").X.sum(1).max())
    steps = (
        "data_module.transforms=[{name:read_depth_downsample,mode:auto_align,"
        f"max_total:{deepest}}}] "
        # These cells are small: thin them all, not those above 1,000 counts alone.
        "data_module.augmentations=[{name:read_depth_downsample,threshold:0}]"
    )
    study.train("aware", steps, recipe="rda_mlm")
    study.train("unaware", "", recipe="mlm")
    types, train, test = study.obs("cell_type"), study.rows("train"), study.rows("test")
    for name, model in (("read-depth-aware", "aware"), ("plain masked modelling", "unaware")):
        whole = study.embed(model).astype(np.float64)
        thinned = study.embed(model, "thinned.store").astype(np.float64)
        # In units of the distance between two cells, so that no model gains by small vectors.
        between = np.median(np.linalg.norm(whole[test][:, None] - whole[test][None], axis=2))
        own = np.linalg.norm(whole[test] - thinned[test], axis=1)
        study.add("distance to the own copy", name, own / between)
        # A classifier of whole cells is shown thinned ones.
        mixed = np.where(np.isin(np.arange(len(whole)), test)[:, None], thinned, whole)
        study.add("type of the copy", name, right_by_regression(mixed, types, train, test))
        study.add("type of the cell", name, right_by_regression(whole, types, train, test))


def adaptive_masking(study: Study) -> None:
    """Adaptive masking hides those genes more often that validation finds hard."""
    from scipy.stats import spearmanr

    study.make_cells("--marker-fold 6 --batch-effect 0.1")
    loss = "trainer.losses=[{field_name:expression,name:mse,metrics:[gene_errors]}]"
    shown = "data_module.augmentations=[]"
    adaptive = (
        "data_module.adaptive_masking.enabled=true data_module.adaptive_masking.temperature=0.3"
    )
    study.train("uniform", f'"{loss}" {shown}')
    study.train("adaptive", f'"{loss}" {shown} {adaptive}')
    errors = pq.read_table(
        study.folder / "uniform/gene_errors/expression_masked.parquet"
    ).to_pandas()
    errors = errors.set_index("gene")["mae"]
    for name in ("uniform", "adaptive"):
        hidden = shares_hidden(study, name)
        both = errors.index.intersection(hidden.index)
        error, share = errors[both].to_numpy(), hidden[both].to_numpy()
        study.curves[name] = (error, share)
        draws = np.random.default_rng(study.seed).integers(0, len(both), (500, len(both)))
        found = [spearmanr(error[d], share[d]).statistic for d in draws]
        low, high = np.quantile(found, [0.025, 0.975])
        value = float(spearmanr(error, share).statistic)
        study.scores.append(
            Score(
                what="rank correlation of error and share hidden",
                of=name,
                value=value,
                low=float(low),
                high=float(high),
            )
        )


def embedding_ranks(study: Study) -> None:
    """The tool ranks a good, a mediocre and a random embedding, and says where PCA stands."""
    study.make_cells("--types 5 --batches 3 --marker-fold 4 --batch-effect 0.2")
    f = study.folder
    cells = open_store(f / "cells.store").to_anndata()
    types, batches = (
        np.unique(study.obs(column), return_inverse=True)[1] for column in ("cell_type", "batch")
    )
    random = np.random.default_rng(study.seed)
    for name, (of_type, of_batch) in PLANTED.items():
        places = np.hstack([of_type * np.eye(5)[types], of_batch * np.eye(3)[batches]])
        cells.obsm[name] = np.float32(
            np.hstack([places, np.zeros((len(places), 12))]) + random.normal(size=(len(places), 20))
        )
    cells.write_h5ad(f / "embedded.h5ad")
    for name in PLANTED:
        others = " ".join(f"--use-rep {other}" for other in PLANTED if other != name)
        run(
            f"omics-eval integrate {f}/embedded.h5ad --label cell_type --batch batch "
            f"--use-rep {name} {others} --results {f}/{name}.parquet --seed {study.seed}"
        )
        run(
            f"omics-eval annotate {f}/embedded.h5ad --label cell_type --split {f}/split.parquet "
            f"--use-rep {name} --out {f}/{name}.h5ad --results {f}/{name}-types.parquet"
        )
    first = next(iter(PLANTED))
    rows = read_results(f / f"{first}.parquet")
    for what, metric in (("AvgBio", "avg_bio"), ("AvgBatch", "avg_batch")):
        study.add_rows(what, [row for row in rows if row.metric == metric])
    found = [row for name in PLANTED for row in read_results(f / f"{name}-types.parquet")]
    right = {row.method: row for row in found if row.metric == "accuracy"}
    methods = {name: f"{name} + logistic" for name in PLANTED} | {"PCA": PCA_LOGISTIC}
    study.add_rows(
        "accuracy", [replace(right[method], method=name) for name, method in methods.items()]
    )


def shares_hidden(study: Study, name: str) -> Any:
    """Return the share of its tokens that each gene was hidden in, in the epoch after the last.

    The masks of a run are not saved, so the run is made again from its own configuration.
    """
    import pandas as pd

    from omics.train.fitting import fit
    from omics.train.run_files import read_configuration
    from omics.train.train_run import prepare_training

    folder = study.folder / name
    config = read_configuration(folder)
    training = prepare_training(config, open_store(study.folder / "cells.store"))
    fit(training, config, folder.with_name(f"{folder.name}-again"))
    names = training.source.tokenizer.vocabulary.tokens
    hidden, shown = np.zeros(len(names)), np.zeros(len(names))
    for batch in (batch for step in training.batches for batch in step.batches):
        hidden += np.bincount(np.asarray(batch.questions["expression"].genes), minlength=len(names))
        shown += np.bincount(np.asarray(batch.tokens.fields["genes"]), minlength=len(names))
    often = shown >= 20
    return pd.Series(
        hidden[often] / shown[often], [n for n, o in zip(names, often, strict=True) if o]
    )


def thin(source: Path, out: Path, *, share: float, seed: int) -> None:
    """Write a copy of cells that keeps each count with the same probability."""
    adata = anndata.read_h5ad(source)
    counts = np.random.default_rng(seed).binomial(adata.X.data.astype(np.int64), share)
    adata.X.data = counts.astype(np.float32)
    adata.X.eliminate_zeros()
    adata.write_h5ad(out)


STUDIES: dict[str, Callable[[Study], None]] = {
    "pretraining": pretraining,
    "gradient_reversal": gradient_reversal,
    "read_depth": read_depth,
    "adaptive_masking": adaptive_masking,
    "embedding_ranks": embedding_ranks,
}


def figure(study: Study) -> bytes:
    """Return the scores as dots with intervals, beside the curves, as SVG."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    what = list(dict.fromkeys(score.what for score in study.scores))
    panels = len(what) + bool(study.curves)
    drawn = Figure(figsize=(3.4 * panels, 2.6), layout="constrained")
    axes = np.atleast_1d(drawn.subplots(1, panels))
    for ax, name in zip(axes, what, strict=False):
        scores = [score for score in study.scores if score.what == name][::-1]
        values = np.array([score.value for score in scores])
        ends = np.abs([[score.low for score in scores], [score.high for score in scores]] - values)
        ax.errorbar(values, range(len(scores)), xerr=ends, fmt="o", color=COLOURS[0], capsize=3)
        ax.set_yticks(range(len(scores)), [score.of for score in scores])
        ax.set_ylim(-0.6, len(scores) - 0.4)
        ax.set_title(name, fontsize=10)
        ax.locator_params(axis="x", nbins=4)
        ax.grid(axis="x", color="#DDDDDD")
    for number, (name, (x, y)) in enumerate(study.curves.items()):
        many = len(study.curves) > 1
        axes[-1].plot(x, y, "." if many else "-", color=COLOURS[number], label=name, markersize=3)
        axes[-1].set_title("genes" if many else name, fontsize=10)
        axes[-1].set_xlabel("error in validation" if many else "epoch")
        if many:
            axes[-1].set_ylabel("share of tokens hidden")
            axes[-1].legend(fontsize=8)
    written = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "omics", "font.size": 9}):
        drawn.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def main() -> None:
    """Run studies by name and write their numbers and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--work", type=Path, default=Path("work/studies"))
    parser.add_argument("--figures", type=Path, help="another folder for the figures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.names or STUDIES:
        if name not in STUDIES:
            parser.error(f"there is no study {name!r}: {', '.join(STUDIES)}")
        folder = options.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        study = Study(folder=folder, size=Size(), seed=options.seed)
        STUDIES[name](study)
        (folder / "scores.json").write_text(json.dumps([asdict(s) for s in study.scores], indent=1))
        for place in {folder, options.figures or folder}:
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.svg").write_bytes(figure(study))
        for score in study.scores:
            print(
                f"{score.what}, {score.of}: {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
            )


if __name__ == "__main__":
    main()
