"""Integrated gradients of a class over the input embeddings of flat tokens, by captum.

- What is explained is the log odds of a class, log p / (1 - p). Of a label of several that is the
  logit. Of one class among many it is the logit less what the others have together: a softmax does
  not change when all logits rise, so what raises all of them says nothing for a class, and is the
  greatest part of what hiding genes does to a single logit.
- captum wants the examples along the first axis and our batches are flat, so a whole batch of cells
  is one example of it, [1, T, d], and the number it explains is the sum over cells of the log odds of
  each cell's class. No cell sees another, so the gradient of that sum at a token is that of its own
  cell's log odds: many cells of any length in one pass, without padding.
- The path runs in the space of input embeddings, straight from the baseline to the cell, in all
  fields at once. The input is the sum of the fields' embeddings, so the attribution of a token is
  the sum of those of its fields, each the inner product of the mean gradient with its own change.
- Attributions of a cell add up to f(cell) - f(baseline): that is checked, not hoped for.

Source: Sundararajan, M., Taly, A. & Yan, Q. (2017), Axiomatic Attribution for Deep Networks.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.errors import MissingExtraError
from omics.models.label_answers import is_number
from omics.models.ragged_layout import RaggedLayout

if TYPE_CHECKING:
    from torch import Tensor

    from omics.models.model import OmicsModel
    from omics.tokenizers import LabelSpec, TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]


def label_logits(
    model: OmicsModel, batch: TokenBatch, *, label: str, device: torch.device | str = "cpu"
) -> Array:
    """Return the outputs of a label head for the cells of a batch, float64 [n, C].

    Args:
        model: in evaluation mode, on the device.
        batch: numpy tokens.
        label: whose head.
        device: of the model.
    """
    with torch.inference_mode():
        output = model(batch.to_torch(device), _layout(batch, device))
    return output.labels[label].cpu().double().numpy()


def log_odds(spec: LabelSpec, logits: Tensor, classes: Tensor) -> Tensor:
    """Return what is explained: the log odds of a class of each cell, or the value of a number, [k].

    Args:
        spec: of the label.
        logits: [k, C], what its head gives for k cells.
        classes: int64 [k].
    """
    chosen = logits.gather(1, classes[:, None])
    if is_number(spec) or spec.kind == "multilabel":
        return chosen[:, 0]
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return chosen[:, 0] - others.logsumexp(1)


def integrated_gradients(
    model: OmicsModel,
    batch: TokenBatch,
    baseline: TokenBatch,
    targets: Array,
    *,
    spec: LabelSpec,
    steps: int,
    device: torch.device | str = "cpu",
) -> dict[str, Array]:
    """Return what each field of each token adds to the log odds of its cell's class.

    Args:
        model: in evaluation mode, on the device.
        batch: numpy tokens.
        baseline: the same cells with the tokens that they are compared with.
        targets: int64 [n, R], R classes of each cell, -1 for none.
        spec: of the label that is explained.
        steps: points of the Gauss-Legendre rule on the path, each a forward and a backward pass.
        device: of the model.

    Returns:
        `{field: float64 [T, R]}`, 0 for a cell without a class.

    Raises:
        MissingExtraError: captum is not installed.
    """
    integrator = captum_class()
    layout = _layout(batch, device)
    shown = batch.to_torch(device)
    with torch.no_grad():
        inputs = model.embedding.parts(shown.fields)
        baselines = model.embedding.parts(baseline.to_torch(device).fields)
    found = {name: np.zeros((batch.num_tokens, targets.shape[1])) for name in inputs}
    for place, classes in enumerate(targets.T):
        cells = np.flatnonzero(classes >= 0)
        if not len(cells):
            continue
        at = (torch.from_numpy(cells).to(device), torch.from_numpy(classes[cells]).to(device))

        def explained(*parts_1Td: Tensor, at: tuple[Tensor, Tensor] = at) -> Tensor:
            total = reduce(add, (part[0] for part in parts_1Td))
            logits = model(shown, layout, inputs=total).labels[spec.name]
            return log_odds(spec, logits[at[0]], at[1]).sum()[None]

        parts = integrator(explained).attribute(
            tuple(part[None] for part in inputs.values()),
            tuple(part[None] for part in baselines.values()),
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=1,
        )
        for name, part in zip(inputs, parts, strict=True):
            found[name][:, place] = part[0].detach().cpu().double().sum(-1).numpy()
    return found


def captum_class() -> Any:
    """Return captum's class of integrated gradients.

    Raises:
        MissingExtraError: captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise MissingExtraError(
            "Integrated gradients need captum, which is not installed. Run: "
            "pip install 'omics-eval[attribution]'"
        ) from error
    return IntegratedGradients


def _layout(batch: TokenBatch, device: torch.device | str) -> RaggedLayout:
    return RaggedLayout.from_offsets(torch.from_numpy(np.asarray(batch.offsets)), device)
