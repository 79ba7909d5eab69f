"""Values that are hidden from a bundle and asked of it, scored beside guesses that know no cell.

- Cells are read as inference reads them, and hidden as `data_module` says, with the masks of epoch 0:
  a function of the seed, the cell and the gene.
- Of tokens that name a gene and its bin (Bioformers) the likeliest bin of the same gene is the answer:
  what other genes have does not count, and no bin beside it is one of another gene.
- Guesses: the value 0, and what a gene is most often, or on average, in the training cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.command_line import progress, say
from omics.data.splits import load_split
from omics.eval.hidden_values import HiddenScores
from omics.eval.results import rows_of_figures
from omics.models.inference import choose_device, field_outputs, token_batches
from omics.models.predicted_values import predicted_values
from omics.tokenizers import reads_cells
from omics.tokenizers.gene_bin_tokenizer import GeneBinTokenizer
from omics.train.cell_selection import data_path
from omics.train.mask_settings import mask_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from omics.data.storage.store import CellStore
    from omics.eval.results import EvalResult
    from omics.models import Bundle
    from omics.models.model_config import FieldHeadConfig
    from omics.tokenizers import FieldSpec, TokenBatch
    from omics.train.masking import MaskPlan
    from omics.train.run_config import RunConfig
    from omics.train.training_batch import Questions

Array = np.ndarray[Any, np.dtype[Any]]

MODEL = "field head"
ZERO = "always zero"
GUESSES = {
    "bins": "commonest bin of the gene",
    "ids": "commonest id",
    "numbers": "mean of the gene",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenField:
    """A field that heads of a bundle predict where it is hidden.

    Attributes:
        spec: of the field.
        heads: by kind: `token_scores`, or `regression` and perhaps `is_zero`.
        num_gene_ids: of the field of the genes.
        bins_of_gene: of tokens that name a gene and its bin, how many bins each gene has; else None.
    """

    spec: FieldSpec
    heads: Mapping[str, FieldHeadConfig]
    num_gene_ids: int
    bins_of_gene: int | None = None

    @property
    def num_genes(self) -> int:
        """Genes that `gene_of` tells apart, special tokens among them."""
        if self.kind == "ids":
            return 1
        return -(-self.num_gene_ids // (self.bins_of_gene or 1))

    @property
    def kind(self) -> str:
        """`bins`, `ids` or `numbers`, see `omics.eval.hidden_values`."""
        if self.spec.kind == "continuous":
            return "numbers"
        return "bins" if self.spec.token_values else "ids"

    def truth(self, values: Array) -> Array:
        """Return [K], what is scored, of values of the field [K]."""
        if self.kind != "bins":
            return values
        return np.nan_to_num(self.spec.numbers(values), nan=-1).astype(np.int64)

    def answers(self, outputs: Mapping[str, Tensor], genes: Array) -> Array:
        """Return [K], what the heads say, in the form of `truth`.

        Args:
            outputs: `{head: [K, width]}`.
            genes: int [K], as `gene_of` has them.
        """
        if self.kind == "numbers":
            value = self.heads["regression"]
            zero = outputs[self.heads["is_zero"].name][:, 0] if "is_zero" in self.heads else None
            found = predicted_values(outputs[value.name][:, 0], link=value.link, zero_logit=zero)
            return found.cpu().numpy()
        scores = outputs[self.heads["token_scores"].name]
        if self.bins_of_gene is not None:
            by_gene = scores[:, : -len(self.spec.special_ids)]
            by_gene = by_gene.reshape(len(by_gene), -1, self.bins_of_gene)
            place = torch.arange(len(genes), device=scores.device)
            own = by_gene[place, torch.from_numpy(genes).to(scores.device)]
            return own.argmax(-1).cpu().numpy()
        ordinary = np.setdiff1d(np.arange(self.spec.vocabulary_size), self.spec.special_ids)
        best = scores[:, torch.from_numpy(ordinary).to(scores.device)].argmax(-1).cpu().numpy()
        return self.truth(ordinary[best])

    def gene_of(self, genes: Array) -> Array:
        """Return int64 [K], whose value a token holds: 0 for all where the gene is the value.

        Args:
            genes: int [K], ids of the field of the genes.
        """
        if self.bins_of_gene is not None:
            return genes.astype(np.int64) // self.bins_of_gene
        return np.zeros(len(genes), np.int64) if self.kind == "ids" else genes.astype(np.int64)


def hidden_fields(bundle: Bundle) -> list[HiddenField]:
    """Return the fields of the input that heads of a bundle predict token by token.

    Args:
        bundle: any.
    """
    if not reads_cells(bundle.tokenizer):
        return []
    tokenizer = bundle.tokenizer
    bins = tokenizer.num_bins if isinstance(tokenizer, GeneBinTokenizer) else None
    found = []
    for spec in tokenizer.fields:
        heads = {
            head.kind: head
            for head in bundle.model.model_config.field_heads
            if head.field == spec.name
        }
        wanted = "regression" if spec.kind == "continuous" else "token_scores"
        if wanted in heads and spec.mask_id is not None:
            found.append(
                HiddenField(
                    spec=spec,
                    heads={kind: heads[kind] for kind in (wanted, "is_zero") if kind in heads},
                    num_gene_ids=tokenizer.fields[0].vocabulary_size,
                    bins_of_gene=bins,
                )
            )
    return found


def score_hidden_fields(
    config: RunConfig,
    bundle: Bundle,
    store: CellStore,
    rows: Array,
    fields: Sequence[HiddenField],
) -> list[EvalResult]:
    """Hide values of held-out cells, ask the model for them, and score it beside guesses.

    Args:
        config: of the run; its `data_module` says what is hidden.
        bundle: with a tokenizer of cells.
        store: the cells.
        rows: int64 [n], the held-out ones.
        fields: of `hidden_fields`.

    Returns:
        For each field, the figures of the model and of each guess, and how far the model is from each
        guess.

    Raises:
        ConfigError: ratios that are none, or that do not go together.
        InputDataError: nothing was hidden, or a value that is not finite.
    """
    assert reads_cells(bundle.tokenizer)
    masks = mask_plan(config, bundle.tokenizer, [field.spec for field in fields])
    guesses = _guesses(config, bundle, store, fields)
    methods = {field.spec.name: _methods(field, guesses[field.spec.name]) for field in fields}
    scores = {
        name: {
            method: HiddenScores(kind=field.kind, high_bin=config.scoring.high_bin)
            for method in methods[name]
        }
        for name, field in ((field.spec.name, field) for field in fields)
    }
    for field, cell, num_cells, asked, answers in _answers(
        config, bundle, store, rows, fields, masks=masks
    ):
        name = field.spec.name
        genes, truth = field.gene_of(asked.genes), field.truth(asked.values)
        for method, of_gene in methods[name].items():
            predicted = answers if of_gene is None else of_gene[genes]
            scores[name][method].add(cell, num_cells, truth=truth, predicted=predicted)
    results = []
    for field in fields:
        results += _rows(config, bundle, field.spec.name, scores[field.spec.name])
    return results


def _answers(
    config: RunConfig,
    bundle: Bundle,
    store: CellStore,
    rows: Array,
    fields: Sequence[HiddenField],
    *,
    masks: MaskPlan,
) -> Iterator[tuple[HiddenField, Array, int, Questions, Array]]:
    """Yield, batch by batch and field by field, the cells of hidden tokens and what heads say."""
    data = config.data_module
    device = choose_device(config.trainer.accelerator)
    _, batches = token_batches(
        bundle,
        store,
        rows=rows,
        batch_tokens=data.batch_tokens,
        batch_size=data.batch_size,
        device=device,
    )
    with progress("hiding and asking", len(rows)) as advance:
        for batch in batches:
            shown, questions = masks.hide(batch, epoch=0, training=False)
            outputs = field_outputs(
                bundle.model,
                shown,
                {
                    head.name: questions[field.spec.name].positions
                    for field in fields
                    for head in field.heads.values()
                },
                precision=config.trainer.precision,
                device=device,
            )
            for field in fields:
                asked = questions[field.spec.name]
                cell = batch.cell_of_token()[asked.positions]
                found = field.answers(outputs, field.gene_of(asked.genes))
                yield field, cell, len(batch), asked, found
            advance(len(batch))


def _methods(field: HiddenField, guess: Array | None) -> dict[str, Array | None]:
    """Return `{method: its answer by gene}`; None for the model, which looks at the cell."""
    methods: dict[str, Array | None] = {MODEL: None}
    if guess is not None:
        methods[GUESSES[field.kind]] = guess
    if field.kind != "ids":
        methods[ZERO] = np.zeros(field.num_genes, np.int64)
    return methods


@dataclass(slots=True)
class _SeenInTraining:
    """What the genes of a field hold in the training cells.

    Attributes:
        field: that is read.
        sums: float64 [genes, columns]: how often each bin or id; of numbers, how many and
            their sum.
    """

    field: HiddenField
    sums: Array

    @classmethod
    def of(cls, field: HiddenField) -> _SeenInTraining:
        bins = field.bins_of_gene or field.spec.vocabulary_size
        columns = 2 if field.kind == "numbers" else bins
        return cls(field, np.zeros((field.num_genes, columns)))

    def add(self, tokens: TokenBatch, genes: FieldSpec) -> None:
        ids = tokens.fields[genes.name]
        shown = ~genes.is_special(ids)
        gene = self.field.gene_of(ids[shown])
        values = self.field.truth(tokens.fields[self.field.spec.name][shown])
        shape = self.sums.shape
        if self.field.kind == "numbers":
            number = np.bincount(gene, minlength=shape[0])
            self.sums += np.stack([number, np.bincount(gene, values, shape[0])], axis=1)
        else:
            pairs = gene * shape[1] + values
            self.sums += np.bincount(pairs, minlength=self.sums.size).reshape(shape)

    def guess(self) -> Array:
        """Return [genes]; a gene that no training cell has is taken for any other."""
        everything = self.sums.sum(0)
        if self.field.kind == "numbers":
            mean = everything[1] / max(everything[0], 1)
            return np.where(
                self.sums[:, 0] > 0, self.sums[:, 1] / np.maximum(self.sums[:, 0], 1), mean
            )
        seen = self.sums.sum(1) > 0
        return np.where(seen, self.sums.argmax(1), everything.argmax())


def _guesses(
    config: RunConfig, bundle: Bundle, store: CellStore, fields: Sequence[HiddenField]
) -> dict[str, Array | None]:
    """Return `{field: what each gene has in the training cells}`; None where there are no such cells."""
    data = config.data_module
    rows = np.zeros(0, np.int64)
    if data.split is not None:
        rows = load_split(data.split, store).rows(data.train_split)
    if not len(rows):
        say(f"note: the split has no {data.train_split} cells, so no gene is known: no such guess")
        return dict.fromkeys(field.spec.name for field in fields)
    seen = [_SeenInTraining.of(field) for field in fields]
    genes = bundle.tokenizer.fields[0]
    _, batches = token_batches(bundle, store, rows=rows)
    with progress("looking at training cells", len(rows)) as advance:
        for batch in batches:
            for each in seen:
                each.add(batch, genes)
            advance(len(batch))
    return {each.field.spec.name: each.guess() for each in seen}


def _rows(
    config: RunConfig, bundle: Bundle, name: str, scores: Mapping[str, HiddenScores]
) -> list[EvalResult]:
    """Return the rows of one field: the model, the guesses, how far the model is from each."""
    draws: dict[str, Any] = {
        "num_resamples": config.scoring.num_bootstrap_runs,
        "seed": config.seed,
    }
    said: dict[str, Any] = {
        "task": f"hidden:{name}",
        "dataset": Path(data_path(config)).name,
        "seed": config.seed,
    }
    rows = []
    for method, found in scores.items():
        figures = found.figures(ci_method=config.scoring.ci_method, **draws)
        digest = bundle.digest if method == MODEL else ""
        rows += rows_of_figures(figures, method=method, bundle=digest, **said)
    for method, found in scores.items():
        if method != MODEL:
            apart = scores[MODEL].difference(found, **draws)
            both = f"{MODEL} minus {method}"
            rows += rows_of_figures([apart], method=both, bundle=bundle.digest, **said)
    return rows
