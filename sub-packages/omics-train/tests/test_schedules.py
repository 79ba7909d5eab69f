from __future__ import annotations

import math

import pytest
import torch

from omics.data.errors import ConfigError
from omics.train.run_config import TrainerConfig
from omics.train.schedules import one_cycle, schedule


def factors(num_steps, **settings):
    factor = schedule(TrainerConfig(**settings), num_steps)
    return [factor(step) for step in range(num_steps + 3)]


@pytest.mark.parametrize(("num_steps", "warmup"), [(50, 0.1), (1000, 0.3), (37, 0.25)])
def test_one_cycle_is_the_schedule_of_torch(num_steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=num_steps, pct_start=warmup, cycle_momentum=False
    )
    for step in range(num_steps):
        ours = one_cycle(step, num_steps=num_steps, warmup_steps=warmup * num_steps)
        assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        if step < num_steps - 1:
            theirs.step()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_linear_and_cosine_are_those_of_transformers(name):
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    theirs = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = theirs[name](optimizer, num_warmup_steps=20, num_training_steps=100)
    ours = factors(100, schedule=name, warmup_steps=20)
    # Theirs begins with a step at rate 0; ours is a step ahead while it rises.
    for step in range(100):
        if step >= 20:
            assert ours[step] == pytest.approx(expected.get_last_lr()[0])
        else:
            assert ours[step] == pytest.approx((step + 1) / 20)
        optimizer.step()
        expected.step()
    assert ours[100:] == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_wsd_rises_stays_and_falls():
    ours = factors(100, schedule="wsd", warmup_steps=10, decay_fraction=0.2, last_factor=0.1)
    assert ours[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert ours[10:81] == [1.0] * 71
    assert ours[80:101] == pytest.approx([1 - 0.9 * s / 20 for s in range(21)])
    assert ours[101:] == pytest.approx([0.1, 0.1])


def test_constant_rises_only_where_it_is_asked_to():
    assert factors(20, schedule="constant") == [1.0] * 23
    assert factors(20, schedule="constant", warmup_fraction=0.1)[:3] == [0.5, 1.0, 1.0]


def test_a_cosine_may_end_above_zero():
    ours = factors(10, schedule="cosine", warmup_steps=0, last_factor=0.5)
    assert ours[5] == pytest.approx(0.5 + 0.25 * (1 + math.cos(math.pi / 2)))
    assert ours[10] == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["one_cycle", "linear", "cosine", "wsd", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.1), (1, 0.1), (2, 0.5), (5, 0.0), (5, 1.0)])
def test_short_runs_and_any_warm_up_give_rates_between_nothing_and_the_peak(name, steps, warmup):
    rates = factors(steps, schedule=name, warmup_fraction=warmup)[:steps]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"warmup_fraction": 1.5}, r"warmup_fraction is 1\.5"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": 5, "warmup_fraction": 0.1}, "are both given"),
        ({"schedule": "linear", "decay_fraction": 0.1}, "decay_fraction is for the schedules wsd"),
        ({"last_factor": 0.1}, "last_factor is for the schedules linear, cosine, wsd"),
        ({"schedule": "wsd", "decay_fraction": 2.0}, r"decay_fraction is 2\.0"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        factors(10, **settings)
