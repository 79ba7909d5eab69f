"""Two-way key maps: which parameter of ours is made of which tensors of a published layout.

- A map is a list of rows, read in both directions. Every tensor of a checkpoint is in a row, is
  left out for a reason that is written down, or is an error that names it.
- Shapes are compared before a weight is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

Shape = tuple[int, ...]


class Weights(Protocol):
    """The tensors of a checkpoint, read one by one."""

    @property
    def where(self) -> str:
        """What they lie in, for messages."""
        ...

    @property
    def names(self) -> list[str]:
        """Their keys."""
        ...

    def shape(self, name: str) -> Shape:
        """Return the sizes of a tensor without reading it."""
        ...

    def load(self, name: str) -> Tensor:
        """Return a tensor."""
        ...


@dataclass(frozen=True, slots=True)
class Join:
    """How tensors of the reference become one of ours, and back.

    Attributes:
        read: from the tensors of the reference to ours.
        write: the way back.
    """

    read: Callable[[list[Tensor]], Tensor]
    write: Callable[[Tensor], list[Tensor]]


COPY = Join(read=lambda parts: parts[0], write=lambda ours: [ours])


def stacked(count: int) -> Join:
    """Return how tensors of equal size lie one below the other in ours (query, key, value).

    Args:
        count: how many.
    """
    return Join(read=torch.cat, write=lambda ours: list(ours.chunk(count)))


def gene_major(num_outputs: int) -> Join:
    """Return how the rows of a whole-cell decoder are put: theirs gene by gene, ours by output.

    Args:
        num_outputs: values of a gene.
    """

    def read(parts: list[Tensor]) -> Tensor:
        inner = parts[0].shape[1:]
        return parts[0].reshape(-1, num_outputs, *inner).transpose(0, 1).flatten(0, 1)

    def write(ours: Tensor) -> list[Tensor]:
        inner = ours.shape[1:]
        return [ours.reshape(num_outputs, -1, *inner).transpose(0, 1).flatten(0, 1)]

    return Join(read, write)


def with_token_type(num_types: int) -> Join:
    """Return how positions take up the one token type in use: its row is added to each of them.

    The way back gives token types of zeros.

    Args:
        num_types: rows of the reference's table of token types.
    """

    def read(parts: list[Tensor]) -> Tensor:
        positions, types = parts
        return positions + types[0]

    def write(ours: Tensor) -> list[Tensor]:
        return [ours, ours.new_zeros(num_types, ours.shape[1])]

    return Join(read, write)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRow:
    """One parameter of ours.

    Attributes:
        ours: its name.
        reference: the tensors it is made of; none for a constant that the layout does not have.
        join: how.
        constant: its value where `reference` is empty, or where `optional` tensors are missing.
        optional: whether the tensors may be missing (a linear layer without bias).
    """

    ours: str
    reference: tuple[str, ...] = ()
    join: Join = COPY
    constant: float = 0.0
    optional: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Keys that are left out on purpose.

    Attributes:
        pattern: of whole keys.
        reason: why nothing is lost.
    """

    pattern: str
    reason: str


@dataclass(frozen=True, slots=True)
class KeyMap:
    """The map of one layout.

    Attributes:
        rows: one for each parameter of ours.
        left_out: keys that are not read.
        copies: keys that must hold the same numbers as another one (tied weights), if they are there.
    """

    rows: Sequence[WeightRow]
    left_out: Sequence[LeftOut] = ()
    copies: Mapping[str, str] | None = None

    def read(
        self,
        weights: Weights,
        shapes: Mapping[str, Shape],
        on_progress: Callable[[int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Return the parameters of ours, float32.

        Args:
            weights: of the reference.
            shapes: of the model's parameters.
            on_progress: called with 1 for each parameter that was read.

        Raises:
            InputDataError: tensors are missing, unexpected, or of another shape.
        """
        there = set(weights.names)
        self._check_keys(weights, there)
        found = [row for row in self.rows if row.reference and there.issuperset(row.reference)]
        for row in found:
            self._check_shape(row, weights, shapes[row.ours])
        self._check_copies(weights, there)
        there_is = {row.ours for row in found}
        constants = (row for row in self.rows if row.ours not in there_is)
        state = {row.ours: torch.full(shapes[row.ours], row.constant) for row in constants}
        for row in found:
            parts = [weights.load(each).to(torch.float32) for each in row.reference]
            state[row.ours] = row.join.read(parts).contiguous()
            if not torch.isfinite(state[row.ours]).all():
                raise InputDataError(
                    f"{weights.where}: {', '.join(row.reference)} holds numbers that are not finite. "
                    "Nothing could be computed with it; take the file from its source again."
                )
            if on_progress is not None:
                on_progress(1)
        return state

    def extras(self, names: Iterable[str]) -> list[str]:
        """Return the keys of a checkpoint that another one of the layout may lack.

        Args:
            names: its keys.
        """
        optional = {each for row in self.rows if row.optional for each in row.reference}
        return sorted(set(names) & (optional | set(self.copies or {})))

    def left_out_of(self, names: Iterable[str]) -> dict[str, str]:
        """Return the keys of a checkpoint that are not read, and why.

        Args:
            names: its keys.
        """
        return {
            name: each.reason
            for name in sorted(names)
            for each in self.left_out
            if re.fullmatch(each.pattern, name)
        }

    def write(self, state: Mapping[str, Tensor], extras: Collection[str]) -> dict[str, Tensor]:
        """Return the tensors of the reference.

        Args:
            state: parameters of ours.
            extras: which of the keys that may be missing are written.
        """
        tensors: dict[str, Tensor] = {}
        for row in self.rows:
            if row.reference and (not row.optional or row.reference[0] in extras):
                parts = row.join.write(state[row.ours])
                tensors.update(zip(row.reference, parts, strict=True))
        for copy, original in (self.copies or {}).items():
            if copy in extras:
                tensors[copy] = tensors[original].clone()
        return tensors

    def _check_keys(self, weights: Weights, there: set[str]) -> None:
        known = {each for row in self.rows for each in row.reference} | set(self.copies or {})
        needed = {each for row in self.rows if not row.optional for each in row.reference}
        missing = sorted(needed - there)
        unexpected = sorted(there - known - set(self.left_out_of(there)))
        if missing or unexpected:
            found = [f"{what}: {_few(names)}" for what, names in (
                ("it lacks", missing), ("it also has", unexpected)) if names]  # fmt: skip
            raise InputDataError(
                f"{weights.where} is not of the layout that its configuration says: "
                f"{'; '.join(found)}. Check that configuration and weights belong together; a "
                "layout that is not known cannot be converted."
            )

    @staticmethod
    def _check_shape(row: WeightRow, weights: Weights, shape: Shape) -> None:
        try:
            given = [torch.empty(weights.shape(each), device="meta") for each in row.reference]
            made = tuple(row.join.read(given).shape)
        except (RuntimeError, ValueError, IndexError):
            made = ()
        if made != tuple(shape):
            sizes = ", ".join(f"{name} {list(weights.shape(name))}" for name in row.reference)
            raise InputDataError(
                f"{weights.where}: {sizes} does not make the {list(shape)} of {row.ours} that its "
                "configuration asks for. Configuration and weights do not belong together."
            )

    def _check_copies(self, weights: Weights, there: set[str]) -> None:
        for copy, original in (self.copies or {}).items():
            if copy not in there:
                continue
            same = weights.shape(copy) == weights.shape(original)
            if not same or not torch.equal(weights.load(copy), weights.load(original)):
                raise InputDataError(
                    f"{weights.where}: {copy} differs from {original}, to which this layout ties "
                    "it. It was saved from a model with another head, which cannot be converted."
                )


def linear_rows(ours: str, reference: str, *, bias: bool = True) -> list[WeightRow]:
    """Return the rows of a linear layer or a norm.

    Args:
        ours: its name.
        reference: its name there.
        bias: whether it has one.
    """
    parts = ("weight", "bias") if bias else ("weight",)
    return [WeightRow(ours=f"{ours}.{part}", reference=(f"{reference}.{part}",)) for part in parts]


def _few(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
