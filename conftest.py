"""Settings of hypothesis for the tests of all packages.

- The same examples in every run: a test that was green stays green until the code changes.
- `nox -s tests -- --hypothesis-profile=explore` draws new examples, to look for faults.
- No deadlines: the first example of a test may compile a loop.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeat", deadline=None, database=None, derandomize=True)
settings.register_profile("explore", deadline=None, database=None, max_examples=500)
settings.load_profile("repeat")
