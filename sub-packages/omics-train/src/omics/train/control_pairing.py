"""`ControlPairing`: perturbed cells, each beside a control cell that stands for it before.

- The input is the control's: its genes, its values, and which genes are perturbed. Which genes the
  perturbed cell expresses is not looked at, so that the input does not give the answer away.
- The control of a cell is drawn from (seed, epoch, cell), from the same group where one is named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.command_line import say
from omics.data.errors import InputDataError, nearest
from omics.data.keyed_random import keyed_uniform
from omics.data.obs_groups import group_codes
from omics.data.perturbation_names import perturbed_genes
from omics.data.transforms import apply_transforms, bind_transforms
from omics.train.target_cells import cutting_steps, value_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.cell_batch import CellBatch
    from omics.data.storage.store import CellStore
    from omics.data.transforms import Transform
    from omics.train.run_config import PairingConfig

Array = np.ndarray[Any, np.dtype[Any]]

PERTURBATION = "perturbation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbations:
    """What was done to each cell of a store.

    Attributes:
        names: object [perturbations], as the column has them.
        code: int64 [cells], number of the perturbation; -1 for controls, -2 for cells that cannot
            be used.
        genes: int64, positions of the genes of one perturbation after the other.
        first: int64 [perturbations + 1], where the genes of each begin.
        group: int64 [cells], group of each cell; all 0 without a group column.
    """

    names: Array
    code: Array
    genes: Array
    first: Array
    group: Array

    @classmethod
    def read(cls, store: CellStore, config: PairingConfig) -> Perturbations:
        """Read the perturbations of a store.

        Args:
            store: the cells.
            config: the columns and names.

        Raises:
            UnknownNameError: a column that does not exist.
            InputDataError: no control cell, or no perturbation of known genes.
        """
        assert config.column is not None
        codes, names = group_codes(store, config.column)
        group = np.zeros(len(store), np.int64)
        if config.group_column is not None:
            group = group_codes(store, config.group_column)[0]
        if config.control not in names:
            raise InputDataError(
                f"The column {config.column!r} has no value {config.control!r}, so there is no "
                f"control cell.{nearest(config.control, names)} Set data_module.pairing.control."
            )
        number = np.full(len(names) + 1, -2, np.int64)  # The last place is that of missing values.
        genes: list[Array] = []
        known: list[str] = []
        unknown: list[str] = []
        position_of = store.genes.position_of_name
        for place, name in enumerate(names):
            parts = perturbed_genes(name, control=config.control, separator=config.separator)
            if not parts:
                number[place] = -1
                continue
            found = [position_of.get(part, -1) for part in parts]
            if min(found) < 0:
                unknown.append(name)
                continue
            number[place] = len(genes)
            known.append(name)
            genes.append(np.unique(np.array(found, np.int64)))
        if not genes:
            raise InputDataError(
                f"No perturbation in the column {config.column!r} (such as {unknown[:3]}) names "
                "genes of the store. Set data_module.pairing.separator, or use the store's symbols."
            )
        if unknown:
            say(
                f"Left out: cells with {len(unknown)} of {len(names) - 1} perturbations whose genes "
                f"the store does not have, such as {unknown[0]!r}"
            )
        first = np.concatenate([[0], np.cumsum([len(each) for each in genes])]).astype(np.int64)
        return cls(
            names=np.array(known, dtype=object),
            code=number[codes],
            genes=np.concatenate(genes),
            first=first,
            group=group,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPairing:
    """Joins perturbed cells and controls.

    Attributes:
        store: of all cells.
        perturbations: of its cells.
        controls: int64 [m], rows of the control cells that may be drawn, by group.
        first: int64 [groups + 1], where the controls of each group begin.
        value_steps: bound transforms that make the values of both.
        cutting_steps: bound transforms of the input alone.
        training: whether steps of training are run.
        seed: of the run.
    """

    store: CellStore
    perturbations: Perturbations
    controls: Array
    first: Array
    value_steps: Sequence[Transform]
    cutting_steps: Sequence[Transform]
    training: bool
    seed: int

    @classmethod
    def of(
        cls,
        store: CellStore,
        perturbations: Perturbations,
        *,
        controls: Array,
        steps: Sequence[Transform],
        training: bool,
        seed: int,
    ) -> ControlPairing:
        """Return the pairing of some control cells.

        Args:
            store: of all cells.
            perturbations: of its cells.
            controls: int64, rows of cells; those that are controls are used.
            steps: transforms of the input.
            training: whether steps of training are run.
            seed: of the run.

        Raises:
            InputDataError: none of them is a control.
        """
        controls = controls[perturbations.code[controls] == -1]
        if not len(controls):
            raise InputDataError("There is no control cell among the training cells.")
        group = perturbations.group[controls]
        order = np.argsort(group, kind="stable")
        num_groups = int(perturbations.group.max(initial=0)) + 1
        first = np.searchsorted(group[order], np.arange(num_groups + 1))
        return cls(
            store=store,
            perturbations=perturbations,
            controls=controls[order],
            first=first,
            value_steps=bind_transforms(value_steps(steps), store.genes),
            cutting_steps=bind_transforms(cutting_steps(steps), store.genes),
            training=training,
            seed=seed,
        )

    def with_cutting_steps(self, steps: Sequence[Transform]) -> ControlPairing:
        """Return the pairing with other steps that cut the input.

        Args:
            steps: transforms of the input.
        """
        return replace(self, cutting_steps=bind_transforms(cutting_steps(steps), self.store.genes))

    def usable(self, rows: Array) -> Array:
        """Return those rows that are perturbed cells with a control of their group.

        Args:
            rows: int64, cells.
        """
        group = self.perturbations.group[rows]
        known = (self.perturbations.code[rows] >= 0) & (group >= 0)
        return rows[known & (self.first[group + 1] > self.first[group])]

    def pair(self, perturbed: CellBatch, *, epoch: int) -> CellBatch:
        """Return the controls of perturbed cells, with the perturbed cells as targets.

        Args:
            perturbed: usable cells with their counts.
            epoch: of the pass; keys the draw.

        Returns:
            Rows and obs are those of the perturbed cells; entries those of the controls, with the
            perturbed genes in any case, and 1 in the field `perturbation` of those.
        """
        rows = perturbed.rows
        group = self.perturbations.group[rows]
        draw = keyed_uniform(rows, seed=self.seed, epoch=epoch, stream="control")
        number = self.first[group + 1] - self.first[group]
        chosen = self.controls[self.first[group] + (draw * number).astype(np.int64)]
        shown = replace(self.store.take(chosen), rows=rows, obs=perturbed.obs)
        perturbed_genes = self._genes_of(rows)

        def run(cells: CellBatch, steps: Sequence[Transform], *, training: bool) -> CellBatch:
            return apply_transforms(cells, steps, seed=self.seed, epoch=epoch, training=training)

        everything = _with_genes(shown, *perturbed_genes)
        whole = run(everything, self.value_steps, training=self.training)
        cut = run(whole, self.cutting_steps, training=self.training)
        complete = _with_genes(cut, *perturbed_genes, values=whole)
        cell, gene = perturbed_genes
        is_perturbed = np.isin(_keys(complete), cell * complete.num_genes + gene)
        target = run(perturbed, self.value_steps, training=False)
        nothing = np.zeros(len(target.genes), np.uint8)
        target = target.with_field(PERTURBATION, nothing)
        return complete.with_field(PERTURBATION, is_perturbed.astype(np.uint8)).with_targets(target)

    def _genes_of(self, rows: Array) -> tuple[Array, Array]:
        """Return the cell (place in the batch) and position of each perturbed gene."""
        code, first = self.perturbations.code[rows], self.perturbations.first
        number = first[code + 1] - first[code]
        cell = np.repeat(np.arange(len(rows)), number)
        ends = np.cumsum(number)
        place = np.arange(len(cell)) - np.repeat(ends - number, number)
        return cell, self.perturbations.genes[np.repeat(first[code], number) + place]


def _with_genes(
    batch: CellBatch, cell: Array, gene: Array, *, values: CellBatch | None = None
) -> CellBatch:
    """Return cells that hold some genes in any case; those they lacked come first.

    Args:
        batch: cells.
        cell: int64 [k], places of cells.
        gene: int64 [k], positions of genes, each once in a cell.
        values: where counts and fields of genes that a cell lacks are taken from; None for zeros.
    """
    lacking = ~np.isin(cell * batch.num_genes + gene, _keys(batch))
    cell, gene = cell[lacking], gene[lacking]
    counts = np.zeros(len(cell), batch.counts.dtype)
    fields = {name: np.zeros(len(cell), each.dtype) for name, each in batch.fields.items()}
    if values is not None and len(cell):
        keys = _keys(values)
        order = np.argsort(keys, kind="stable")
        found = order[np.searchsorted(keys, cell * batch.num_genes + gene, sorter=order)]
        counts = values.counts[found]
        fields = {name: values.fields[name][found] for name in fields}
    order = np.argsort(np.concatenate([cell, batch.cell_of_entry()]), kind="stable")
    added = np.bincount(cell, minlength=len(batch))
    return replace(
        batch,
        indptr=batch.indptr + np.concatenate([[0], np.cumsum(added)]),
        genes=np.concatenate([gene.astype(batch.genes.dtype), batch.genes])[order],
        counts=np.concatenate([counts, batch.counts])[order],
        fields={
            name: np.concatenate([fields[name], each])[order] for name, each in batch.fields.items()
        },
    )


def _keys(batch: CellBatch) -> Array:
    """Return int64 [nnz], a number for each cell and gene."""
    keys: Array = batch.cell_of_entry() * batch.num_genes + batch.genes.astype(np.int64)
    return keys
