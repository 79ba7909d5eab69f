"""Settings for the tests of all packages.

- The same examples in every run: a test that was green stays green until the code changes.
- `nox -s tests -- --hypothesis-profile=explore` draws new examples, to look for faults.
- No deadlines: the first example of a test may compile a loop.
- Idle threads of torch sleep, as in our commands: spinning ones would starve the other worker.
"""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("repeat", deadline=None, database=None, derandomize=True)
settings.register_profile("explore", deadline=None, database=None, max_examples=500)
settings.load_profile("repeat")
