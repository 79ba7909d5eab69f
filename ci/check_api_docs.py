"""Hold what the documents promise against the packages as installed.

- API pages: each name of `omics.X.__all__` is documented in `docs/api/X.md`, and nothing else is.
- Commands in documents: the verb, its options and the keys of `omics-train` exist; every verb of
  every command is shown in a document.
- Python blocks compile, and the names they import from `omics` exist.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "tokenizers", "models", "eval", "train", "dna")
SHELL = ("bash", "console")
HYDRA_OPTIONS = {
    "-cn",
    "--config-name",
    "-cd",
    "--config-dir",
    "--cfg",
    "-m",
    "--multirun",
    "--help",
}
COMMON_OPTIONS = {"-h", "--help", "-q", "--quiet", "-v", "--verbose", "--version"}


def documents(root: Path) -> list[Path]:
    """Return every page that people read, apart from the changelog."""
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("sub-packages/*/README.md")]
    built = root / "docs" / "_build"
    return sorted(
        page for page in pages if page.name != "CHANGELOG.md" and built not in page.parents
    )


def blocks(text: str, languages: tuple[str, ...]) -> list[str]:
    """Return the fenced blocks of some languages."""
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


# API pages


def api_problems(root: Path) -> Iterator[str]:
    """Compare `__all__` with the autodoc directives of each API page."""
    for name in PACKAGES:
        module = importlib.import_module(f"omics.{name}")
        page = root / "docs" / "api" / f"{name}.md"
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        shown = re.findall(
            rf"^ *\.\. auto(?!module)\w+:: omics\.{name}\.(\w+)$", text, re.MULTILINE
        )
        public = list(getattr(module, "__all__", []))
        for public_name in public:
            if not hasattr(module, public_name):
                yield f"omics.{name}.__all__ lists {public_name}, which does not exist"
        for missing in sorted(set(public) - set(shown)):
            yield f"docs/api/{name}.md: omics.{name}.{missing} is public and not documented"
        for extra in sorted(set(shown) - set(public)):
            yield f"docs/api/{name}.md: omics.{name}.{extra} is documented and not public"
        for twice in sorted({item for item in shown if shown.count(item) > 1}):
            yield f"docs/api/{name}.md: omics.{name}.{twice} is documented twice"


# Commands


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each omics command in the shell blocks of a page."""
    for body in blocks(text, SHELL):
        for line in body.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                if words and re.fullmatch(r"omics-\w+", words[0]):
                    yield words


def verbs(package: str) -> dict[str, Any]:
    """Return the click commands of a console command, by verb."""
    import typer

    app = importlib.import_module(f"omics.{package}.cli").app
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    return commands


def command_problems(words: list[str]) -> Iterator[str]:
    """Say what in one command line does not exist."""
    package = words[0].removeprefix("omics-")
    if package not in PACKAGES:
        yield f"there is no command {words[0]}"
        return
    shown = " ".join(words)
    rest = words[1:]
    while rest and rest[0].startswith("-"):
        if rest[0] not in COMMON_OPTIONS:
            yield f"{words[0]} has no option {rest[0]}: {shown}"
        rest = rest[1:]
    if not rest:
        return
    commands = verbs(package)
    if rest[0] not in commands:
        yield f"{words[0]} has no verb {rest[0]}: {shown}"
    elif commands[rest[0]].context_settings.get("ignore_unknown_options"):
        yield from (f"{problem}: {shown}" for problem in override_problems(rest[1:]))
    else:
        known = {"-h", "--help"}
        for parameter in commands[rest[0]].params:
            known.update([*parameter.opts, *parameter.secondary_opts])
        for word in rest[1:]:
            if word.startswith("-") and word.split("=")[0] not in known:
                yield f"{words[0]} {rest[0]} has no option {word}: {shown}"


def override_problems(words: list[str]) -> Iterator[str]:
    """Say which words after a verb of omics-train are no option of Hydra and no key of a run."""
    from omics.train.run_config import RunConfig

    for word in words:
        if word.startswith("-"):
            if word.split("=")[0] not in HYDRA_OPTIONS:
                yield f"omics-train has no option {word}"
        elif "=" in word:
            key = word.split("=")[0].lstrip("+~")
            if not has_key(RunConfig, key.split(".")) and key != "model":
                yield f"omics-train has no configuration key {key}"


def has_key(schema: Any, path: list[str]) -> bool:
    """Say whether a typed configuration has a dotted key; list positions are passed over."""
    hints = typing.get_type_hints(schema)
    if path[0] not in hints:
        return False
    rest = [part for part in path[1:] if not part.isdigit()]
    kinds = (hints[path[0]], *typing.get_args(hints[path[0]]))
    sections = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    return not rest or any(has_key(section, rest) for section in sections)


def coverage_problems(root: Path) -> Iterator[str]:
    """Say which verbs no document shows."""
    shown: set[tuple[str, str]] = set()
    for page in documents(root):
        for words in command_lines(page.read_text(encoding="utf-8")):
            shown.update((words[0], word) for word in words[1:])
    for package in PACKAGES:
        for verb in verbs(package):
            if (f"omics-{package}", verb) not in shown:
                yield f"no document shows `omics-{package} {verb}` in a shell block"


# Python


def python_problems(body: str) -> Iterator[str]:
    """Say what a Python block imports from omics that is not there."""
    try:
        tree = ast.parse(body)
    except SyntaxError as error:
        yield f"a Python block does not compile: {error}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("omics"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    yield f"a Python block imports {node.module}.{alias.name}, which does not exist"


def page_problems(text: str) -> Iterator[str]:
    """Say what is wrong with the commands and the Python of one page."""
    for words in command_lines(text):
        yield from command_problems(words)
    for body in blocks(text, ("python",)):
        yield from python_problems(body)


def main() -> int:
    """Check all documents; print every problem."""
    problems = [*api_problems(ROOT), *coverage_problems(ROOT)]
    pages = documents(ROOT)
    for page in pages:
        found = page_problems(page.read_text(encoding="utf-8"))
        problems += [f"{page.relative_to(ROOT)}: {problem}" for problem in found]
    for problem in problems:
        print(problem)
    print(f"{len(pages)} pages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
