"""What a bundle says that perturbations do: one mean expression each, as `omics-eval perturb` reads it.

- Each perturbed cell is shown as in training: as a control with the perturbed genes marked. Nothing of
  the perturbed cell itself is looked at.
- The expected expression of a gene is its value times the probability that it is not zero. It is
  averaged over the cells whose input holds the gene, before any logarithm. A gene that no input holds
  has NaN: the model was not asked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.command_line import progress
from omics.data.errors import ConfigError, InputDataError
from omics.data.loading.loader import Loader
from omics.data.splits import load_split
from omics.data.transforms import LogNormalize
from omics.data.transforms.transform_registry import NORMALISES
from omics.eval.baselines import TARGET_SUM
from omics.models.inference import TOKENS_ON_CPU, TOKENS_ON_GPU, choose_device, field_outputs
from omics.models.predicted_values import predicted_values
from omics.models.token_packing import packed
from omics.tokenizers import GeneTokenizer
from omics.train.control_pairing import PERTURBATION, ControlPairing, Perturbations
from omics.train.target_cells import LABEL_EXPRESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from omics.data.storage.store import CellStore
    from omics.data.transforms import Transform
    from omics.models import Bundle
    from omics.models.model_config import FieldHeadConfig
    from omics.tokenizers import TokenBatch
    from omics.train.run_config import RunConfig

Array = np.ndarray[Any, np.dtype[Any]]

_CELLS_READ_AT_ONCE = 128


def perturbed_expression(
    config: RunConfig, bundle: Bundle, store: CellStore, rows: Array
) -> AnnData:
    """Predict the mean expression of each perturbation.

    Args:
        config: of the run; `data_module.pairing` says what was done to each cell. With a split, controls
            are those of its training cells.
        bundle: trained on pairs, such as with the recipe `sequence_labeling`.
        store: the cells.
        rows: int64 [n], the cells; the perturbed ones among them are predicted.

    Returns:
        X float32 [perturbations, genes that the model knows], ln(1 + expression of 10,000 in all); obs
        with the perturbation, in the column of `data_module.pairing`, and `num_cells`.

    Raises:
        ConfigError: a bundle that was not trained on pairs, or without log-normalised values.
        InputDataError: no control, or no perturbed cell.
    """
    import anndata
    import pandas as pd

    tokenizer, heads = _labelling(bundle, config)
    steps = [step for step in bundle.transforms if not step.training_only]
    total = _normalised_to(steps)
    wants, data = config.data_module.pairing, config.data_module
    perturbations = Perturbations.read(store, wants)
    everything = np.arange(len(store))
    controls = everything if data.split is None else load_split(data.split, store).rows("train")
    pairs = ControlPairing.of(
        store, perturbations, controls=controls, steps=steps, training=False, seed=config.seed
    )
    rows = pairs.usable(rows)
    if not len(rows):
        raise InputDataError(
            f"None of the cells to predict has a perturbation, in {wants.column!r}, of known genes and "
            "a control. Choose others with data_module.predict_split."
        )
    asked, place = np.unique(perturbations.code[rows], return_inverse=True)
    place_of = np.full(len(store), -1, np.int64)
    place_of[rows] = place
    genes = bundle.tokenizer.fields[0]
    sums = np.zeros((len(asked), genes.vocabulary_size))
    number = np.zeros_like(sums)
    device = choose_device(config.trainer.accelerator)
    with progress("predicting", len(rows)) as advance:
        for batch in _paired_tokens(
            config, tokenizer, store, pairs, rows, on_cpu=device.type == "cpu"
        ):
            tokens = np.asarray(batch.fields[genes.name])
            at = np.flatnonzero(~genes.is_special(tokens))
            outputs = field_outputs(
                bundle.model,
                batch,
                {head.name: at for head in heads.values()},
                precision=config.trainer.precision,
                device=device,
            )
            value = heads["regression"]
            found = predicted_values(outputs[value.name][:, 0], link=value.link).cpu().numpy()
            expression = np.maximum(np.expm1(found.astype(np.float64)), 0.0)
            if "is_zero" in heads:
                zero = outputs[heads["is_zero"].name][:, 0].sigmoid().cpu().numpy()
                expression *= 1.0 - zero
            group = place_of[batch.rows][batch.cell_of_token()[at]]
            keys, first = np.unique(group * sums.shape[1] + tokens[at], return_inverse=True)
            sums.flat[keys] += np.bincount(first, expression)
            number.flat[keys] += np.bincount(first)
            advance(len(batch))
    token_of_gene, _ = tokenizer.token_of_gene(store.genes)
    known = np.flatnonzero(token_of_gene >= 0)
    mean = np.full(sums.shape, math.nan)
    np.divide(sums, number, out=mean, where=number > 0)
    obs = pd.DataFrame(
        {wants.column: perturbations.names[asked], "num_cells": np.bincount(place)},
        index=[str(each) for each in range(len(asked))],
    )
    return anndata.AnnData(
        X=np.log1p(mean[:, token_of_gene[known]] * (TARGET_SUM / total)).astype(np.float32),
        obs=obs,
        var=pd.DataFrame({"symbol": store.genes.symbols[known]}, index=store.genes.ids[known]),
    )


def _labelling(
    bundle: Bundle, config: RunConfig
) -> tuple[GeneTokenizer, dict[str, FieldHeadConfig]]:
    """Return the tokenizer and, by kind, the heads that say what perturbed cells express."""
    tokenizer = bundle.tokenizer
    heads = {
        head.kind: head
        for head in bundle.model.model_config.field_heads
        if head.field == LABEL_EXPRESSION and head.kind in ("regression", "is_zero")
    }
    fields = [spec.name for spec in tokenizer.fields]
    if isinstance(tokenizer, GeneTokenizer) and PERTURBATION in fields and "regression" in heads:
        return tokenizer, heads
    raise ConfigError(
        f"data_module.pairing asks what perturbations do, and {config.checkpoint} was not trained to say "
        f"it: it needs the field {PERTURBATION!r} (it has {fields}) and a regression of "
        f"{LABEL_EXPRESSION!r}. Train one with the recipe sequence_labeling, or leave pairing out."
    )


def _normalised_to(steps: Sequence[Transform]) -> float:
    """Return what the expression of a cell sums to before its logarithm."""
    normalising = [step for step in steps if NORMALISES in step.kinds()]
    if normalising and isinstance(normalising[-1], LogNormalize):
        return normalising[-1].target_sum
    names = [step.name for step in normalising] or ["no step"]
    raise ConfigError(
        f"The values of this bundle are made by {names[-1]}, and a mean over cells is known of values of "
        "log_normalize only. Train with that step."
    )


def _paired_tokens(
    config: RunConfig,
    tokenizer: GeneTokenizer,
    store: CellStore,
    pairs: ControlPairing,
    rows: Array,
    *,
    on_cpu: bool,
) -> Iterator[TokenBatch]:
    """Return tokens of the controls that stand for cells, in batches of bounded size."""
    data = config.data_module
    bound = tokenizer.bind(store.genes)
    loader = Loader(store, rows=rows, batch_size=_CELLS_READ_AT_ONCE)
    return packed(
        (bound.encode(pairs.pair(cells, epoch=0)) for cells in loader),
        max_tokens=data.batch_tokens or (TOKENS_ON_CPU if on_cpu else TOKENS_ON_GPU),
        max_cells=data.batch_size,
        max_area=None,
    )
