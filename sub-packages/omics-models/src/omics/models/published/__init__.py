"""Published checkpoints: read as data, turned into bundles, and written back.

- Nothing that comes with a checkpoint is executed: no pickle machinery, no class path, no code of a
  repository. What is not on a list of allowed names is an error that names it.
- No weights are shipped: `catalogue.toml` says where each checkpoint lies and how it is used.
"""

from __future__ import annotations
