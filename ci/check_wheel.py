"""Import every module of one installed package and say what must not be there.

- Run by `nox -s wheels` inside a clean environment that holds one wheel and what it asks for, so a
  dependency missing from its metadata shows at once.
- Usage: `check_wheel.py omics.data [DISTRIBUTION THAT MUST BE ABSENT ...]`
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys


def import_all(name: str) -> list[str]:
    """Import a package and all its modules.

    Args:
        name: such as `omics.data`.

    Returns:
        The names imported.
    """
    package = importlib.import_module(name)
    modules = [found.name for found in pkgutil.walk_packages(package.__path__, f"{name}.")]
    for module in modules:
        importlib.import_module(module)
    return [name, *modules]


def main() -> None:
    """Check the package named by the first argument."""
    name, *absent = sys.argv[1:]
    unwanted = [other for other in absent if importlib.util.find_spec(other) is not None]
    if unwanted:
        sys.exit(f"{name} is alone here, and yet {', '.join(unwanted)} came with it.")
    print(f"{name}: {len(import_all(name))} modules import")


if __name__ == "__main__":
    main()
