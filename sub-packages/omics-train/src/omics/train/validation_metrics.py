"""Metrics of validation: torchmetrics on the device, fed with what the loss terms predict.

- A metric that is not defined (a correlation without spread, no cell at all) is left out. Averages
  over classes are over those that occur in the truth or the prediction; areas under curves over
  those that occur in the truth beside others.
- All states are sums or lists, reduced over processes by torchmetrics before anything is computed.
  Every process takes part for every metric, also where it saw nothing to measure: otherwise the
  others would wait for it forever.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torchmetrics
from torch import Tensor, nn
from torchmetrics import classification
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.text import Perplexity
from torchmetrics.utilities import dim_zero_cat

from omics.train.gene_errors import GeneErrors
from omics.train.metric_table import CONFUSION, GENE_ERRORS, metric_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from omics.models import ModelOutput
    from omics.train.losses import Examples, LossTerm
    from omics.train.training_batch import TrainingBatch

# Scores of genes are too many to keep: their curves are drawn at so many thresholds.
THRESHOLDS = 1000


class ClassAreas(torchmetrics.Metric):
    """The mean over classes of an area under a curve, each class against the rest; exact.

    Args:
        area: of scores [K] and truth [K].
        num_classes: C.
    """

    full_state_update = False
    scores: list[Tensor]
    truth: list[Tensor]

    def __init__(self, area: Callable[..., Tensor], num_classes: int) -> None:
        super().__init__()
        self.area = area
        self.num_classes = num_classes
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("truth", default=[], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Add probabilities [K, C] with class numbers [K] or 0 and 1 [K, C]."""
        self.scores.append(predicted)
        self.truth.append(truth)

    def hold_shape(self, *, is_multilabel: bool) -> None:
        """Hold nothing in the shape of something, as joining over processes needs."""
        if not self.scores:
            nothing = torch.zeros(0, self.num_classes, device=self.device)
            self.scores.append(nothing)
            self.truth.append((nothing if is_multilabel else nothing[:, 0]).long())

    def compute(self) -> Tensor:
        """Return the mean; NaN where no class occurs beside another."""
        scores, truth = dim_zero_cat(self.scores), dim_zero_cat(self.truth)
        areas = []
        for number in range(scores.shape[1]):
            holds = (truth == number if truth.ndim == 1 else truth[:, number] == 1).long()
            if 0 < int(holds.sum()) < len(holds):
                areas.append(self.area(scores[:, number], holds, validate_args=False))
        return torch.stack(areas).mean() if areas else torch.tensor(math.nan)


class MatthewsCorrelation(classification.MulticlassConfusionMatrix):
    """Matthews' correlation of classes (Gorodkin 2004); 0 where truth or prediction are constant.

    As scikit-learn has it; that of torchmetrics is another number there.
    """

    def compute(self) -> Tensor:
        """Return the correlation."""
        counts = super().compute().double()
        total, true, predicted = counts.sum(), counts.sum(1), counts.sum(0)
        covariance = counts.trace() * total - (true * predicted).sum()
        spread = (total**2 - true.square().sum()) * (total**2 - predicted.square().sum())
        return covariance / spread.sqrt() if spread > 0 else torch.zeros_like(covariance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        source: what was predicted.
        counts: int64 [C, C], rows by truth, columns by prediction.
    """

    source: str
    counts: Tensor


class ValidationMetrics(nn.Module):
    """The metrics of an objective's terms, over one validation.

    Args:
        terms: with the names of their metrics.
        num_ids: size of the gene vocabulary.
        sizes: `{source: number of classes or token ids}`.
        tracked: terms whose errors are kept by gene although no table is asked for.
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        *,
        num_ids: int,
        sizes: Mapping[str, int],
        tracked: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.numbers: dict[str, torchmetrics.Metric] = {}
        self.gene_errors: dict[str, GeneErrors] = {}
        self._keys: dict[str, list[str]] = {term.name: [] for term in terms}
        self._multilabel = {term.source for term in terms if term.about == "multilabel"}
        for term in terms:
            for name in term.metrics:
                key = metric_key(term, name)
                if name != GENE_ERRORS and key not in self.numbers:
                    self.numbers[key] = _made(term.about, name, sizes.get(term.source, 0))
                    self._keys[term.name].append(key)
            if GENE_ERRORS in term.metrics or term.name in tracked:
                self.gene_errors[term.name] = GeneErrors(num_ids)
        # Registered for their device; a key may hold a dot, which a module name must not.
        self._modules_of_metrics = nn.ModuleList(
            [*self.numbers.values(), *self.gene_errors.values()]
        )

    @torch.no_grad()
    def update(self, terms: Sequence[LossTerm], output: ModelOutput, batch: TrainingBatch) -> None:
        """Add one batch.

        Args:
            terms: on the device.
            output: of the model.
            batch: on the device.
        """
        for term in terms:
            keys, errors = self._keys[term.name], self.gene_errors.get(term.name)
            if not keys and errors is None:
                continue
            examples = term.examples(output, batch)
            if not len(examples.truth):
                continue
            if errors is not None:
                errors.update(term.about, examples)
            predicted, truth = _as_read(term.about, examples)
            for key in keys:
                metric = self.numbers[key]
                if isinstance(metric, Perplexity):  # Reads logits of a batch of texts.
                    metric.update(examples.predicted[None], truth[None])
                elif isinstance(metric, MatthewsCorrelation) and predicted.ndim == 1:
                    metric.update((predicted > 0.5).long(), truth)
                else:
                    metric.update(predicted, truth)

    def read(self) -> tuple[dict[str, float], list[Confusion]]:
        """Return numbers and confusion matrices over all processes, and start those again."""
        numbers: dict[str, float] = {}
        confusions = []
        for errors in self.gene_errors.values():
            errors.join()
        for (key, metric), is_used in zip(self.numbers.items(), self._are_used(), strict=True):
            value = _computed(metric) if is_used else None
            if key.endswith(CONFUSION):
                if value is not None:
                    source = key.removesuffix(f"_{CONFUSION}")
                    confusions.append(Confusion(source=source, counts=value.cpu()))
            elif value is not None and math.isfinite(number := float(value)):
                numbers[key] = number
            metric.reset()
        return numbers, confusions

    def _are_used(self) -> list[bool]:
        """Return which metrics have something to measure in any process, the same in all."""
        used = torch.tensor([metric.update_called for metric in self.numbers.values()])
        if not (dist.is_available() and dist.is_initialized()):
            return used.tolist()
        for key, metric in self.numbers.items():
            if isinstance(metric, ClassAreas):
                source = key.rsplit("_", 1)[0]
                metric.hold_shape(is_multilabel=source in self._multilabel)
        shared = used.to(_device_of_exchange(), torch.int32)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [bool(each) for each in shared.tolist()]


def _device_of_exchange() -> torch.device:
    """Return where tensors must be for the process group: NCCL does not take those of the host."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _as_read(about: str, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return predictions and truth as torchmetrics reads them: probabilities, whole numbers."""
    if about in ("zeros", "multilabel"):
        return examples.predicted.sigmoid(), examples.truth.long()
    if about in ("classes", "tokens"):
        return examples.predicted.softmax(-1), examples.truth
    return examples.predicted, examples.truth


def _computed(metric: torchmetrics.Metric) -> Tensor | None:
    if isinstance(metric, classification.BinaryAUROC | classification.BinaryAveragePrecision):
        with metric.sync_context():
            by_truth = metric.confmat[0].sum(-1)  # Zeros that are none, zeros.
        if not bool((by_truth > 0).all()):
            return None
    with warnings.catch_warnings():
        # What is not defined is left out, so nobody needs to be warned of it.
        warnings.simplefilter("ignore", UserWarning)
        return metric.compute()


def _made(about: str, name: str, num_classes: int) -> torchmetrics.Metric:
    """Return a new metric."""
    area = _AREAS.get(name)
    if area is not None and about != "zeros":
        return ClassAreas(area, num_classes)
    if about == "values" or name == "perplexity":
        return _MADE[name]()
    options: dict[str, Any] = {"validate_args": False}
    if name == "mcc":
        return MatthewsCorrelation(num_classes=2 if about == "zeros" else num_classes, **options)
    if about == "zeros":
        options["task"] = "binary"
        if area is not None:
            options["thresholds"] = THRESHOLDS
    elif about == "multilabel":
        options |= {"task": "multilabel", "num_labels": num_classes, "average": "macro"}
    else:
        options |= {"task": "multiclass", "num_classes": num_classes}
        if name != CONFUSION:
            options["average"] = "micro" if name == "accuracy" else "macro"
    return _MADE[name](**options)


_AREAS: dict[str, Any] = {"auc": binary_auroc, "auprc": binary_average_precision}
_MADE: dict[str, Any] = {
    "mae": torchmetrics.MeanAbsoluteError,
    "mse": torchmetrics.MeanSquaredError,
    "pcc": torchmetrics.PearsonCorrCoef,
    "perplexity": Perplexity,
    "accuracy": torchmetrics.Accuracy,
    "f1": torchmetrics.F1Score,
    "precision": torchmetrics.Precision,
    "recall": torchmetrics.Recall,
    "auc": torchmetrics.AUROC,
    "auprc": torchmetrics.AveragePrecision,
    CONFUSION: torchmetrics.ConfusionMatrix,
}
