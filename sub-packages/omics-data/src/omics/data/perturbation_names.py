"""Names of perturbations: which genes a name such as `A+B` stands for, and which name is which.

- The parts of a combination have no order, and a control among them says nothing: `B+A` is `A+B`,
  `A+ctrl` is `A`, and `ctrl+ctrl` is a control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

Array = np.ndarray[Any, np.dtype[Any]]

SEPARATOR = "+"


def perturbed_genes(name: str, *, control: str, separator: str = SEPARATOR) -> tuple[str, ...]:
    """Return what a perturbation perturbs, sorted; nothing for a control.

    Args:
        name: of the perturbation.
        control: the name of the controls.
        separator: between the parts of a combination; empty where names are not taken apart.
    """
    if name == control:
        return ()
    parts = name.split(separator) if separator else [name]
    return tuple(sorted({part.strip() for part in parts} - {control, ""}))


def same_names(values: Iterable[Any], *, control: str, separator: str = SEPARATOR) -> Array:
    """Return the names of perturbations so that equal perturbations have equal names.

    Args:
        values: [n], as an obs column has them.
        control: the name of the controls.
        separator: between the parts of a combination; empty where names are not taken apart.

    Returns:
        object [n]: sorted parts joined by the separator, `control` for controls, None where a value
        is missing.
    """
    import pandas as pd

    codes, distinct = pd.factorize(np.asarray(values, dtype=object), use_na_sentinel=True)
    names = [
        separator.join(perturbed_genes(str(each), control=control, separator=separator)) or control
        for each in distinct.tolist()
    ]
    return np.array([*names, None], dtype=object)[codes]
