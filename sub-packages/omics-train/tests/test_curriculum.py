from __future__ import annotations

import numpy as np
import pytest
from run_parts import SMALL, compose

from omics.data.errors import ConfigError
from omics.data.storage.store import open_store
from omics.data.transforms import FirstGenes, LogNormalize, RandomOrder, TopGenes
from omics.train.curriculum import stages
from omics.train.run_config import DataConfig, StageConfig, TrainerConfig
from omics.train.train_run import prepare_training, train

NORMALISE, TOP = LogNormalize(), TopGenes(max_genes=50)


def planned(*curriculum, steps=(NORMALISE, TOP), max_epochs=10):
    trainer = TrainerConfig(max_epochs=max_epochs, curriculum=list(curriculum))
    return stages(trainer, DataConfig(batch_size=32), list(steps), num_special=1)


def test_stages_come_first_and_the_rest_is_as_the_run_says():
    found = planned(
        StageConfig(max_epochs=2, batch_size=64, max_length=21),
        StageConfig(max_epochs=3, batch_size=48),
    )
    assert [(s.max_epochs, s.batch_size) for s in found] == [(2, 64), (3, 48), (5, 32)]
    assert found[0].steps == [NORMALISE, TopGenes(max_genes=20)]
    assert [stage.steps for stage in found[1:]] == [[NORMALISE, TOP]] * 2
    assert [s.max_epochs for s in planned(StageConfig(max_epochs=10, batch_size=4))] == [10]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([NORMALISE], [NORMALISE, TopGenes(max_genes=20)]),
        ([NORMALISE, TopGenes(max_genes=9)], [NORMALISE, TopGenes(max_genes=9)]),
        ([NORMALISE, RandomOrder()], [NORMALISE, RandomOrder(), FirstGenes(max_genes=20)]),
        (
            [NORMALISE, RandomOrder(), FirstGenes(max_genes=30)],
            [NORMALISE, RandomOrder(), FirstGenes(max_genes=20)],
        ),
    ],
)
def test_a_length_shortens_the_last_cut_or_adds_one(steps, expected):
    stage = StageConfig(max_epochs=1, max_length=21)
    assert planned(stage, steps=steps)[0].steps == expected


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"max_epochs": 1}, r"curriculum\[0\] changes nothing"),
        ({"max_epochs": 0, "batch_size": 4}, "max_epochs is 0"),
        ({"max_epochs": 1, "batch_size": -1}, "batch_size is -1"),
        ({"max_epochs": 11, "batch_size": 4}, "ends after 11 epochs, and trainer.max_epochs is 10"),
        ({"max_epochs": 1, "max_length": 1}, "no place is left for genes"),
    ],
)
def test_a_stage_that_cannot_work_is_refused(stage, message):
    with pytest.raises(ConfigError, match=message):
        planned(StageConfig(**stage))


CURRICULUM = [
    *SMALL,
    "trainer.max_epochs=4",
    "trainer.curriculum=[{max_epochs: 1, batch_size: 40, max_length: 6},{max_epochs: 1, batch_size: 20}]",
]


def test_epochs_have_the_sizes_and_lengths_of_their_stage(atlas):
    config = compose("pretrain", [*atlas.cells, "working_dir=x", *CURRICULUM])
    batches = prepare_training(config, open_store(atlas.store)).batches
    assert batches.num_steps(4) == 4 + 7 + 2 * 9
    seen = []
    for _ in range(4):
        announced = len(batches)
        windows = list(batches)
        assert len(windows) == announced
        epoch = [batch for window in windows for batch in window.batches]
        seen.append((len(epoch[0].tokens), max(int(b.tokens.lengths.max()) for b in epoch)))
        rows = np.sort(np.concatenate([b.tokens.rows for b in epoch]))
        assert np.array_equal(rows, np.unique(rows))
    assert [size for size, _ in seen] == [40, 20, 16, 16]
    assert seen[0][1] == 6 < min(length for _, length in seen[1:])


def test_a_run_follows_its_curriculum(atlas, tmp_path):
    config = compose("pretrain", [*atlas.cells, f"working_dir={tmp_path}", *CURRICULUM])
    train(config, tmp_path)
    lines = (tmp_path / "history.csv").read_text().splitlines()[1:]
    steps = [int(line.split(",")[0]) for line in lines if ",train,loss," in line]
    assert steps == [4, 11, 20, 29]
