"""`gene_frame`: from names such as `TP53_ENSG00000141510.16` to a gene table with stable ids.

- The id of a gene is its Ensembl id without the version, wherever that tells it from every other
  gene of the file; else its whole name, so that two genes never become one.
- Nothing is thrown away: the symbol, the version and the name as it was are columns.
- Names that occur twice, to the letter, are left so: what becomes of them is decided where genes
  are matched (an error, unless told otherwise).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

# GENCODE marks the copies of the pseudo-autosomal genes on chromosome Y behind the version.
ENSEMBL_GENE = r"ENS[A-Z]{0,6}G[0-9]{11}"
_ENSEMBL_NAME = rf"^(?:(.+)[_|])?({ENSEMBL_GENE})(?:\.([0-9]+))?(_PAR_Y)?$"
_ENSEMBL_ID = re.compile(rf"{ENSEMBL_GENE}(?:\.[0-9]+)?(?:_PAR_Y)?")


def is_ensembl(name: str) -> bool:
    """Tell whether a name is an Ensembl gene id, with or without a version.

    Args:
        name: such as `ENSG00000141510.16` or `ENSMUSG00000059552`.
    """
    return _ENSEMBL_ID.fullmatch(name) is not None


def gene_frame(names: Sequence[str]) -> pd.DataFrame:
    """Return the gene table of a list of names.

    Args:
        names: [n] `SYMBOL_ENSEMBL.VERSION`, `ENSEMBL.VERSION`, or any other name.

    Returns:
        One row per name in its order. The index is the Ensembl id without version where that is
        unique, else the name. Columns: `gene_symbol` where a name has one, `original_name` and
        `version` (text, empty where there is none) if any name differs from its id.
    """
    import pandas as pd

    given = pd.Series(list(names), dtype=object)
    parts = given.str.extract(_ENSEMBL_NAME)
    found = parts[1].notna()
    ids = given.where(~found, parts[1] + parts[3].fillna(""))
    repeated = ids.duplicated(keep=False)
    ids = ids.where(~repeated, given)
    columns: dict[str, pd.Series[str]] = {}
    if parts[0].notna().any():
        columns["gene_symbol"] = parts[0].where(found, given).fillna("")
    if (ids != given).any():
        columns["original_name"] = given
        columns["version"] = parts[2].fillna("")
    frame = pd.DataFrame(columns, index=given.index)
    frame.index = pd.Index(ids.astype(object))
    return frame
