"""Stores written by every version of the format are read for ever."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from omics.data.storage.store import open_store

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_golden_stores import CONTENT, MEDIANS, OBS, VAR  # noqa: E402

sys.path.remove(str(GOLDEN))


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_a_store_of_an_earlier_version_is_read(name):
    values, options = CONTENT[name]
    store = open_store(GOLDEN / name)
    assert (store.take(range(6)).to_csr().toarray() == values).all()
    assert store.layout == options.get("layout", "plain")
    assert store.value_kind == options.get("value_kind", "counts")
    pd.testing.assert_frame_equal(store.obs.to_pandas(), OBS)
    assert store.genes.ids.tolist() == VAR.index.tolist()
    assert store.genes.symbols.tolist() == VAR["gene_symbol"].tolist()
    assert store.provenance == {"golden": name}
    if "rank_medians" in options:
        indptr, genes = store.take_ranked([4])
        medians = np.array([MEDIANS.get(gene, 0.0) for gene in VAR.index])
        owned = np.flatnonzero(values[4])
        known = owned[medians[owned] > 0]
        order = np.argsort(-values[4][known] / medians[known], kind="stable")
        assert genes.tolist() == [*known[order], *owned[medians[owned] == 0]]
        assert indptr.tolist() == [0, len(owned)]
    store.verify()


def test_every_golden_store_is_tested():
    folders = {each.name for each in GOLDEN.iterdir() if (each / "CURRENT").exists()}
    assert folders == set(CONTENT)
