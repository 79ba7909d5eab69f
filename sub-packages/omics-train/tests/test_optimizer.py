from __future__ import annotations

import pytest
import torch
from training_parts import CLASSIFY, model_of, objective_of

from omics.data.errors import ConfigError
from omics.train.optimizer import build_optimizer, build_schedule, one_cycle
from omics.train.run_config import TrainerConfig


def model():
    return model_of(objective_of(CLASSIFY)[1])


def groups_of(config):
    built = model()
    names = {id(p): n for n, p in built.named_parameters()}
    optimizer = build_optimizer(built, config)
    return [({names[id(p)] for p in g["params"]}, g) for g in optimizer.param_groups]


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    config = TrainerConfig(learning_rate=1e-2, encoder_learning_rate=1e-3, weight_decay=0.1)
    groups = groups_of(config)
    together = [name for names, _ in groups for name in names]
    trained = [name for name, p in model().named_parameters() if p.requires_grad]
    assert sorted(together) == sorted(trained)
    for names, group in groups:
        heads = {name.startswith("label_heads.") for name in names}
        assert len(heads) == 1
        assert group["lr"] == (1e-2 if heads == {True} else 1e-3)
        biases = {"bias" in n or "norm.weight" in n for n in names}
        assert group["weight_decay"] == (0.0 if biases == {True} else 0.1)


def test_one_rate_for_all_without_an_encoder_rate():
    assert {g["lr"] for _, g in groups_of(TrainerConfig(learning_rate=5e-3))} == {5e-3}


def test_one_cycle_rises_to_the_peaks_and_falls():
    config = TrainerConfig(learning_rate=1e-2, encoder_learning_rate=1e-3, warmup_fraction=0.2)
    optimizer = build_optimizer(model(), config)
    schedule = build_schedule(optimizer, config, 50)
    rates = []
    for _ in range(50):
        rates.append(sorted({group["lr"] for group in optimizer.param_groups}))
        optimizer.step()
        schedule.step()
    highest = max(rate[-1] for rate in rates)
    assert highest == pytest.approx(1e-2)
    assert rates.index(max(rates)) == 9
    assert rates[-1][-1] < 1e-5
    assert all(high / low == pytest.approx(10) for low, high in rates)


def test_a_constant_schedule_stays_and_an_unknown_one_is_refused():
    config = TrainerConfig(schedule="constant")
    optimizer = build_optimizer(model(), config)
    schedule = build_schedule(optimizer, config, 5)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == config.learning_rate
    with pytest.raises(ConfigError, match="Did you mean 'constant'"):
        build_schedule(optimizer, TrainerConfig(schedule="constnt"), 5)


@pytest.mark.parametrize(("num_steps", "warmup"), [(50, 0.1), (1000, 0.3), (37, 0.25)])
def test_one_cycle_is_the_schedule_of_torch(num_steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=num_steps, pct_start=warmup, cycle_momentum=False
    )
    for step in range(num_steps):
        assert one_cycle(num_steps, warmup, step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        if step < num_steps - 1:
            theirs.step()


@pytest.mark.parametrize(
    ("num_steps", "warmup"), [(10, 0.1), (1, 0.1), (2, 0.5), (5, 0.0), (5, 1.0)]
)
def test_short_runs_and_any_warm_up_give_rates_between_nothing_and_the_peak(num_steps, warmup):
    rates = [one_cycle(num_steps, warmup, step) for step in range(num_steps + 2)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates[:num_steps]) == pytest.approx(1.0, abs=1e-6)


def test_a_warm_up_that_is_no_share_is_refused():
    config = TrainerConfig(warmup_fraction=1.5)
    with pytest.raises(ConfigError, match=r"warmup_fraction is 1\.5"):
        build_schedule(build_optimizer(model(), config), config, 5)
