"""What a transform is, how it is named in a file, and how several are applied.

- A transform is a frozen record with a name; `to_dict` and `transform_from_dict` carry it through
  a bundle, so that inference repeats what training did. Its parameters are plain JSON and hold all
  it needs (gene ids, medians), never a path.
- Genes are named by id in parameters and by position in batches: `bind_transforms` looks the ids
  up once in a store's gene table. Binding is not saved.
- What transforms do to each other (`kinds`, fields read and added) is told by the transforms; what
  of it is refused is in `transform_rules`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from omics.data.errors import ConfigError, nearest

if TYPE_CHECKING:
    from omics.data.cell_batch import CellBatch
    from omics.data.genes import GeneTable

# What a transform does, as far as others care; `transform_rules` says which do not go together.
NORMALISES = "normalises"  # Turns counts into expression by the total of the cell.
ALIGNS_DEPTH = "aligns depth"  # Names a read depth and leaves the counts as they are.
CHANGES_COUNTS = "changes counts"
READS_COUNTS = "reads counts"  # Makes something of counts that must not change afterwards.
DROPS = "drops"  # Leaves out genes that a cell expresses, by chance or by their counts.
PICKS_TOP = "picks top"  # Settles ties by the order of entries.
LIMITS = "limits"  # Keeps a fixed list of genes.
MASKS = "masks"  # Leaves out a fixed list of genes.
ORDERS = "orders"
REPEATS = "repeats"  # A gene may occur twice in a cell.
FILLS = "fills"  # Adds genes that a cell does not express.
FILLS_FROM_ALL = "fills from all"  # ... from the whole gene table.
INTERLEAVES = "interleaves"
SORTS_GENES = "sorts genes"  # Puts the genes of a cell in the order of the store.

Kind = TypeVar("Kind", bound="type[Any]")


class Transform(Protocol):
    """What every transform offers; `TransformRecord` has defaults for all but the call."""

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        ...

    @property
    def training_only(self) -> bool:
        """Whether it is left out of inference."""
        ...

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the transformed batch.

        Args:
            batch: cells, left unchanged.
            seed: of the run.
            epoch: of the pass over the data.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON."""
        ...

    def bind(self, genes: GeneTable) -> Transform:
        """Return the transform for the batches of a store with these genes."""
        ...

    def kinds(self) -> frozenset[str]:
        """Return what it does, as far as other transforms care."""
        ...

    def fields_read(self) -> tuple[str, ...]:
        """Return the fields that must be there."""
        ...

    def fields_added(self) -> tuple[str, ...]:
        """Return the fields that it adds or replaces."""
        ...


class TransformRecord:
    """Base of the transforms: a frozen dataclass whose fields are its parameters."""

    __slots__ = ()

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON."""
        parameters = {
            each.name: _plain(getattr(self, each.name))
            for each in fields(self)  # type: ignore[arg-type]
        }
        return {"name": self.name, **parameters}

    def bind(self, genes: GeneTable) -> Transform:
        """Return the transform itself: it needs no gene table."""
        return typing.cast("Transform", self)

    def kinds(self) -> frozenset[str]:
        """Return what it does: nothing that others need to know."""
        return frozenset()

    def fields_read(self) -> tuple[str, ...]:
        """Return the fields that must be there: none."""
        return ()

    def fields_added(self) -> tuple[str, ...]:
        """Return the fields that it adds: none."""
        return ()


class GeneTransform(TransformRecord):
    """Base of the transforms whose parameters name genes, or columns of the gene table."""

    __slots__ = ()

    def resolve(self, genes: GeneTable) -> Any:
        """Return what the parameters mean for a gene table, for `apply`."""
        raise TypeError(f"{type(self).__name__} must define resolve.")

    def apply(self, batch: CellBatch, resolved: Any, *, seed: int, epoch: int) -> CellBatch:
        """Return the transformed batch; see `Transform`.

        Args:
            batch: cells, left unchanged.
            resolved: what `resolve` returned.
            seed: of the run.
            epoch: of the pass over the data.
        """
        raise TypeError(f"{type(self).__name__} must define apply.")

    def bind(self, genes: GeneTable) -> Transform:
        """Return the transform for the batches of a store with these genes."""
        transform = typing.cast("Transform", self)
        return BoundTransform(transform, self.resolve(genes), len(genes))

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Refuse: positions in the batch are not known to be those of any gene table."""
        raise ConfigError(
            f"{self.name} names genes and has no gene table yet. Bind it first: "
            "bind_transforms(transforms, store.genes)."
        )


@dataclass(frozen=True, slots=True, eq=False)
class BoundTransform:
    """A transform together with the gene table of one store; made by `bind_transforms`.

    Attributes:
        transform: that was bound; what is saved is this.
        resolved: what its parameters mean for the gene table.
        num_genes: the size of the gene table.
    """

    transform: Transform
    resolved: Any
    num_genes: int

    @property
    def name(self) -> str:
        """The name of the transform."""
        return self.transform.name

    @property
    def training_only(self) -> bool:
        """Whether it is left out of inference."""
        return self.transform.training_only

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the transformed batch; see `Transform`."""
        if batch.num_genes != self.num_genes:
            raise ConfigError(
                f"{self.name} was bound to a table of {self.num_genes} genes and meets cells of "
                f"{batch.num_genes}. Bind the transforms to the store they are used on."
            )
        work = typing.cast("GeneTransform", self.transform)
        return work.apply(batch, self.resolved, seed=seed, epoch=epoch)

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters of the transform."""
        return self.transform.to_dict()

    def bind(self, genes: GeneTable) -> Transform:
        """Return the transform bound to another gene table."""
        return self.transform.bind(genes)

    def kinds(self) -> frozenset[str]:
        """Return what the transform does."""
        return self.transform.kinds()

    def fields_read(self) -> tuple[str, ...]:
        """Return the fields that must be there."""
        return self.transform.fields_read()

    def fields_added(self) -> tuple[str, ...]:
        """Return the fields that it adds."""
        return self.transform.fields_added()


TRANSFORMS: dict[str, type[Any]] = {}


def register(kind: Kind) -> Kind:
    """Make a class of transforms known by its `name`.

    Args:
        kind: a frozen dataclass with parameters that are str, int, float, bool, a tuple or a
            dictionary of them, or None.

    Raises:
        ConfigError: the name is taken.
    """
    if kind.name in TRANSFORMS:
        raise ConfigError(f"There is a transform {kind.name!r} already. Choose another name.")
    TRANSFORMS[kind.name] = kind
    return kind


def transform_from_dict(record: Mapping[str, Any]) -> Transform:
    """Return the transform that `to_dict` described.

    Args:
        record: its name and parameters.

    Raises:
        ConfigError: an unknown name or parameter, a missing one, or a value of another type.
    """
    parameters = dict(record)
    name = parameters.pop("name", None)
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise ConfigError(f"There is no transform {name!r}.{nearest(str(name), list(TRANSFORMS))}")
    kind = TRANSFORMS[name]
    types_of = typing.get_type_hints(kind)
    known = {each.name: each for each in fields(kind)}
    for key, value in parameters.items():
        if key not in known:
            raise ConfigError(f"{name} has no parameter {key!r}.{nearest(str(key), list(known))}")
        parameters[key] = _typed(value, types_of[key], f"{name}.{key}")
    missing = [
        key
        for key, each in known.items()
        if key not in parameters and each.default is MISSING and each.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{name} needs a value for {' and '.join(missing)}.")
    transform: Transform = kind(**parameters)
    return transform


def bind_transforms(transforms: Sequence[Transform], genes: GeneTable) -> tuple[Transform, ...]:
    """Return the transforms for the batches of a store.

    Args:
        transforms: bound or not.
        genes: the store's gene table.

    Raises:
        ConfigError: a transform names a column that the gene table lacks, or only genes that it
            does not hold.
    """
    return tuple(transform.bind(genes) for transform in transforms)


def apply_transforms(
    batch: CellBatch, transforms: Sequence[Transform], *, seed: int, epoch: int, training: bool
) -> CellBatch:
    """Return the batch after all transforms, in order.

    Args:
        batch: cells, left unchanged.
        transforms: to apply.
        seed: of the run.
        epoch: of the pass over the data.
        training: whether those for training only are applied too.
    """
    for transform in transforms:
        if training or not transform.training_only:
            batch = transform(batch, seed=seed, epoch=epoch)
    return batch


def check_choice(value: str, allowed: tuple[str, ...], where: str) -> None:
    """Refuse a value that is not one of those allowed.

    Args:
        value: given.
        allowed: the names that exist.
        where: transform and parameter, for the message.

    Raises:
        ConfigError: it is none of them.
    """
    if value not in allowed:
        raise ConfigError(f"{where} is {value!r}.{nearest(str(value), allowed)}")


def _plain(value: Any) -> Any:
    """Return a parameter as plain JSON."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else value


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return a parameter's value if it has the annotated type; whole numbers pass as floats."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        rest = next(each for each in inner if each is not types.NoneType)
        return None if value is None else _typed(value, rest, where)
    if origin is tuple:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise ConfigError(f"{where} is {_shown(value)}; it must be a list.")
        return tuple(_typed(each, inner[0], f"{where}[{i}]") for i, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {_shown(value)}; it must be a table of names to values.")
        return {
            _typed(key, inner[0], f"A name in {where}"): _typed(each, inner[1], f"{where}[{key!r}]")
            for key, each in value.items()
        }
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {_shown(value)}; it must be of type {hint.__name__}.")
    return value


def _shown(value: Any) -> str:
    """Return a value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
