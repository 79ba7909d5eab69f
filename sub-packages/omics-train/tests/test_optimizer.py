from __future__ import annotations

import pytest
from training_parts import CLASSIFY, model_of, objective_of

from omics.train.optimizer import build_optimizer, build_schedule
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


def test_a_constant_schedule_stays():
    config = TrainerConfig(schedule="constant")
    optimizer = build_optimizer(model(), config)
    schedule = build_schedule(optimizer, config, 5)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == config.learning_rate


def test_lower_layers_learn_more_slowly():
    plan = objective_of(CLASSIFY)[1]
    built = model_of(plan, num_layers=3)
    names = {id(p): n for n, p in built.named_parameters()}
    config = TrainerConfig(learning_rate=1.0, encoder_learning_rate=0.1, layer_decay=0.5)
    rates = {
        names[id(p)]: group["lr"]
        for group in build_optimizer(built, config).param_groups
        for p in group["params"]
    }
    for name, rate in rates.items():
        if name.startswith("label_heads."):
            assert rate == 1.0
        elif name.startswith("encoder.layers."):
            assert rate == pytest.approx(0.1 * 0.5 ** (3 - int(name.split(".")[2])))
        elif name.startswith("embedding."):
            assert rate == pytest.approx(0.1 * 0.5**4)
        else:
            assert rate == pytest.approx(0.1), name


def test_betas_and_epsilon_are_those_of_the_configuration():
    optimizer = build_optimizer(model(), TrainerConfig(betas=[0.8, 0.99], eps=1e-6))
    assert all(g["betas"] == (0.8, 0.99) and g["eps"] == 1e-6 for g in optimizer.param_groups)


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("16-mixed", False)])
def test_scaled_gradients_are_clipped_before_a_step_that_is_not_fused(precision, fused):
    optimizer = build_optimizer(model(), TrainerConfig(precision=precision))
    assert all(group["fused"] is fused for group in optimizer.param_groups)
