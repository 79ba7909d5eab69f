"""Compiled loops against plain numpy."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.storage.gather import gather_rows, mark_top, patch_escapes


def _indptr(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_rows_are_copied_in_any_order_and_widened(lengths, random):
    offsets = _indptr(lengths)
    source = np.arange(offsets[-1], dtype=np.uint8)
    rows = [random.randrange(len(lengths)) for _ in range(6)]
    indptr = _indptr([lengths[row] for row in rows])
    out = np.full(indptr[-1], 7, np.uint32)
    gather_rows(offsets[rows], indptr, source, out)
    expected = [source[offsets[row] : offsets[row + 1]] for row in rows]
    assert out.tolist() == np.concatenate(expected).tolist()


def test_escapes_are_patched_where_their_positions_fall_in_taken_rows():
    positions = np.array([2, 3, 9, 14])
    counts = np.array([300, 255, 400, 2**32 - 1], np.uint32)
    out = np.full(7, 255, np.uint32)
    patch_escapes(np.array([9, 2]), np.array([0, 5, 7]), positions, counts, out)
    assert out.tolist() == [400, 255, 255, 255, 255, 300, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
@given(
    st.lists(st.lists(st.sampled_from([1, 1, 1, 2, 3, 250, 254, 255]), max_size=9), max_size=4),
    st.integers(1, 4),
    st.sampled_from([1, 256]),
)
def test_top_entries_equal_a_stable_sort(dtype, cells, limit, scale):
    scale = 1 if dtype is np.uint8 else scale
    values = np.array([value * scale for cell in cells for value in cell], dtype)
    indptr = _indptr([len(cell) for cell in cells])
    keep = mark_top(indptr, values, limit)
    expected = np.zeros(len(values), np.bool_)
    for begin, end in pairwise(indptr):
        order = np.argsort(-values[begin:end].astype(np.float64), kind="stable")
        expected[begin + order[:limit]] = True
    assert keep.tolist() == expected.tolist()


def test_loops_run_without_a_folder_to_cache_in(tmp_path):
    code = (
        "import numba.core.caching as c\n"
        "def refuse(self, py_func): raise RuntimeError('no locator available')\n"
        "c.FunctionCache.__init__ = refuse\n"
        "import numpy as np\n"
        "from omics.data.storage.gather import gather_rows\n"
        "out = np.zeros(2, np.uint8)\n"
        "gather_rows(np.array([1]), np.array([0, 2]), np.arange(4, dtype=np.uint8), out)\n"
        "assert out.tolist() == [1, 2]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)
