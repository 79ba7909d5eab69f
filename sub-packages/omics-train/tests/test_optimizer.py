from __future__ import annotations

import copy

import pytest
import torch
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


def _muon(**changes):
    config = TrainerConfig(optimizer="muon", learning_rate=1e-2, weight_decay=0.1, **changes)
    built = model()
    return built, build_optimizer(built, config), config


def test_muon_has_the_matrices_of_blocks_and_adamw_the_rest():
    built, optimizer, _ = _muon()
    names = {id(p): n for n, p in built.named_parameters()}
    by_muon = {names[id(p)] for g in optimizer.param_groups if "momentum" in g for p in g["params"]}
    others = {names[id(p)] for g in optimizer.param_groups if "betas" in g for p in g["params"]}
    layer = "encoder.layers.0."
    assert by_muon == {f"{layer}{name}.weight" for name in ("qkv", "out", "up", "down")}
    assert others == {n for n, p in built.named_parameters() if p.requires_grad} - by_muon


def test_muon_steps_are_those_of_torch():
    """A step of each part alone, on copies of the weights."""
    built, optimizer, _ = _muon()
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    weight, bias = built.encoder.layers[0].up.weight, built.encoder.layers[0].up.bias
    copies = [torch.nn.Parameter(each.detach().clone()) for each in (weight, bias)]
    for mine, each in zip(copies, (weight, bias), strict=True):
        mine.grad = each.grad.clone()
    torch.optim.Muon(
        copies[:1], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    ).step()
    torch.optim.AdamW(copies[1:], lr=1e-2, weight_decay=0.0, fused=True).step()
    optimizer.step()
    torch.testing.assert_close(weight, copies[0])
    torch.testing.assert_close(bias, copies[1])


def test_muon_goes_on_from_its_state():
    built, optimizer, config = _muon()
    generator = torch.Generator().manual_seed(0)

    def step(one, by):
        for parameter in one.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        by.step()

    step(built, optimizer)
    other = model()
    other.load_state_dict(built.state_dict())
    again = build_optimizer(other, config)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = generator.get_state()
    step(built, optimizer)
    generator.set_state(state)
    step(other, again)
    for one, same in zip(built.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
