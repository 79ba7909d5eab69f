"""The cells of a run as batches: loaders, transforms, pairs and stages, joined once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError
from omics.data.loading.loader import Loader, spread_over
from omics.train.control_pairing import PERTURBATION, ControlPairing, Perturbations
from omics.train.curriculum import Stage, batch_size, stages
from omics.train.data_module import Completion, Epochs, TrainingBatches, ValidationBatches
from omics.train.processes import Place
from omics.train.target_cells import LABEL_EXPRESSION, denoised, keep_whole_cells
from omics.train.token_budget import TokenBudget
from omics.train.trainer_settings import compiles
from omics.train.training_batch import FixedShape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omics.data.loading.cell_reader import CellReader
    from omics.data.storage.store import CellStore
    from omics.data.transforms import Transform
    from omics.tokenizers import BoundTokenizer, FieldSpec, TokenBatch
    from omics.train.model_source import ModelSource
    from omics.train.objective import Objective
    from omics.train.run_config import RunConfig

Array = np.ndarray[Any, np.dtype[Any]]

# Means and deviations of so many cells are within a few hundredths of a deviation of those of all.
SAMPLED_CELLS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCells:
    """The cells of a run, and what is done to them on their way to the tokenizer.

    Attributes:
        config: of the run.
        rows: `{train or validation: int64 rows}`.
        preprocessing: steps of inference.
        training_steps: steps of training.
        columns: of obs that batches bring along.
        pairing: `{train or validation: controls}` of perturbed cells; empty without pairs.
        max_length: tokens that the tokenizer leaves a cell; None for no limit.
        is_thinned: whether training thins cells, so that they are compared with what they were.
        place: of this process among those that train together.
    """

    config: RunConfig
    rows: dict[str, Array]
    preprocessing: Sequence[Transform]
    training_steps: Sequence[Transform]
    columns: tuple[str, ...]
    pairing: dict[str, ControlPairing]
    max_length: int | None
    is_thinned: bool
    place: Place

    @classmethod
    def of(
        cls,
        config: RunConfig,
        store: CellStore,
        source: ModelSource,
        rows: dict[str, Array],
        *,
        columns: tuple[str, ...],
    ) -> TrainingCells:
        """Return the cells of a configuration.

        Args:
            config: of the run.
            store: the cells.
            source: of tokenizer and steps.
            rows: of training and validation.
            columns: of obs that batches bring along.

        Raises:
            ConfigError: pairs that the tokens cannot show, or of thinned cells.
            InputDataError: no control, or no perturbed cell.
        """
        steps = source.training_steps
        is_thinned = any(LABEL_EXPRESSION in step.fields_added() for step in steps)
        wants = config.data_module.pairing
        pairing: dict[str, ControlPairing] = {}
        if wants.column is not None:
            _check_pairs(source.tokenizer.fields, is_thinned=is_thinned)
            perturbations = Perturbations.read(store, wants)
            given = rows
            for name, chosen in given.items():
                has_controls = (perturbations.code[chosen] == -1).any()
                pairs = ControlPairing.of(
                    store,
                    perturbations,
                    # A split by perturbation leaves all controls to the training cells.
                    controls=chosen if has_controls else given["train"],
                    steps=steps if name == "train" else source.preprocessing,
                    training=name == "train",
                    seed=config.seed,
                )
                pairing[name], rows = pairs, {**rows, name: pairs.usable(chosen)}
            if not len(rows["train"]):
                raise ConfigError(
                    "There are no perturbed cells with a control among the training cells."
                )
        elif any(loss.wced_target is not None for loss in config.trainer.losses):
            steps = keep_whole_cells(steps)
        return cls(
            config=config,
            rows=rows,
            preprocessing=source.preprocessing,
            training_steps=steps,
            columns=columns,
            pairing=pairing,
            max_length=getattr(source.tokenizer, "max_length", None),
            is_thinned=is_thinned,
            place=Place.of(config.trainer),
        )

    @property
    def answered(self) -> bool:
        """Whether targets hold a value for the genes of the input: `label_expression`."""
        return bool(self.pairing) or self.is_thinned

    def plain_tokens(self, reader: CellReader, tokenizer: BoundTokenizer) -> Iterator[TokenBatch]:
        """Yield the tokens of training cells as inference sees them: of a sample, spread evenly.

        Args:
            reader: of the cells.
            tokenizer: bound to them.
        """
        stage, rows = self._plain_stage(), spread_over(self.rows["train"], SAMPLED_CELLS)
        # What is found of these tokens must be the same in every process: each reads them all.
        loader = self._loader(reader, rows, "sequential", stage, training=False, place=Place())
        pairs = self.pairing.get("train")
        for cells in loader:
            yield tokenizer.encode(cells if pairs is None else pairs.pair(cells, epoch=0))

    def training_batches(
        self, reader: CellReader, tokenizer: BoundTokenizer, objective: Objective
    ) -> TrainingBatches:
        """Return the batches of training, stage after stage.

        Args:
            reader: of the cells.
            tokenizer: bound to them.
            objective: that prepares tokens.
        """
        data, trainer = self.config.data_module, self.config.trainer
        num_special = tokenizer.num_special
        found = [
            replace(stage, budget=self._budget(reader, stage.steps, num_special))
            for stage in stages(trainer, data, self.training_steps, num_special=num_special)
        ]
        return TrainingBatches(
            epochs=[
                Epochs(
                    number=stage.max_epochs,
                    loader=self._loader(
                        reader, self.rows["train"], data.order, stage, training=True
                    ),
                    complete=self._completion("train", stage.steps),
                    shape=self._shape(stage.budget),
                )
                for stage in found
            ],
            tokenizer=tokenizer,
            objective=objective,
            window=trainer.accumulate_grad_batches,
            world_size=self.place.world_size,
        )

    def validation_batches(
        self, reader: CellReader, tokenizer: BoundTokenizer, objective: Objective
    ) -> ValidationBatches | None:
        """Return the batches of validation; None without validation cells.

        What a self-supervised loss hides and samples, validation must hide and sample too, always
        the same way: as in epoch 0.

        Args:
            reader: of the cells.
            tokenizer: bound to them.
            objective: that prepares tokens.
        """
        if not len(self.rows["validation"]):
            return None
        hides = objective.is_self_supervised
        stage = self._plain_stage(self.training_steps if hides else self.preprocessing)
        budget = self._budget(reader, stage.steps, tokenizer.num_special)
        stage = replace(stage, budget=budget)
        loader = self._loader(reader, self.rows["validation"], "sequential", stage, training=hides)
        complete = self._completion("validation", stage.steps)
        return ValidationBatches(
            cells=Epochs(number=None, loader=loader, complete=complete, shape=self._shape(budget)),
            tokenizer=tokenizer,
            objective=objective,
        )

    def _plain_stage(self, steps: Sequence[Transform] | None = None) -> Stage:
        return Stage(
            max_epochs=1,
            batch_size=batch_size(self.config.data_module),
            steps=self.preprocessing if steps is None else steps,
        )

    def _budget(
        self, reader: CellReader, steps: Sequence[Transform], num_special: int
    ) -> TokenBudget | None:
        """Return the budget of a micro-batch; None where cells are counted.

        Raises:
            ConfigError: see `TokenBudget.of`; or pairs, whose tokens are those of another cell.
        """
        num_tokens = self.config.data_module.batch_tokens
        if num_tokens is None:
            return None
        if self.pairing:
            raise ConfigError(
                "data_module.batch_tokens counts the genes of cells, and with data_module.pairing "
                "another cell is shown. Use data_module.batch_size."
            )
        return TokenBudget.of(
            num_tokens,
            steps,
            lengths=reader.lengths[np.concatenate(list(self.rows.values()))],
            num_special=num_special,
            max_length=self.max_length,
        )

    def _shape(self, budget: TokenBudget | None) -> FixedShape | None:
        """Return the shape that compiled code is made for; None for that of each batch."""
        if budget is None or not compiles(self.config):
            return None
        num_tokens = budget.num_tokens + budget.headroom
        return FixedShape(num_tokens=num_tokens, longest=budget.longest)

    def _loader(
        self,
        reader: CellReader,
        rows: Array,
        order: str,
        stage: Stage,
        *,
        training: bool,
        place: Place | None = None,
    ) -> Loader:
        place, budget = place or self.place, stage.budget
        return Loader(
            reader,
            rows=rows,
            order=order,
            **({"batch_size": stage.batch_size} if budget is None else budget.of_loader),
            # Pairs run the steps themselves, on the control and on the perturbed cell.
            transforms=() if self.pairing else stage.steps,
            obs=self.columns,
            seed=self.config.seed,
            training=training,
            rank=place.rank,
            world_size=place.world_size,
            prefetch=self.config.data_module.prefetch,
        )

    def _completion(self, rows: str, steps: Sequence[Transform]) -> Completion | None:
        if self.pairing:
            pairs = self.pairing[rows].with_cutting_steps(steps)
            return lambda cells, epoch: pairs.pair(cells, epoch=epoch)
        if self.is_thinned:
            return lambda cells, _: denoised(cells)
        return None


def _check_pairs(fields: Sequence[FieldSpec], *, is_thinned: bool) -> None:
    if is_thinned:
        raise ConfigError(
            "data_module.pairing and a step that thins cells both say what an input is compared "
            "with. Leave one out."
        )
    if all(spec.name != PERTURBATION for spec in fields):
        raise ConfigError(
            f"data_module.pairing needs tokens that say which gene is perturbed: the field "
            f"{PERTURBATION!r}. Set tokenizer.perturbation=true and add it to fields."
        )
