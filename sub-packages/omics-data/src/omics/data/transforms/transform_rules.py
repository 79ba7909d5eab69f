"""Which transforms do not go together, as one table, and the check that reads it.

- A list is refused when it is made (in a Loader, a bundle, a configuration), not when it has
  silently trained a model on something else.
- A rule is about what transforms do (their `kinds`), so that a new transform is covered by saying
  what it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.data.transforms.transform_registry import (
    ALIGNS_DEPTH,
    CHANGES_COUNTS,
    DROPS,
    FILLS,
    FILLS_FROM_ALL,
    INTERLEAVES,
    LIMITS,
    MASKS,
    NORMALISES,
    ORDERS,
    PICKS_TOP,
    READS_COUNTS,
    REPEATS,
    SORTS_GENES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omics.data.transforms.transform_registry import Transform


@dataclass(frozen=True, slots=True)
class Refusal:
    """Two kinds that may not follow each other.

    Attributes:
        earlier: a kind of the earlier transform.
        later: a kind of the later transform.
        why: what would happen.
        advice: what to do; `{earlier}` and `{later}` stand for the names.
    """

    earlier: str
    later: str
    why: str
    advice: str


REFUSALS = (
    Refusal(
        DROPS,
        NORMALISES,
        "which would then divide by the total of the remaining genes",
        "Put {later} first.",
    ),
    Refusal(
        NORMALISES,
        NORMALISES,
        "and both turn counts into expression",
        "Keep one of them.",
    ),
    Refusal(
        READS_COUNTS,
        CHANGES_COUNTS,
        "which changes the counts that were already used",
        "Put {later} first.",
    ),
    Refusal(ORDERS, ORDERS, "which undoes that order", "Keep one of them."),
    Refusal(
        ORDERS,
        PICKS_TOP,
        "which settles equal counts by the order of genes",
        "Put {later} first, or use first_genes to keep the beginning of an order.",
    ),
    Refusal(INTERLEAVES, ORDERS, "which undoes the interleaving", "Put {later} first."),
    Refusal(ORDERS, SORTS_GENES, "which undoes that order", "Put {later} first."),
    Refusal(
        DROPS,
        FILLS,
        "which would take the genes left out for genes that are not expressed",
        "Put {later} first.",
    ),
    Refusal(
        MASKS,
        FILLS,
        "which could bring the masked genes back",
        "Put {later} first.",
    ),
    Refusal(
        LIMITS,
        FILLS_FROM_ALL,
        "which would take expressed genes outside the panel for genes that are not expressed",
        "Give {later} the same genes as its `panel`.",
    ),
    Refusal(
        REPEATS,
        FILLS,
        "which needs each gene once in a cell",
        "Put {later} first.",
    ),
)


def check_transforms(transforms: Sequence[Transform]) -> None:
    """Refuse transforms that do not fit each other.

    Args:
        transforms: in the order in which they would be applied.

    Raises:
        ConfigError: a pair of the table `REFUSALS`, a field that is read before it is added,
            added twice or replaced after it was read, a step without effect.
    """
    for (at, earlier), (end, later) in combinations(enumerate(transforms), 2):
        if _completes(earlier, later):
            _check_untouched(transforms[at + 1 : end], later)
            continue
        for reason in _reasons(earlier, later):
            raise ConfigError(reason)
    _check_fields(transforms, "")
    inference = [transform for transform in transforms if not transform.training_only]
    if len(inference) < len(transforms):
        _check_fields(inference, " at inference, where steps of training only are left out")
    for at, transform in enumerate(transforms):
        before = [kind for each in transforms[:at] for kind in each.kinds()]
        if INTERLEAVES in transform.kinds() and FILLS not in before:
            raise ConfigError(
                f"{transform.name} has no zeros to interleave. Put random_zeros or batch_zeros "
                "before it."
            )


def _reasons(earlier: Transform, later: Transform) -> Iterator[str]:
    """Yield why a pair is refused."""
    names = {"earlier": earlier.name, "later": later.name}
    for rule in REFUSALS:
        if rule.earlier in earlier.kinds() and rule.later in later.kinds():
            if rule.earlier == rule.later and earlier.name == later.name:
                yield f"{later.name} is given twice. {rule.advice.format(**names)}"
            else:
                advice = rule.advice.format(**names)
                yield f"{earlier.name} comes before {later.name}, {rule.why}. {advice}"
    if LIMITS in earlier.kinds() and FILLS in later.kinds():
        panel = later.to_dict().get("panel") or ()
        limits = earlier.to_dict()
        outside = sorted(set(panel) - set(limits.get("genes") or limits["panel"]))
        if outside:
            yield (
                f"{later.name} fills up with {len(outside)} genes (such as {outside[0]!r}) that "
                f"{earlier.name} has left out. Give both the same genes."
            )
    both = set(earlier.fields_added()) & set(later.fields_added())
    for name in sorted(both):
        yield (
            f"{earlier.name} and {later.name} both add the field {name!r}. Give one of them "
            "another field_name."
        )


def _completes(earlier: Transform, later: Transform) -> bool:
    """Say whether the later is the training step that belongs to a step of inference."""
    return (
        earlier.name == later.name
        and ALIGNS_DEPTH in earlier.kinds()
        and CHANGES_COUNTS in later.kinds()
    )


def _check_untouched(transforms: Sequence[Transform], later: Transform) -> None:
    """Refuse that a field is replaced after it was read."""
    for between in transforms:
        for name in sorted(set(between.fields_read()) & set(later.fields_added())):
            raise ConfigError(
                f"{between.name} reads the field {name!r}, which {later.name} replaces afterwards. "
                f"Put {later.name} before {between.name}."
            )


def _check_fields(transforms: Sequence[Transform], when: str) -> None:
    """Refuse a field that is read before it is added."""
    added: list[str] = []
    for transform in transforms:
        for name in transform.fields_read():
            if name not in added:
                raise ConfigError(
                    f"{transform.name} reads the field {name!r}, which no transform before it "
                    f"adds{when}.{nearest(name, [*added, 'counts'])}"
                )
        added.extend(transform.fields_added())
