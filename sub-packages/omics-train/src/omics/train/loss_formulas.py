"""Loss formulas: outputs and targets to one number per prediction; nothing is summed or averaged.

- Pure functions of tensors; sums, counts and weights are the business of the terms that call them.
- All in float32 whatever the precision of the model: logarithms and squares need it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omics.models.predicted_values import LINKS

# Beyond these a dispersion is 0 or infinite for every practical purpose; float32 ends at 88.
_DISPERSION_RANGE = (-15.0, 15.0)
_SERIES_FROM = 10.0
# Keeps the slope of (1 - p)^gamma finite where p is 1.
_TINY = 1e-12


def squared_error(
    output: Tensor, target: Tensor, *, link: str = "identity", shrinkage: float = 0.0
) -> Tensor:
    """Return (v - y)^2 + shrinkage v^2 with the value v = link(output), any shape.

    Args:
        output: of the model.
        target: y.
        link: a key of `LINKS`.
        shrinkage: pulls values to 0.
    """
    value = LINKS[link](output.float())
    error = (value - target).square()
    return error + shrinkage * value.square() if shrinkage else error


def absolute_error(
    output: Tensor, target: Tensor, *, link: str = "identity", shrinkage: float = 0.0
) -> Tensor:
    """Return |v - y| + shrinkage |v| with the value v = link(output), any shape.

    Args:
        output: of the model.
        target: y.
        link: a key of `LINKS`.
        shrinkage: pulls values to 0.
    """
    value = LINKS[link](output.float())
    error = (value - target).abs()
    return error + shrinkage * value.abs() if shrinkage else error


def zero_cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy of 'the value is 0', any shape.

    Args:
        logit: of zero.
        target: values.
    """
    logit = logit.float()
    return F.softplus(torch.where(target == 0, -logit, logit))


def zero_focal(logit: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    """Return (1 - p)^gamma times that cross-entropy, p the probability of the truth, any shape.

    Focal loss (Lin et al. 2017) without class weights.

    Args:
        logit: of zero.
        target: values.
        gamma: 0 is the cross-entropy itself.
    """
    entropy = zero_cross_entropy(logit, target)
    return (-torch.expm1(-entropy)).clamp(min=_TINY) ** gamma * entropy


def poisson(log_rate: Tensor, target: Tensor) -> Tensor:
    """Return the negative log-likelihood of counts under Poisson(exp(log_rate)), any shape.

    Args:
        log_rate: of the model.
        target: counts, at least 0; need not be whole.
    """
    log_rate = log_rate.float()
    return log_rate.exp() - target * log_rate + torch.lgamma(target.float() + 1)


def negative_binomial(log_mean: Tensor, log_dispersion: Tensor, target: Tensor) -> Tensor:
    """Return the negative log-likelihood of counts under a negative binomial, any shape.

    With mean m and dispersion t (variance m + m^2 / t), all in logarithms.

    Args:
        log_mean: log m.
        log_dispersion: log t, taken within [-15, 15].
        target: counts, at least 0; need not be whole.
    """
    log_mean, y = log_mean.float(), target.float()
    log_t = log_dispersion.float().clamp(*_DISPERSION_RANGE)
    difference = log_mean - log_t
    mixed = log_t.exp() * F.softplus(difference) + y * F.softplus(-difference)
    return mixed + torch.lgamma(y + 1) - _log_rising(log_t.exp(), y)


def _log_rising(t: Tensor, y: Tensor) -> Tensor:
    """Return lgamma(t + y) - lgamma(t); float32 would lose the difference where t is large.

    There it is that of two Stirling series, whose large terms are taken off by hand.
    """
    above = t + y
    series = (t - 0.5) * torch.log1p(y / t) + y * above.log() - y
    series = series + (1 / above - 1 / t) / 12 - (above**-3 - t**-3) / 360
    return torch.where(t > _SERIES_FROM, series, torch.lgamma(above) - torch.lgamma(t))


def class_cross_entropy(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of each row, [K].

    Args:
        logits: [K, C].
        target: int64 [K], class numbers.
        weight: [C], of the classes.
        label_smoothing: share of the target spread over all classes.
    """
    return F.cross_entropy(
        logits.float(), target, weight=weight, label_smoothing=label_smoothing, reduction="none"
    )


def class_focal(
    logits: Tensor, target: Tensor, *, gamma: float, weight: Tensor | None = None
) -> Tensor:
    """Return the focal loss of each row, [K]: w (1 - p)^gamma (-log p), p that of the truth.

    Lin et al. 2017.

    Args:
        logits: [K, C].
        target: int64 [K], class numbers.
        gamma: 0 is the cross-entropy.
        weight: [C], of the classes.
    """
    entropy = F.cross_entropy(logits.float(), target, reduction="none")
    # 1 - p from the entropy itself, whose gradient is finite also where p is 1.
    loss = (-torch.expm1(-entropy)).clamp(min=_TINY) ** gamma * entropy
    return loss if weight is None else loss * weight[target]


def token_value(logits: Tensor, target: Tensor, values: Tensor) -> Tensor:
    """Return (sum_i p_i v_i - y)^2 of each row, [K]: the expected value of a bin and the true one.

    Args:
        logits: [K, V] over token ids.
        target: int64 [K], true token ids.
        values: [V], what each id stands for; NaN for ids that are no number.
    """
    is_number = ~values.isnan()
    probability = logits.float().masked_fill(~is_number, -torch.inf).softmax(-1)
    known = values.nan_to_num()
    return (probability @ known - known[target]).square()


def multilabel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the classes of the binary cross-entropy of each row, [K].

    Args:
        logits: [K, C].
        target: [K, C], 1 for each label that holds.
    """
    entropy = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return entropy.mean(-1)


def hierarchical_cross_entropy(logits: Tensor, below: Tensor) -> Tensor:
    """Return logsumexp(all classes) - logsumexp(those below the label) of each row, [K].

    The negative logarithm of the probability of all classes that the label stands for; where it
    stands for one class, the cross-entropy. A row that stands for none costs 0.

    Args:
        logits: [K, C].
        below: bool [K, C].
    """
    logits = logits.float()
    none = ~below.any(-1)
    inside = logits.masked_fill(~(below | none[:, None]), -torch.inf)
    return logits.logsumexp(-1) - inside.logsumexp(-1)
