"""Settings for the tests of all packages.

- The same examples in every run: a test that was green stays green until the code changes.
- `nox -s tests -- --hypothesis-profile=explore` draws new examples, to look for faults.
- No deadlines: the first example of a test may compile a loop.
- Idle threads of torch sleep, as in our commands: spinning ones would starve the other worker.
- What one test asked of the commands (`--quiet`, `--verbose`) holds for that test alone.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from omics.data.command_line import Verbosity

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("repeat", deadline=None, database=None, derandomize=True)
settings.register_profile("explore", deadline=None, database=None, max_examples=500)
settings.load_profile("repeat")


@pytest.fixture(autouse=True)
def _own_verbosity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with what a command begins with, and put it back."""
    monkeypatch.setattr(Verbosity, "quiet", False)
    monkeypatch.setattr(Verbosity, "traceback", False)
