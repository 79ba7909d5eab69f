"""The training task: from a configuration to a saved bundle.

- Everything that can be wrong with a configuration is found before the first step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.cell_source import open_cells
from omics.data.command_line import progress, say
from omics.data.errors import ConfigError
from omics.data.loading.loader import Loader
from omics.models import Bundle, OmicsModel, run_tokens
from omics.models.heads import LabelHead
from omics.models.model_config import PLACE_PREFIX
from omics.models.readout import POOLED, Readout
from omics.tokenizers import LabelSpec, TokenBatch, bind_store
from omics.train.adapters import Adapters, add_adapters, refuse_idle_lora
from omics.train.cell_selection import data_path, label_values, training_rows
from omics.train.data_module import TrainingBatches
from omics.train.freezing import freeze, trained_share
from omics.train.gene_vectors import place_vectors
from omics.train.losses import class_weights
from omics.train.model_source import ModelSource, model_source
from omics.train.objective import Objective, plan_heads
from omics.train.run_config import LoraConfig, LossConfig, RunConfig
from omics.train.run_files import (
    BUNDLE,
    refuse_existing,
    versions,
    write_configuration,
    write_run_facts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from omics.data.loading.cell_reader import CellReader
    from omics.data.storage.store import CellStore
    from omics.tokenizers import BoundTokenizer, FieldSpec

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A checked training, ready for its first step.

    Attributes:
        source: what it starts from.
        labels: columns with their classes.
        model: with the heads that the losses read.
        adapters: beside its weights until they are merged; None for none.
        undecayed: names of tables without weight decay, as some of their rows are frozen.
        objective: of the run.
        batches: of training; each pass is an epoch.
        validation: batches of a fixed epoch, or None.
    """

    source: ModelSource
    labels: list[LabelSpec]
    model: OmicsModel
    adapters: Adapters | None
    undecayed: Sequence[str]
    objective: Objective
    batches: TrainingBatches
    validation: TrainingBatches | None


def train(config: RunConfig, folder: Path) -> Bundle:
    """Train a model and save its bundle, history, configuration and versions.

    Args:
        config: of the run.
        folder: the run folder.

    Returns:
        The saved bundle.

    Raises:
        ExistingPathError: the folder holds a bundle and `overwrite` is not set.
    """
    refuse_existing(folder / BUNDLE, overwrite=config.overwrite)
    with open_cells(data_path(config)) as store:
        training = prepare_training(config, store)
        write_configuration(config, folder)
        started = time.monotonic()
        fit(training, config, folder)
        seconds = time.monotonic() - started
        bundle = Bundle(
            model=training.model,
            tokenizer=training.source.tokenizer,
            transforms=training.source.preprocessing,
            labels={spec.name: list(spec.classes) for spec in training.labels},
            provenance=_provenance(config, store, training.source),
        )
    bundle.save(folder / BUNDLE, overwrite=config.overwrite)
    task = "finetune" if training.labels else "pretrain"
    write_run_facts(config, folder, task=task, seconds=seconds)
    say(f"Saved {folder / BUNDLE}")
    return bundle


def prepare_training(config: RunConfig, store: CellStore) -> Training:
    """Build and check all parts of a training; nothing is written.

    Args:
        config: of the run.
        store: the cells.

    Raises:
        ConfigError: parts of the configuration do not fit each other or the checkpoint.
        UnknownNameError: a label column or split that does not exist.
        InputDataError: genes or labels of the cells do not serve.
    """
    rows = training_rows(config.data_module, store)
    source = model_source(config, store.genes)
    values = {name: label_values(store, name)[rows["train"]] for name in config.label_columns}
    labels = [LabelSpec.from_values(name, column) for name, column in values.items()]
    losses = _losses(config)
    plan = plan_heads(losses, labels, source.masked)
    _refuse_errors_of_bins(losses, source.tokenizer.fields)
    reader, tokenizer = bind_store(
        source.tokenizer, store, labels=labels, transforms=source.training_steps
    )
    say(f"{tokenizer.coverage}")
    objective = Objective.from_losses(
        losses,
        plan,
        genes=source.tokenizer.fields[0],
        masked_fields=source.masked,
        change_ratio=config.data_module.change_ratio,
        seed=config.seed,
        measured=tokenizer.measured_tokens(),
        class_weight=_class_weights(losses, labels, values),
    )
    sizes = replace(source.config, field_heads=plan.field_heads, wced=plan.wced, labels=plan.labels)
    model = OmicsModel.build(sizes, seed=config.seed)
    new = list(model.state_dict())
    if source.checkpoint is not None:
        new = model.load_matching(_reusable_weights(source.checkpoint, model, labels))
    undecayed = []
    for name, vectors in source.vectors.items():
        say(str(vectors))
        table = place_vectors(model, name, vectors)
        if vectors.frozen:
            undecayed.append(table)
    parts = _Parts(config, reader, source, tokenizer, objective)
    new_heads = sorted({int(n.split(".")[1]) for n in new if n.startswith("label_heads.")})
    if new_heads:
        _standardize_label_heads(model, new_heads, partial(parts.plain_tokens, rows["train"]))
    validation = None
    if len(rows["validation"]):
        # What a self-supervised loss hides and samples, validation must hide and sample too,
        # always the same way: as in epoch 0.
        hides = objective.is_self_supervised
        validation = parts.batches(rows["validation"], shuffle=False, training=hides)
    return Training(
        source=source,
        labels=labels,
        model=model,
        adapters=_choose_trained(model, config),
        undecayed=undecayed,
        objective=objective,
        batches=parts.batches(rows["train"], shuffle=True, training=True),
        validation=validation,
    )


def fit(training: Training, config: RunConfig, folder: Path) -> None:
    """Run the optimiser steps with Lightning as the outer loop; the model is trained in place.

    Args:
        training: the checked parts.
        config: with its trainer section.
        folder: where the history goes.
    """
    import logging

    import lightning as L

    from omics.train.lightning_module import (
        RunReporter,
        TrainingModule,
        interrupts_as_usual,
        quiet_lightning,
    )

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    settings, batches = config.trainer, training.batches
    L.seed_everything(config.seed, verbose=False)
    num_steps = settings.max_epochs * batches.steps_per_epoch
    module = TrainingModule(
        training.model, training.objective, settings, num_steps, undecayed=training.undecayed
    )
    verb = "fine-tuning" if training.labels else "pretraining"
    total = settings.max_epochs * len(batches)
    with quiet_lightning(), progress(verb, total, unit="batches") as advance:
        trainer = L.Trainer(
            max_epochs=settings.max_epochs,
            accelerator=settings.accelerator,
            devices=1,
            precision=settings.precision,
            gradient_clip_val=settings.gradient_clip_norm or None,
            accumulate_grad_batches=settings.accumulate_grad_batches,
            callbacks=[RunReporter(folder, advance)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if training.validation is not None else 0,
            default_root_dir=folder,
        )
        with interrupts_as_usual(trainer):
            trainer.fit(module, train_dataloaders=batches, val_dataloaders=training.validation)
    for phase in ("train", "validation"):
        last = ", ".join(f"{k} {v:.3f}" for k, v in sorted(module.history.last(phase).items()))
        if last:
            say(f"{phase}: {last}")
    if training.adapters is not None:
        training.adapters.merge()
    training.model.cpu().eval()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What all batches of a run share."""

    config: RunConfig
    reader: CellReader
    source: ModelSource
    tokenizer: BoundTokenizer
    objective: Objective

    def loader(self, rows: Array, *, order: str, training: bool) -> Loader:
        data = self.config.data_module
        return Loader(
            self.reader,
            rows=rows,
            batch_size=data.batch_size,
            order=order,
            transforms=self.source.training_steps if training else self.source.preprocessing,
            obs=tuple(self.config.label_columns),
            seed=self.config.seed,
            training=training,
            prefetch=data.prefetch,
        )

    def plain_tokens(self, rows: Array) -> Iterator[TokenBatch]:
        """Yield the tokens of cells as inference sees them."""
        for cells in self.loader(rows, order="sequential", training=False):
            yield self.tokenizer.encode(cells)

    def batches(self, rows: Array, *, shuffle: bool, training: bool) -> TrainingBatches:
        order = self.config.data_module.order if shuffle else "sequential"
        return TrainingBatches(
            loader=self.loader(rows, order=order, training=training),
            tokenizer=self.tokenizer,
            objective=self.objective,
            window=self.config.trainer.accumulate_grad_batches if shuffle else 1,
            fixed_epoch=None if shuffle else 0,
        )


def _choose_trained(model: OmicsModel, config: RunConfig) -> Adapters | None:
    """Freeze what the configuration names and put adapters where it wants them."""
    settings = config.trainer
    refuse_idle_lora(settings.lora, LoraConfig())
    if settings.freeze:
        say(freeze(model, settings.freeze))
    if not settings.lora.r:
        return None
    if config.checkpoint is None:
        raise ConfigError("trainer.lora adapts trained weights: add checkpoint=BUNDLE.")
    adapters = add_adapters(model, settings.lora, seed=config.seed)
    say(f"LoRA in {len(adapters.modules)} layers: {trained_share(model)}")
    return adapters


def _reusable_weights(
    checkpoint: Bundle, model: OmicsModel, labels: Sequence[LabelSpec]
) -> dict[str, Tensor]:
    """Return the checkpoint's weights without heads that mean something else in the new model.

    Label heads are numbered and whole-cell decoders stack their outputs: equal shapes do not say
    that the classes or outputs are the same.
    """
    theirs = dict(enumerate(checkpoint.label_specs))
    same_labels = {i for i, spec in enumerate(labels) if theirs.get(i) == spec}
    outputs = {wced.field: wced.outputs for wced in model.model_config.wced}
    before = {wced.field: wced.outputs for wced in checkpoint.model.model_config.wced}
    same_wced = {name for name, order in outputs.items() if before.get(name) == order}

    def means_the_same(name: str) -> bool:
        group, _, rest = name.partition(".")
        which = rest.split(".")[0]
        if group == "label_heads":
            return int(which) in same_labels
        return group != "wced_heads" or which in same_wced

    state = checkpoint.model.state_dict()
    return {name: tensor for name, tensor in state.items() if means_the_same(name)}


def _standardize_label_heads(
    model: OmicsModel, new: Sequence[int], tokens: Callable[[], Iterator[TokenBatch]]
) -> None:
    """Set the constants of new label heads from what they read of the training cells."""
    import torch

    places = {number: model.model_config.labels[number].token for number in new}
    for place in set(places.values()):
        pooling = POOLED if place is None else f"{PLACE_PREFIX}{place}"
        readout = Readout.of(model.model_config, pooling=pooling)
        results = run_tokens(model, tokens(), readout=readout)
        rows = torch.from_numpy(np.concatenate([result.embeddings for result in results]))
        for number in (number for number, read in places.items() if read == place):
            head = model.label_heads[number]
            assert isinstance(head, LabelHead)
            head.standardize(rows)
    model.train()


def _losses(config: RunConfig) -> Sequence[LossConfig]:
    """Return the losses; label columns without any get a cross-entropy each."""
    if config.trainer.losses or not config.label_columns:
        return config.trainer.losses
    return [
        LossConfig(name="cross_entropy", label_column_name=name) for name in config.label_columns
    ]


def _refuse_errors_of_bins(losses: Sequence[LossConfig], fields: Sequence[FieldSpec]) -> None:
    bins = [field.name for field in fields if field.kind == "discrete"]
    for loss in losses:
        if loss.name == "mse" and loss.wced_target is not None and loss.field_name in bins:
            raise ConfigError(
                f"The loss 'mse' of whole cells is about {loss.field_name!r}, which holds tokens "
                "and no values. Use 'is_zero_bce', or continuous values."
            )


def _class_weights(
    losses: Sequence[LossConfig], labels: Sequence[LabelSpec], values: Mapping[str, Array]
) -> dict[str, dict[float, Tensor]]:
    """Return `{label: {exponent: weights}}` for every exponent that a loss asks for."""
    table: dict[str, dict[float, Tensor]] = {}
    for spec in labels:
        codes = spec.encode(values[spec.name])
        exponents = {x.class_weight_exponent for x in losses if x.label_column_name == spec.name}
        table[spec.name] = {e: class_weights(codes, len(spec.classes), e) for e in exponents}
    return table


def _provenance(config: RunConfig, store: CellStore, source: ModelSource) -> dict[str, Any]:
    return {
        "store_digest": store.digest,
        "gene_digest": store.genes.digest,
        "seed": config.seed,
        "parent": source.checkpoint.digest if source.checkpoint else None,
        "versions": versions(),
    }
