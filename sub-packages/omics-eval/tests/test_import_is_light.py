from __future__ import annotations

import subprocess
import sys

import omics.eval


def test_importing_omics_eval_loads_nothing_heavy():
    code = (
        "import sys, omics.eval, omics.eval.intervals, omics.eval.classification;"
        "heavy = {'torch', 'sklearn', 'pandas', 'anndata', 'matplotlib', 'umap', 'pyarrow',"
        " 'jinja2', 'typer', 'scipy', 'lightning', 'hydra', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented():
    for name in omics.eval.__all__:
        assert getattr(omics.eval, name).__doc__, name
    assert omics.eval.__all__ == sorted(omics.eval.__all__)
