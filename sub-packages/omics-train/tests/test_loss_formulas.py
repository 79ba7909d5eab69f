"""Every formula against scipy, scikit-learn or its definition written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import log_loss

from omics.models.model_config import LINK_NAMES
from omics.models.predicted_values import LINKS, predicted_values
from omics.train import loss_formulas as formulas

rng = np.random.default_rng(0)
LOGITS = torch.tensor(rng.normal(0, 2, (40, 6)), dtype=torch.float32)
CLASSES = torch.tensor(rng.integers(0, 6, 40))
OUTPUT = torch.tensor(rng.normal(0, 1.5, 50), dtype=torch.float32)
COUNTS = torch.tensor(rng.poisson(2.0, 50), dtype=torch.float32)


def test_class_cross_entropy_is_the_log_loss_of_scikit_learn():
    losses = formulas.class_cross_entropy(LOGITS, CLASSES)
    expected = log_loss(CLASSES, LOGITS.double().softmax(-1), labels=range(6))
    assert float(losses.mean()) == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_spreads_a_share_over_all_classes():
    log_p = LOGITS.log_softmax(-1)
    target = torch.nn.functional.one_hot(CLASSES, 6) * 0.9 + 0.1 / 6
    found = formulas.class_cross_entropy(LOGITS, CLASSES, label_smoothing=0.1)
    assert torch.allclose(found, -(target * log_p).sum(-1), atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_focal_is_the_cross_entropy_times_a_power_of_the_doubt(gamma):
    weight = torch.arange(1.0, 7.0)
    p = LOGITS.softmax(-1)[torch.arange(40), CLASSES]
    expected = weight[CLASSES] * (1 - p) ** gamma * -p.log()
    found = formulas.class_focal(LOGITS, CLASSES, gamma=gamma, weight=weight)
    assert torch.allclose(found, expected, rtol=1e-4)
    zero = COUNTS == 0
    q = torch.where(zero, OUTPUT.sigmoid(), 1 - OUTPUT.sigmoid())
    found = formulas.zero_focal(OUTPUT, COUNTS, gamma=gamma)
    assert torch.allclose(found, (1 - q) ** gamma * -q.log(), rtol=1e-4)


@pytest.mark.parametrize("link", LINK_NAMES)
def test_errors_are_of_the_linked_value_with_shrinkage(link):
    value = {"identity": OUTPUT, "exp": OUTPUT.exp(), "softplus": OUTPUT.exp().log1p()}[link]
    squared = formulas.squared_error(OUTPUT, COUNTS, link=link, shrinkage=0.3)
    assert torch.allclose(squared, (value - COUNTS) ** 2 + 0.3 * value**2, rtol=1e-5)
    absolute = formulas.absolute_error(OUTPUT, COUNTS, link=link, shrinkage=0.3)
    assert torch.allclose(absolute, (value - COUNTS).abs() + 0.3 * value.abs(), rtol=1e-5)
    plain = formulas.squared_error(OUTPUT, COUNTS, link=link)
    assert torch.allclose(plain, (value - COUNTS) ** 2, rtol=1e-5)


def test_the_names_of_links_are_those_that_there_are():
    assert tuple(LINKS) == LINK_NAMES


def test_zero_cross_entropy_is_the_log_loss_of_being_zero():
    p = OUTPUT.sigmoid().double()
    expected = log_loss(COUNTS == 0, p, normalize=False)
    assert float(formulas.zero_cross_entropy(OUTPUT, COUNTS).sum()) == pytest.approx(expected)


def test_poisson_and_negative_binomial_are_those_of_scipy():
    found = formulas.poisson(OUTPUT, COUNTS)
    assert np.allclose(found, -stats.poisson.logpmf(COUNTS, OUTPUT.exp()), rtol=1e-4)
    log_t = OUTPUT.flip(0)
    mean, t = OUTPUT.double().exp().numpy(), log_t.double().exp().numpy()
    expected = -stats.nbinom.logpmf(COUNTS.numpy(), t, t / (t + mean))
    assert np.allclose(formulas.negative_binomial(OUTPUT, log_t, COUNTS), expected, rtol=1e-4)


@pytest.mark.parametrize("log_t", [-8.0, 0.0, 2.2, 2.4, 6.0, 14.0])
def test_a_negative_binomial_is_exact_for_every_dispersion(log_t):
    t, mean = np.exp(log_t), OUTPUT.double().exp().numpy()
    expected = -stats.nbinom.logpmf(COUNTS.numpy(), t, t / (t + mean))
    log_t = torch.full_like(OUTPUT, log_t, requires_grad=True)
    found = formulas.negative_binomial(OUTPUT, log_t, COUNTS)
    assert np.allclose(found.detach(), expected, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert torch.isfinite(log_t.grad).all()


def test_a_negative_binomial_of_no_dispersion_is_poisson():
    found = formulas.negative_binomial(OUTPUT, torch.full_like(OUTPUT, 15.0), COUNTS)
    assert torch.allclose(found, formulas.poisson(OUTPUT, COUNTS), atol=1e-3)


def test_token_value_compares_the_expected_bin_with_the_true_one():
    values = torch.tensor([torch.nan, 0.0, 1.0, 2.0, 3.0, torch.nan])
    truth = CLASSES.clamp(1, 4)
    p = LOGITS[:, 1:5].softmax(-1)
    expected = ((p * torch.arange(4)).sum(-1) - (truth - 1)) ** 2
    assert torch.allclose(formulas.token_value(LOGITS, truth, values), expected, rtol=1e-5)


def test_several_labels_cost_the_mean_of_their_cross_entropies():
    holds = torch.tensor(rng.integers(0, 2, (40, 6)), dtype=torch.float32)
    p = LOGITS.double().sigmoid()
    expected = [log_loss(holds[i], p[i], labels=[0, 1]) for i in range(40)]
    found = formulas.multilabel_cross_entropy(LOGITS, holds)
    assert np.allclose(found, expected, rtol=1e-4)


def test_hierarchical_cross_entropy_is_minus_the_log_probability_of_all_below():
    below = torch.zeros(40, 6, dtype=torch.bool)
    below[:, :2] = True
    below[5] = True
    below[torch.arange(6, 40), CLASSES[6:]] = True
    p = (LOGITS.softmax(-1) * below).sum(-1)
    assert torch.allclose(formulas.hierarchical_cross_entropy(LOGITS, below), -p.log(), atol=1e-5)
    one = torch.nn.functional.one_hot(CLASSES, 6).bool()
    plain = formulas.class_cross_entropy(LOGITS, CLASSES)
    assert torch.allclose(formulas.hierarchical_cross_entropy(LOGITS, one), plain, atol=1e-5)


def test_a_label_that_stands_for_no_class_costs_nothing():
    logits = LOGITS.clone().requires_grad_()
    losses = formulas.hierarchical_cross_entropy(logits, torch.zeros(40, 6, dtype=torch.bool))
    assert losses.tolist() == [0.0] * 40
    losses.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(40, 6))


@pytest.mark.parametrize("size", [-80.0, 0.0, 80.0])
def test_gradients_are_finite_where_the_model_is_sure(size):
    truth = torch.tensor([0, 1])
    for formula in (
        lambda x: formulas.class_focal(x, truth, gamma=0.5),
        lambda x: formulas.class_focal(x, truth, gamma=2.0),
        lambda x: formulas.zero_focal(x[:, 0], truth.float(), gamma=0.5),
        lambda x: formulas.zero_cross_entropy(x[:, 0], truth.float()),
        lambda x: formulas.negative_binomial(x[:, 0] / 4, x[:, 1], truth.float()),
        lambda x: formulas.hierarchical_cross_entropy(x, torch.eye(2).bool()),
    ):
        output = torch.tensor([[size, -size], [size, -size]], requires_grad=True)
        formula(output).sum().backward()
        assert torch.isfinite(output.grad).all()


def test_a_predicted_value_is_zero_where_zero_is_the_more_likely():
    output, zero = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, 0.5, 0.0])
    assert predicted_values(output, zero_logit=zero).tolist() == [1.0, 0.0, 3.0]
    assert torch.allclose(predicted_values(output, link="exp"), output.exp())
