"""`ClassBalanced` and `Mixed`: orders that choose a group first and then a cell of it.

- The cells of a group come in permutations, one after the other: no cell comes again before all
  of its group were seen. One compiled pass draws them (Fisher and Yates, as far as needed), with
  numbers keyed by (seed, group, permutation, position).
- `Mixed` spaces the visits to each member evenly, like beats of different tempo, so that any batch
  has its share of each; the beats are the same in each epoch, so a member's permutations run on
  from epoch to epoch and nothing of a large member is left out for long.
- Groups are numbered by codes, never by name: 100,000 classes cost what two do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omics.data.compiled import compiled
from omics.data.errors import ConfigError
from omics.data.loading.cell_reader import member_ends
from omics.data.loading.row_order import EpochRows, RowOrder, epoch_generator
from omics.data.loading.weighted_order import check_num_cells

if TYPE_CHECKING:
    from omics.data.loading.cell_reader import CellRows

Array = np.ndarray[Any, np.dtype[Any]]

_SPAN = 1 << 20


@dataclass(frozen=True, slots=True)
class ClassBalanced(RowOrder):
    """Each class of an obs column as likely as any other at each place of the epoch.

    Cells without a value are left out. The cells of a class come in random permutations, so within
    an epoch they differ in number of visits by one at most; the only cell of a class comes each
    time. Needs 20 bytes of memory a row besides the rows.

    Attributes:
        column: of obs.
        num_cells: draws of an epoch; None takes as many as there are rows with a value.
    """

    name: ClassVar[str] = "class_balanced"

    column: str
    num_cells: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_num_cells(self.num_cells)

    def bind(self, cells: CellRows, rows: Array | None) -> EpochRows:
        """Join the order with cells; see `RowOrder.bind`."""
        codes, _ = cells.obs.codes(self.column)
        groups = _Groups.of(codes if rows is None else codes[rows], rows)
        if not len(groups.members):
            raise ConfigError(
                f"No cell to visit has a value in the obs column {self.column!r}; classes cannot "
                "be balanced."
            )
        num_cells = len(groups.members) if self.num_cells is None else self.num_cells
        return EpochRows(num_cells, partial(self._draw, groups, num_cells))

    @staticmethod
    def _draw(groups: _Groups, num_cells: int, seed: int, epoch: int) -> Array:
        generator = epoch_generator(seed, epoch)
        key = int(generator.integers(0, 2**63))
        chosen = generator.integers(0, len(groups.sizes), num_cells, dtype=np.int32)
        return groups.visit(chosen, np.zeros(len(groups.sizes), np.int64), key)


@dataclass(frozen=True, slots=True)
class Mixed(RowOrder):
    """The members of a collection, mixed in chosen shares in every batch.

    An epoch has `num_cells` cells, of which member `j` has its share, rounded. In any run of
    `b` cells it has `share * b` of them, to within 1 + `share` times the number of members.
    Where a member's share of the epoch is more than its cells, they come again within the epoch,
    each time in a new permutation, none before all the others have come; where it is less, the next
    epoch goes on where this one stopped. One store is a collection of one member.
    Needs 20 bytes of memory a row besides the rows.

    Attributes:
        weights: one number for each member, in their order, not negative; they need not sum to 1.
            None takes the members' numbers of cells: then an epoch visits every cell once.
        num_cells: cells of an epoch; None takes as many as there are rows to visit.
    """

    name: ClassVar[str] = "mixed"

    weights: tuple[float, ...] | None = None
    num_cells: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_num_cells(self.num_cells)
        if self.weights is None:
            return
        weights = tuple(float(each) for each in self.weights)
        sound = np.isfinite(weights).all() and all(each >= 0 for each in weights) and any(weights)
        if not sound:
            raise ConfigError(
                f"The weights of members are {list(weights)}; they must be numbers from 0, not "
                "all 0."
            )
        object.__setattr__(self, "weights", weights)

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON."""
        weights = None if self.weights is None else list(self.weights)
        return {"name": self.name, "weights": weights, "num_cells": self.num_cells}

    def bind(self, cells: CellRows, rows: Array | None) -> EpochRows:
        """Join the order with cells; see `RowOrder.bind`."""
        ends = member_ends(cells)
        if rows is None:
            sizes, num_rows = np.diff(ends, prepend=0), len(cells)
        else:
            codes = np.searchsorted(ends, rows, side="right").astype(np.int32)
            sizes, num_rows = np.bincount(codes, minlength=len(ends)), len(rows)
        weights = sizes.astype(np.float64) if self.weights is None else np.array(self.weights)
        if len(weights) != len(ends):
            raise ConfigError(
                f"There are {len(weights)} weights for {len(ends)} members of the collection. Give "
                "one for each."
            )
        lost = np.flatnonzero((weights > 0) & (sizes == 0))
        if len(lost):
            raise ConfigError(
                f"Member {lost[0]} of the collection has the weight {weights[lost[0]]:g} and no "
                "cell among the rows to visit. Give it the weight 0."
            )
        if not num_rows:
            return EpochRows(0, _no_rows)
        if rows is None:
            ranges = [
                np.arange(ends[each] - sizes[each], ends[each], dtype=np.int64)
                for each in np.flatnonzero(weights)
            ]
            groups = _Groups(np.concatenate(ranges), sizes[weights > 0])
        else:
            codes[weights[codes] == 0] = -1
            groups = _Groups.of(codes, rows)
        shares = weights[weights > 0] / weights.sum()
        num_cells = num_rows if self.num_cells is None else self.num_cells
        return EpochRows(num_cells, partial(self._draw, groups, shares, num_cells))

    @staticmethod
    def _draw(groups: _Groups, shares: Array, num_cells: int, seed: int, epoch: int) -> Array:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
        key = int(generator.integers(0, 2**63))
        chosen = _interleaved(shares, generator.uniform(0.01, 0.99, len(shares)), num_cells)
        visits = np.bincount(chosen, minlength=len(shares))
        return groups.visit(chosen, visits * epoch, key)


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Rows by group.

    Attributes:
        members: int64 [n], the rows of group 0, of group 1, ...
        sizes: int64 [g], at least 1.
    """

    members: Array
    sizes: Array

    @classmethod
    def of(cls, codes: Array, rows: Array | None) -> _Groups:
        """Group rows by their codes; -1 belongs to none, and groups without rows are left out."""
        sizes = np.bincount(codes[codes >= 0])
        begins = np.cumsum(sizes) - sizes
        members = np.empty(int(sizes.sum()), np.int64)
        compiled(_collect)(codes, begins, members)
        if rows is not None:
            members = rows[members]
        return cls(members, sizes[sizes > 0])

    def visit(self, chosen: Array, visited: Array, key: int) -> Array:
        """Return int64 [m] rows, the next of each chosen group (int32 [m]).

        `visited` int64 [g] says how many visits each group has had before.
        """
        rows = np.empty(len(chosen), np.int64)
        begins = np.cumsum(self.sizes) - self.sizes
        bounds = (begins, self.sizes, visited)
        compiled(_visit)(chosen, bounds, (self.members, self.members.copy()), np.uint64(key), rows)
        return rows


def _no_rows(_seed: int, _epoch: int) -> Array:
    return np.zeros(0, np.int64)


def _interleaved(shares: Array, phases: Array, num_cells: int) -> Array:
    """Return int32 [num_cells] groups, those of share s at the times (0, 1, 2, ... + phase) / s."""
    chosen = np.empty(num_cells, np.int32)
    groups = np.arange(len(shares), dtype=np.int32)
    done = np.zeros(len(shares), np.int64)
    filled, time = 0, 0
    while filled < num_cells:
        time = min(time + _SPAN, num_cells) if time < num_cells else time + len(shares)
        # Visits number i come before `time` as long as i < time * share - phase.
        counted = np.maximum(np.ceil(time * shares - phases), done).astype(np.int64)
        fresh = counted - done
        which = np.repeat(groups, fresh)
        number = np.arange(len(which)) + np.repeat(done - (np.cumsum(fresh) - fresh), fresh)
        order = np.argsort((number + phases[which]) / shares[which], kind="stable")
        taken = which[order][: num_cells - filled]
        chosen[filled : filled + len(taken)] = taken
        filled += len(taken)
        done = counted
    return chosen


def _collect(codes: Array, begins: Array, members: Array) -> None:
    places = begins.copy()
    for row in range(codes.size):
        group = codes[row]
        if group >= 0:
            members[places[group]] = row
            places[group] += 1


def _visit(
    chosen: Array,
    bounds: tuple[Array, Array, Array],
    members: tuple[Array, Array],
    key: Any,
    rows: Array,
) -> None:
    begins, sizes, visited = bounds
    stored, shuffled = members
    golden = np.uint64(0x9E3779B97F4A7C15)
    rounds = visited // sizes
    places = np.zeros(sizes.size, np.int64)
    keys = np.empty(sizes.size, np.uint64)

    def mix(value: Any) -> Any:  # The finaliser of splitmix64 (Steele et al. 2014).
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))

    def begin_round(group: int) -> None:
        of_group = mix(key + golden * np.uint64(group + 1))
        keys[group] = mix(of_group + golden * np.uint64(rounds[group] + 1))

    def draw(group: int) -> Any:
        place, size, begin = places[group], sizes[group], begins[group]
        number = mix(keys[group] + golden * np.uint64(place + 1))
        other = begin + place + np.int64(number % np.uint64(size - place))
        row = shuffled[other]
        shuffled[other] = shuffled[begin + place]
        shuffled[begin + place] = row
        places[group] = place + 1
        if place + 1 == size:
            places[group] = 0
            rounds[group] += 1
            begin_round(group)
            shuffled[begin : begin + size] = stored[begin : begin + size]
        return row

    for group in range(sizes.size):
        begin_round(group)
        # What earlier epochs have taken of the running permutation.
        for _ in range(visited[group] % sizes[group]):
            draw(group)
    for visit in range(chosen.size):
        rows[visit] = draw(chosen[visit])
