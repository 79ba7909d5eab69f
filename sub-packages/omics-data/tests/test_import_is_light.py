"""`import omics.data` loads no heavy library."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import omics.data
heavy = {"anndata", "h5py", "numba", "pandas", "pyarrow", "rich", "scipy", "torch", "typer"}
print(sorted(heavy & set(sys.modules)))
"""


def test_importing_the_package_loads_no_heavy_library():
    done = subprocess.run(
        [sys.executable, "-c", CODE], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_found_and_the_function_convert_is_not_hidden_by_a_module():
    code = (
        "import omics.data, omics.data.converting.check, omics.data.converting.conversion\n"
        "names = [getattr(omics.data, name).__name__ for name in omics.data.__all__]\n"
        "assert names == omics.data.__all__ == sorted(names) == dir(omics.data), names\n"
        "try:\n"
        "    omics.data.convertt\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "module 'omics.data' has no attribute 'convertt'"


def test_opening_and_reading_a_store_needs_neither_pandas_nor_torch(tmp_path, write_store):
    write_store(tmp_path / "s", [[1, 2], [0, 3]])
    code = (
        "import sys\n"
        "from omics.data.storage.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "assert store.take([1]).counts.tolist() == [3]\n"
        "assert not {'pandas', 'anndata', 'torch', 'pyarrow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True, timeout=60)
