from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.cell_batch import CellBatch

NUM_GENES = 9


def batch_of(cells, first_row=0):
    """Return a batch whose cell i has the {gene: count} of cells[i]."""
    pairs = [sorted(cell.items()) for cell in cells]
    genes = np.array([g for cell in pairs for g, _ in cell], np.uint16)
    counts = np.array([c for cell in pairs for _, c in cell], np.uint8)
    return CellBatch(
        indptr=np.cumsum([0, *[len(cell) for cell in pairs]]).astype(np.int64),
        genes=genes,
        counts=counts,
        rows=np.arange(first_row, first_row + len(cells), dtype=np.int64),
        num_genes=NUM_GENES,
        fields={"double": counts.astype(np.float32) * 2},
        obs={"name": np.array([f"c{first_row + i}" for i in range(len(cells))], dtype=object)},
    )


cells_strategy = st.lists(
    st.dictionaries(st.integers(0, NUM_GENES - 1), st.integers(1, 255), max_size=NUM_GENES),
    max_size=7,
)


def as_dicts(batch):
    """Return [{gene: count}] of a batch."""
    return [
        dict(
            zip(
                batch.genes[a:b].tolist(),
                batch.counts[a:b].tolist(),
                strict=True,
            )
        )
        for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)
    ]


@given(cells=cells_strategy, data=st.data())
def test_slices_are_the_cells_they_name(cells, data):
    batch = batch_of(cells)
    start = data.draw(st.integers(-8, 8))
    stop = data.draw(st.integers(-8, 8))
    part = batch[start:stop]
    assert as_dicts(part) == cells[start:stop]
    assert part.rows.tolist() == list(range(len(cells)))[start:stop]
    assert part.obs["name"].tolist() == batch.obs["name"].tolist()[start:stop]


@given(cells=cells_strategy, data=st.data())
def test_kept_entries_keep_their_cells_and_fields(cells, data):
    batch = batch_of(cells)
    total = len(batch.genes)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)), bool)
    kept = batch.keep_entries(keep)
    flags = iter(keep.tolist())
    expected = [{g: c for g, c in sorted(cell.items()) if next(flags)} for cell in cells]
    assert as_dicts(kept) == expected
    assert kept.fields["double"].tolist() == (kept.counts.astype(np.float32) * 2).tolist()
    assert kept.indptr.dtype == np.int64


@given(cells=cells_strategy)
def test_the_matrix_holds_every_entry(cells):
    matrix = batch_of(cells).to_csr().toarray()
    assert matrix.shape == (len(cells), NUM_GENES)
    for row, cell in zip(matrix, cells, strict=True):
        assert {int(g): int(row[g]) for g in np.flatnonzero(row)} == cell
    assert np.array_equal(batch_of(cells).to_csr("double").toarray(), matrix * 2.0)


def test_targets_are_sliced_with_their_cells():
    cells = [{0: 1}, {1: 2, 3: 4}]
    batch = batch_of(cells).with_targets(batch_of([{5: 5}, {6: 6}]))
    assert as_dicts(batch[1:].targets) == [{6: 6}]


def test_cell_of_entry_and_lengths():
    batch = batch_of([{0: 1, 1: 1}, {}, {2: 1}])
    assert batch.lengths.tolist() == [2, 0, 1]
    assert batch.cell_of_entry().tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": np.array([0, 1])}, "does not describe 2 cells"),
        ({"counts": np.zeros(1)}, "counts has 1 values for 3 entries"),
        ({"fields": {"f": np.zeros(9)}}, "f has 9 values for 3 entries"),
        ({"obs": {"o": np.zeros(1)}}, r"obs\['o'\] has 1 for 2 cells"),
        ({"targets": batch_of([{}])}, "targets hold 1 cells beside 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    good = batch_of([{0: 1}, {1: 1, 2: 1}])
    parts = {name: getattr(good, name) for name in CellBatch.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        CellBatch(**{**parts, **change})


def test_steps_are_refused():
    batch = batch_of([{0: 1}, {1: 1}])
    with pytest.raises(ValueError, match="step 1"):
        batch[::2]
