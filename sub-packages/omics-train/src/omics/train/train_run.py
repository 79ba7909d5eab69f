"""The training task: from a configuration to a saved bundle.

- Everything that can be wrong with a configuration is found before the first step.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.atomic_files import remove_path
from omics.data.cell_source import open_cells
from omics.data.command_line import Verbosity, say
from omics.data.errors import ConfigError
from omics.eval.classification import missing_labels
from omics.models import Bundle, OmicsModel, run_tokens
from omics.models.heads import LabelHead
from omics.models.model_config import PLACE_PREFIX
from omics.models.readout import POOLED, Readout
from omics.tokenizers import LabelSpec, TokenBatch, bind_store
from omics.tokenizers.fields import labelled_rows
from omics.train.adapters import Adapters, add_adapters, refuse_idle_lora
from omics.train.cell_selection import data_path, label_values, training_rows
from omics.train.checkpointing.run_start import starting_point
from omics.train.checkpointing.same_configuration import refuse_other_configuration
from omics.train.freezing import freeze, trained_share
from omics.train.gene_vectors import place_vectors
from omics.train.head_plan import Asked, plan_heads, with_label_losses
from omics.train.label_columns import label_columns
from omics.train.mask_settings import mask_plan
from omics.train.model_source import ModelSource, model_source
from omics.train.objective import Objective
from omics.train.processes import Place, must_start_processes, train_in_processes
from omics.train.run_config import LoraConfig
from omics.train.run_files import (
    BUNDLE,
    BUNDLE_BEST,
    versions,
    write_configuration,
    write_run_facts,
)
from omics.train.target_cells import EXPRESSION, LABEL_EXPRESSION, measured_tokens
from omics.train.trainer_settings import check_trainer, uses_cuda
from omics.train.training_cells import TrainingCells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from omics.data.storage.store import CellStore
    from omics.models.model_config import LabelHeadConfig
    from omics.train.checkpointing.checkpoint_callback import Best
    from omics.train.data_module import TrainingBatches, ValidationBatches
    from omics.train.history import History
    from omics.train.run_config import RunConfig

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
        reversal: `{label: schedule of its gradient reversal}`.
        head_steps: `{label: steps of its reversed head for each step of the encoder}`.
    """

    source: ModelSource
    labels: list[LabelSpec]
    model: OmicsModel
    adapters: Adapters | None
    undecayed: Sequence[str]
    objective: Objective
    batches: TrainingBatches
    validation: ValidationBatches | None
    reversal: Mapping[str, str] = field(default_factory=dict)
    head_steps: Mapping[str, int] = field(default_factory=dict)


def train(
    config: RunConfig, folder: Path, *, watch: Callable[[History], bool] | None = None
) -> Bundle:
    """Train a model and save its bundle, history, configuration and versions.

    Args:
        config: of the run.
        folder: the run folder.
        watch: is shown the history after each validation, and says whether the run ends there; not
            where the training has several processes.

    Returns:
        The saved bundle, of the last weights. Those of the best validation are saved beside it
        where they are others.

    Raises:
        ExistingPathError: the folder holds a run, and neither `overwrite` nor `resume` is set.
        ConfigError: the run in the folder was begun with another configuration.
        StoppedError: a signal asked to stop; the run can go on later.
    """
    if must_start_processes(config.trainer):
        train_in_processes(config, folder)
        return Bundle.load(folder / BUNDLE)
    from omics.train.fitting import fit, is_over, num_steps

    place = Place.of(config.trainer)
    if not place.is_first:
        Verbosity.quiet = True
    start = starting_point(config, folder)
    with open_cells(data_path(config)) as store:
        training = prepare_training(config, store)
        if start is not None:
            steps = num_steps(training, config.trainer)
            refuse_other_configuration(config, start.state, steps)
            if is_over(start, steps) and (folder / BUNDLE).exists():
                say(f"{folder} is finished: {start.step} steps. There is nothing left to do.")
                return Bundle.load(folder / BUNDLE)
        if place.is_first:
            write_configuration(config, folder)
        started = time.monotonic()
        best = fit(training, config, folder, start=start, watch=watch)
        seconds = time.monotonic() - started
        provenance = _provenance(config, store, training.source)
    if not place.is_first:
        return _bundle(training, provenance)
    overwrite = config.overwrite or start is not None
    _save_best(training, provenance, folder, best)
    if training.adapters is not None:
        training.adapters.merge()
    bundle = _bundle(training, provenance).save(folder / BUNDLE, overwrite=overwrite)
    task = "finetune" if training.labels else "pretrain"
    write_run_facts(config, folder, task=task, seconds=seconds)
    say(f"Saved {folder / BUNDLE}")
    return bundle


def _save_best(
    training: Training, provenance: dict[str, Any], folder: Path, best: Best | None
) -> None:
    """Save the weights of the best validation, unless they are the last ones."""
    from omics.train.checkpointing.checkpoint_folder import (
        BEST,
        MODEL,
        checkpoint_path,
        checkpoint_steps,
        read_checkpoint,
    )

    path = folder / BUNDLE_BEST
    if best is None or best.step == checkpoint_steps(folder)[-1]:
        if path.exists():
            remove_path(path)  # Of an earlier run.
        return
    # Adapters are merged into the weights that they were trained with.
    model, adapters = copy.deepcopy((training.model, training.adapters))
    weights = read_checkpoint(checkpoint_path(folder, best.step, kind=BEST)).tensors(MODEL)
    model.load_state_dict(weights)
    if adapters is not None:
        adapters.merge()
    bundle = _bundle(replace(training, model=model), {**provenance, "step": best.step})
    bundle.save(path, overwrite=True)
    say(f"Saved {path}, of step {best.step}")


def _bundle(training: Training, provenance: dict[str, Any]) -> Bundle:
    return Bundle(
        model=training.model,
        tokenizer=training.source.tokenizer,
        transforms=training.source.preprocessing,
        label_specs=training.labels,
        provenance=provenance,
    )


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
    columns = label_columns(config.label_columns)
    names = tuple(column.label_column_name for column in columns)
    source = model_source(config, store.genes)
    rows = training_rows(config.data_module, store)
    cells = TrainingCells.of(config, store, source, rows, columns=names)
    rows = cells.rows
    values = {name: label_values(store, name) for name in names}
    labels = [
        column.spec(values[name][rows["train"]])
        for name, column in zip(names, columns, strict=True)
    ]
    _tell_unseen(labels, {name: each[rows["validation"]] for name, each in values.items()})
    losses = with_label_losses(config.trainer.losses, labels)
    fields = {spec.name: spec for spec in source.tokenizer.fields}
    asked = Asked(
        fields=fields,
        hidden=frozenset(spec.name for spec in source.masked),
        answered=frozenset({LABEL_EXPRESSION} if cells.answered else ()),
        labels={spec.name: spec for spec in labels},
    )
    heads = [column.head(spec) for column, spec in zip(columns, labels, strict=True)]
    plan = plan_heads(losses, asked, heads)
    if source.checkpoint is not None:
        plan = plan.continued(source.checkpoint.model.model_config)
    reader, tokenizer = bind_store(
        source.tokenizer, store, labels=labels, transforms=cells.training_steps
    )
    say(f"{tokenizer.coverage}")
    sizes = replace(source.config, field_heads=plan.field_heads, wced=plan.wced, labels=plan.labels)
    objective = Objective.build(
        losses,
        plan,
        asked,
        masks=mask_plan(config, source.tokenizer, source.masked),
        measured=measured_tokens(source.tokenizer, tokenizer, store.genes, source.preprocessing),
        answered={LABEL_EXPRESSION: fields[EXPRESSION]} if cells.answered else {},
        denoised=frozenset({EXPRESSION} if cells.is_thinned else ()),
        label_codes={
            spec.name: spec.encode(values[spec.name][rows["train"]])
            for spec in labels
            if spec.kind == "class"
        },
        leading_tokens=sizes.leading_tokens(),
    )
    check_trainer(config, objective, validates=len(rows["validation"]) > 0)
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
    new_heads = sorted({int(n.split(".")[1]) for n in new if n.startswith("label_heads.")})
    if new_heads:
        plain_tokens = partial(cells.plain_tokens, reader, tokenizer)
        # Several processes must find the same, to the last bit.
        alone = uses_cuda(config.trainer) and cells.place.world_size == 1
        device = "cuda" if alone else "cpu"
        _standardize_label_heads(model, new_heads, plain_tokens, device)
    return Training(
        source=source,
        labels=labels,
        model=model,
        adapters=_choose_trained(model, config),
        undecayed=undecayed,
        objective=objective,
        batches=cells.training_batches(reader, tokenizer, objective),
        validation=cells.validation_batches(reader, tokenizer, objective),
        reversal={column.label_column_name: column.reversal_schedule for column in columns},
        head_steps={column.label_column_name: column.reversal_head_steps for column in columns},
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

    Label heads are numbered, whole-cell decoders stack their outputs and links give outputs another
    meaning: equal shapes do not say that the classes or values are the same.
    """
    ours, theirs = model.model_config, checkpoint.model.model_config
    heads = _meanings(labels, ours.labels)
    before = _meanings(checkpoint.label_specs, theirs.labels)
    same: dict[str, set[str]] = {
        "label_heads": {number for number, head in heads.items() if before.get(number) == head},
        "wced_heads": {each.field for each in set(ours.wced) & set(theirs.wced)},
        "field_heads": {each.name for each in set(ours.field_heads) & set(theirs.field_heads)},
    }

    def means_the_same(name: str) -> bool:
        group, _, rest = name.partition(".")
        return group not in same or rest.split(".")[0] in same[group]

    state = checkpoint.model.state_dict()
    return {name: tensor for name, tensor in state.items() if means_the_same(name)}


def _meanings(
    labels: Sequence[LabelSpec], heads: Sequence[LabelHeadConfig]
) -> dict[str, tuple[LabelSpec, LabelHeadConfig]]:
    """Return what each label head stands for, by number; how it is trained does not count."""
    pairs = zip(labels, heads, strict=True)
    return {
        str(number): (spec, replace(head, gradient_reversal=0.0))
        for number, (spec, head) in enumerate(pairs)
    }


def _standardize_label_heads(
    model: OmicsModel, new: Sequence[int], tokens: Callable[[], Iterator[TokenBatch]], device: str
) -> None:
    """Set the constants of new label heads from what they read of training cells."""
    import torch

    places = {number: model.model_config.labels[number].token for number in new}
    for place in set(places.values()):
        pooling = POOLED if place is None else f"{PLACE_PREFIX}{place}"
        readout = Readout.of(model.model_config, pooling=pooling)
        results = run_tokens(model, tokens(), readout=readout, device=device)
        rows = torch.from_numpy(np.concatenate([result.embeddings for result in results]))
        for number in (number for number, read in places.items() if read == place):
            head = model.label_heads[number]
            assert isinstance(head, LabelHead)
            head.standardize(rows.to(device))
    model.train().to("cpu")


def _tell_unseen(labels: Sequence[LabelSpec], validation: Mapping[str, Array]) -> None:
    """Say how many validation cells have a label that no training cell has."""
    for spec in labels:
        known = len(labelled_rows(spec.encode(validation[spec.name])))
        given = int((~missing_labels(validation[spec.name])).sum())
        if given > known:
            say(
                f"{given - known} of {given} validation cells have a {spec.name!r} that no training "
                "cell has: they are not scored"
            )


def _provenance(config: RunConfig, store: CellStore, source: ModelSource) -> dict[str, Any]:
    parent = source.checkpoint
    earlier = parent.provenance.get("masked_fields", ()) if parent else ()
    return {
        "store_digest": store.digest,
        "gene_digest": store.genes.digest,
        "seed": config.seed,
        # A fine-tuned model still knows the mask tokens of its pretraining.
        "masked_fields": sorted({*earlier, *(spec.name for spec in source.masked)}),
        "parent": parent.digest if parent else None,
        "versions": versions(),
    }
