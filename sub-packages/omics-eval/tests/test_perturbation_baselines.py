"""Plain predictions recover what was planted for them."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import UsageError
from omics.eval import TrainingEffects

GENES = [f"g{i}" for i in range(30)]
POSITIONS = {name: place for place, name in enumerate(GENES)}


def effects_of(parts, values, control):
    return TrainingEffects(
        parts=parts, values=np.asarray(values), control=np.asarray(control), position_of=POSITIONS
    )


@pytest.fixture
def additive():
    """Return controls and the effect of each of ten genes."""
    generator = np.random.default_rng(1)
    return generator.random(30), {name: generator.normal(0, 0.3, 30) for name in GENES[:10]}


def test_no_change_is_the_control_and_the_mean_that_of_training(additive):
    control, effect = additive
    training = effects_of([(n,) for n in effect], [control + e for e in effect.values()], control)
    found = training.predictions([("g11",), ("g12",)])
    assert list(found) == ["no change", "mean of training", "linear"]
    np.testing.assert_array_equal(found["no change"], [control, control])
    mean = control + np.mean(list(effect.values()), axis=0)
    np.testing.assert_allclose(found["mean of training"], [mean, mean])


def test_additive_recovers_planted_sums_and_takes_the_mean_for_unseen_parts(additive):
    control, effect = additive
    training = effects_of(
        [*((n,) for n in effect), ("g0", "g1")],
        [*(control + e for e in effect.values()), control + 7],
        control,
    )
    asked = [("g2", "g3"), ("g0", "g1", "g4"), ("g5", "g20"), ("g20",)]
    found = training.predictions(asked)["additive"]
    mean = np.mean(list(effect.values()), axis=0)
    expected = [
        effect["g2"] + effect["g3"],
        effect["g0"] + effect["g1"] + effect["g4"],
        effect["g5"] + mean,
        mean,
    ]
    np.testing.assert_allclose(found, control + np.array(expected), atol=1e-12)


def test_linear_recovers_planted_linear_effects_of_unseen_genes():
    generator = np.random.default_rng(2)
    genes, weights = generator.normal(size=(30, 4)), generator.normal(size=(4, 4))
    offset = generator.normal(size=30)

    def planted(parts):
        return np.array(
            [offset + genes @ weights @ sum(genes[POSITIONS[n]] for n in each) for each in parts]
        )

    trained = [(name,) for name in GENES[:12]] + [("g1", "g5")]
    asked = [("g20",), ("g25",), ("g3", "g22")]
    training = effects_of(trained, planted(trained), np.zeros(30))
    found = training.linear(asked, num_components=4, ridge=1e-9)
    np.testing.assert_allclose(found, planted(asked), atol=1e-5)
    # More components than there are, and vectors from elsewhere that are as good.
    own = training.linear(asked, num_components=4, ridge=1e-9, gene_vectors=genes)
    np.testing.assert_allclose(own, planted(asked), atol=1e-5)
    default = training.predictions(asked)["linear"]
    far = np.abs(training.predictions(asked)["mean of training"] - planted(asked)).mean()
    assert np.abs(default - planted(asked)).mean() < 0.1 * far


def test_linear_says_the_mean_of_a_perturbation_of_no_known_gene(additive):
    control, effect = additive
    values = np.array([control + e for e in effect.values()])
    training = effects_of([(n,) for n in effect], values, control)
    np.testing.assert_allclose(training.linear([("drug",)])[0], values.mean(axis=0))


def test_baselines_without_anything_to_learn_from_are_left_out(additive):
    control, effect = additive
    assert list(effects_of([], np.zeros((0, 30)), control).predictions([("g1",)])) == ["no change"]
    unknown = effects_of([("x",), ("y",)], [control, control + 1], control)
    assert list(unknown.predictions([("x", "y")])) == ["no change", "mean of training", "additive"]
    one = effects_of([("g0", "g1")], [control + effect["g0"]], control)
    assert list(one.predictions([("g2", "g3")])) == ["no change", "mean of training"]
    with pytest.raises(UsageError, match="needs single perturbations"):
        one.additive([("g2", "g3")])
    with pytest.raises(UsageError, match="at least two training perturbations"):
        one.linear([("g2",)])
    with pytest.raises(UsageError, match="vectors of 3 genes, and 30 genes"):
        unknown.linear([("g2",)], gene_vectors=np.zeros((3, 2)))
    with pytest.raises(UsageError, match="training pseudobulks are"):
        effects_of([("g0",)], np.zeros((2, 30)), control)
