"""`Explainer`: token batches of a bundle to scores of genes for classes, with their checks by cell.

- A pair is a cell and a class that its label head was asked about: the class that the model gives the
  cell, or every class. Each pair has a score for each gene token of its cell.
- What is checked of a pair is measured where its tokens are at hand: whether the scores add up, how
  far the log odds fall without the top genes and without as many random ones, and how like the scores
  are to those of models with shuffled weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.errors import ConfigError, InputDataError, UnknownNameError, UsageError, nearest
from omics.data.keyed_random import keyed_uniform
from omics.eval.attention_rollout import attention_rollout, check_rollout
from omics.eval.gene_baseline import BASELINES, GeneBaseline
from omics.eval.integrated_gradients import (
    captum_class,
    integrated_gradients,
    label_logits,
    log_odds,
)
from omics.models.label_answers import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.models.bundle import Bundle
    from omics.models.model import OmicsModel
    from omics.tokenizers import LabelSpec, TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]

METHODS = ("integrated_gradients", "rollout")
TARGETS = ("predicted", "every")
# What a number has in place of a class.
VALUE = "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionOptions:
    """What is asked of a model, and how.

    Attributes:
        label: whose head is explained; None for the only one of the bundle.
        classes: those that are explained; None for all.
        targets: `predicted` explains each cell for the class that the model gives it (of a label of
            several, each that it gives), `every` for every class.
        method: `integrated_gradients`, or `rollout` of attention.
        baseline: what integrated gradients compare with, and what hidden genes show: `mask` or
            `zero` (see the guide).
        steps: of integrated gradients: points on the path.
        num_top: genes listed for each class; so many are hidden and compared in the checks, too.
        max_cells: cells drawn at random from those given, so that a large set costs no more.
        checks: whether they are made; the models with shuffled weights treble the cost.
        seed: of the cells drawn, the random genes, the shuffled weights and the intervals.
        batch_tokens: tokens at once, special ones included; a longer cell is run alone. None takes
            2,048 on a CPU and 16,384 on a GPU: gradients need several times the memory of answers.
        device: `auto`, `cpu`, `cuda`, ...
    """

    label: str | None = None
    classes: Sequence[str] | None = None
    targets: str = "predicted"
    method: str = "integrated_gradients"
    baseline: str = "mask"
    steps: int = 32
    num_top: int = 20
    max_cells: int = 1000
    checks: bool = True
    seed: int = 0
    batch_tokens: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check the names and numbers."""
        for name, known in (("method", METHODS), ("baseline", BASELINES), ("targets", TARGETS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} is {value!r}.{nearest(value, known)}")
        for name in ("steps", "num_top", "max_cells", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedCells:
    """P pairs of a cell and a class, with E scores of genes in all.

    Attributes:
        rows: int64 [P], rows of the cells in their store.
        classes: int64 [P], numbers of the classes.
        offsets: int64 [P + 1]; pair `i` owns the scores `offsets[i]:offsets[i + 1]`.
        genes: int64 [E], places in the vocabulary.
        scores: float64 [E].
        of_field: `{field: float64 [E]}`, the part of each field; empty where there are no parts.
        measured: `{name: float64 [P]}`, what was checked; NaN where it is undefined.
    """

    rows: Array
    classes: Array
    offsets: Array
    genes: Array
    scores: Array
    of_field: dict[str, Array]
    measured: dict[str, Array]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.rows)


class Explainer:
    """A bundle and what is asked of it.

    Attributes:
        spec: the label that is explained.
        class_names: what the outputs of its head stand for; `value` for a number.
        baseline: what hidden genes show.

    Args:
        bundle: with label heads; its model is moved to the device.
        options: what is asked.
        device: where models run.

    Raises:
        ConfigError: no label head, or an ambiguous one, or what the method needs is not there.
        UnknownNameError: no such label or class.
        MissingExtraError: captum is not installed.
    """

    def __init__(
        self, bundle: Bundle, options: AttributionOptions, device: torch.device | str = "cpu"
    ) -> None:
        self.spec = _label(bundle, options.label)
        self.class_names = (VALUE,) if is_number(self.spec) else self.spec.classes
        self._wanted = _wanted(self.spec, self.class_names, options.classes)
        self.baseline = GeneBaseline.of(bundle, options.baseline)
        self._options = options
        self._device = device
        if options.method == "rollout":
            check_rollout(bundle.model)
        else:
            captum_class()
        self._model = bundle.model.eval().to(device)
        names = [label.name for label in self._model.model_config.labels]
        head = f"label_heads.{names.index(self.spec.name)}."
        # What is shuffled, by the name of the check.
        self._shuffled = {"head": head, "model": ""} if options.checks else {}

    def explain(self, batch: TokenBatch, *, seen: Array) -> ExplainedCells:
        """Return the scores of the genes of some cells.

        Args:
            batch: numpy tokens.
            seen: bool [n], cells of which the model sees a gene; others have no scores.

        Raises:
            InputDataError: the model gives a logit that is not finite.
        """
        options = self._options
        logits = self._logits(batch)
        faulty = seen & ~np.isfinite(logits).all(axis=1)
        if faulty.any():
            raise InputDataError(
                f"The model gives logits that are not finite, first for the cell in row "
                f"{int(batch.rows[np.argmax(faulty)])}. Its weights are at fault: train again, or "
                "take an earlier bundle."
            )
        targets = targets_of(self.spec, logits, self._wanted, every=options.targets == "every")
        targets = np.where(seen[:, None], targets, -1)
        is_gene = self.baseline.is_gene(batch)
        compared = self.baseline.instead_of(batch, is_gene)
        parts = self._scores(self._model, batch, compared, targets)
        total = np.sum(list(parts.values()), axis=0)
        cell, place = np.nonzero(targets >= 0)
        measured = {}
        if options.checks:
            now = self._log_odds(logits, targets)
            if options.method == "integrated_gradients":
                changed = now - self._log_odds(self._logits(compared), targets)
                measured["completeness_error"] = _completeness_errors(batch, total, changed)
            for name, hidden in self._hidden(batch, is_gene, total).items():
                left = [
                    self._log_odds(self._logits(self.baseline.instead_of(batch, each)), targets)
                    for each in hidden.T
                ]
                # Each round hides the genes of its own class.
                of_round = np.arange(targets.shape[1])
                measured[name] = now - np.stack(left)[of_round % len(left), :, of_round].T
        measured = {name: values[cell, place] for name, values in measured.items()}
        index, offsets = _entries(batch, is_gene, cell)
        rounds = np.repeat(place, np.diff(offsets))
        scores = total[index, rounds]
        for name, prefix in self._shuffled.items():
            # Shuffled anew for each batch: a single order may by chance turn all scores round.
            first = int(batch.rows[0])
            model = shuffled_model(self._model, prefix=prefix, seed=[options.seed, first])
            others = self._scores(model, batch, compared, targets)
            other = np.sum(list(others.values()), axis=0)[index, rounds]
            measured[f"correlation_shuffled_{name}"] = rank_correlations(offsets, scores, other)
        tokens = np.asarray(batch.fields[self.baseline.genes.name])[index]
        return ExplainedCells(
            rows=np.asarray(batch.rows, np.int64)[cell],
            classes=targets[cell, place],
            offsets=offsets,
            genes=self.baseline.gene_of(tokens),
            scores=scores,
            of_field={name: part[index, rounds] for name, part in parts.items()}
            if len(parts) > 1
            else {},
            measured=measured,
        )

    def _scores(
        self, model: OmicsModel, batch: TokenBatch, compared: TokenBatch, targets: Array
    ) -> dict[str, Array]:
        """Return `{field: float64 [T, R]}`; roll-out has one nameless part."""
        spec, device = self.spec, self._device
        if self._options.method == "rollout":
            relevance = attention_rollout(model, batch, label=spec.name, device=device)
            return {"": np.repeat(relevance[:, None], targets.shape[1], axis=1)}
        steps = self._options.steps
        return integrated_gradients(
            model, batch, compared, targets, spec=spec, steps=steps, device=device
        )

    def _logits(self, batch: TokenBatch) -> Array:
        return label_logits(self._model, batch, label=self.spec.name, device=self._device)

    def _log_odds(self, logits: Array, targets: Array) -> Array:
        """Return float64 [n, R], the log odds of the classes of each cell, NaN for none."""
        found = np.full(targets.shape, np.nan)
        for place, classes in enumerate(targets.T):
            cells = np.flatnonzero(classes >= 0)
            chosen = torch.from_numpy(logits[cells]), torch.from_numpy(classes[cells])
            found[cells, place] = log_odds(self.spec, *chosen).numpy()
        return found

    def _hidden(self, batch: TokenBatch, is_gene: Array, total: Array) -> dict[str, Array]:
        """Return which genes the checks hide, bool [T, R] of the top ones and [T, 1] of random ones."""
        rows = np.asarray(batch.rows, np.int64)[batch.cell_of_token()]
        genes = self.baseline.gene_of(np.asarray(batch.fields[self.baseline.genes.name]))
        draws = keyed_uniform(rows, genes, seed=self._options.seed, epoch=0, stream="random genes")
        return {
            name: np.stack(
                [top_tokens(batch, each, is_gene, self._options.num_top) for each in order.T],
                axis=1,
            )
            for name, order in (("drop_top", total), ("drop_random", draws[:, None]))
        }


def targets_of(spec: LabelSpec, logits: Array, wanted: Array, *, every: bool) -> Array:
    """Return int64 [n, R], the classes that each cell is explained for, -1 for none.

    Args:
        spec: of the label.
        logits: [n, C].
        wanted: bool [C].
        every: whether all wanted classes are, or those that the model gives the cell.
    """
    if every or is_number(spec):
        return np.tile(np.flatnonzero(wanted), (len(logits), 1))
    if spec.kind == "multilabel":
        # The sigmoid is one half or more where the logit is not negative.
        given = (logits >= 0) & wanted
        most = max(1, int(given.sum(axis=1).max(initial=0)))
        first = np.argsort(~given, axis=1, kind="stable")[:, :most]
        return np.where(np.take_along_axis(given, first, axis=1), first, -1)
    best = logits.argmax(axis=1)
    return np.where(wanted[best], best, -1)[:, None]


def top_tokens(batch: TokenBatch, order: Array, is_gene: Array, limit: int) -> Array:
    """Return bool [T], the gene tokens of each cell that come first.

    Args:
        batch: numpy tokens.
        order: float [T]; the highest come first, of equal ones the earlier token.
        is_gene: bool [T].
        limit: how many of each cell.
    """
    from omics.data.storage.gather import mark_top

    values = np.where(is_gene, order, -np.inf)
    return mark_top(np.asarray(batch.offsets), values, limit) & is_gene


def rank_correlations(offsets: Array, first: Array, second: Array) -> Array:
    """Return Spearman's correlation of two lists of scores for each pair, NaN where undefined.

    Args:
        offsets: int64 [P + 1], where the scores of each pair are.
        first: float [E].
        second: float [E].
    """
    pair = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))

    def mean(values: Array) -> Array:
        sums = np.bincount(pair, values, minlength=len(offsets) - 1)
        return np.asarray(sums / np.maximum(np.diff(offsets), 1))

    x, y = (_ranks(pair, values) for values in (first, second))
    x, y = x - mean(x)[pair], y - mean(y)[pair]
    spread = np.sqrt(mean(x * x) * mean(y * y))
    return np.where(spread > 0, mean(x * y) / np.where(spread > 0, spread, 1), np.nan)


def shuffled_model(model: OmicsModel, *, prefix: str, seed: Sequence[int]) -> OmicsModel:
    """Return a copy whose trained weights are shuffled, each tensor within itself.

    Sizes and spread of the weights stay, and what was learned goes: what explains the model must
    change with it (Adebayo et al. 2018, Sanity Checks for Saliency Maps).

    Args:
        model: left as it is.
        prefix: of the names of the weights that are shuffled.
        seed: of the order, in numbers of 0 and more.
    """
    (state,) = np.random.SeedSequence(seed).generate_state(1, np.uint32)
    generator = torch.Generator().manual_seed(int(state))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weights in other.named_parameters():
            if name.startswith(prefix) and weights.requires_grad:
                order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
                weights.copy_(weights.flatten()[order].view_as(weights))
    return other


def _ranks(pair: Array, values: Array) -> Array:
    """Return float64 [E], ranks over all pairs at once; ties share their mean rank."""
    order = np.lexsort((values, pair))
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(values[order]) != 0) | (np.diff(pair[order]) != 0)
    group = np.cumsum(new) - 1
    ranks = np.empty(len(order))
    sizes = np.bincount(group)
    ranks[order] = (np.bincount(group, np.arange(len(order))) / np.maximum(sizes, 1))[group]
    return ranks


def _completeness_errors(batch: TokenBatch, total: Array, changed: Array) -> Array:
    """Return [n, R], what the scores of a cell miss, as a share of the sum of their sizes."""
    cell = batch.cell_of_token()
    missed = []
    for scores, change in zip(total.T, changed.T, strict=True):
        sums, sizes = (
            np.bincount(cell, values, minlength=len(batch)) for values in (scores, np.abs(scores))
        )
        missed.append(np.abs(sums - change) / np.maximum(sizes, np.finfo(np.float32).tiny))
    return np.stack(missed, axis=1)


def _entries(batch: TokenBatch, is_gene: Array, cell: Array) -> tuple[Array, Array]:
    """Return the gene tokens of the cell of each pair, int64 [E], and their offsets [P + 1]."""
    places = np.flatnonzero(is_gene)
    bounds = np.searchsorted(places, np.asarray(batch.offsets))
    lengths = np.diff(bounds)[cell]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    shift = np.repeat(bounds[:-1][cell] - offsets[:-1], lengths)
    return places[np.arange(offsets[-1]) + shift], offsets


def _label(bundle: Bundle, name: str | None) -> LabelSpec:
    specs = {spec.name: spec for spec in bundle.label_specs}
    if not specs:
        raise ConfigError(
            "This bundle has no label heads, so there is no answer to explain: fine-tune it first "
            "(omics-train finetune)."
        )
    if name is None:
        if len(specs) > 1:
            raise ConfigError(f"This bundle has the labels {', '.join(specs)}: name one (label).")
        return next(iter(specs.values()))
    if name not in specs:
        raise UnknownNameError(f"This bundle has no label {name!r}.{nearest(name, list(specs))}")
    return specs[name]


def _wanted(spec: LabelSpec, names: Sequence[str], classes: Sequence[str] | None) -> Array:
    if classes is None:
        return np.ones(len(names), np.bool_)
    for each in classes:
        if each not in names:
            raise UnknownNameError(
                f"The label {spec.name!r} has no class {each!r}.{nearest(each, list(names))}"
            )
    return np.isin(np.array(names, dtype=object), list(classes))
