"""The structure rules of this repository, each a function from the tree to its problems.

- `check_house.py` prints every problem and ends with 1 if there is one.
- `check_house.py --write-tree` rewrites the tree in README.md between its two markers. A file keeps
  the purpose it has there; a new one gets the first sentence of its docstring.
- Only the standard library is used, so the rules hold before anything is installed.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_SOURCE_LINES = 600
MAX_FILE_BYTES = 300_000
MAX_PURPOSE = 60
JUNK_DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}
REPEATED_NAMES = {"__init__.py", "__main__.py", "cli.py"}
UNWATCHED = {".git", ".nox", ".venv", "build", "dist", "_build", "__pycache__", "work"}
COMMAND = "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s {session}"
TREE_BEGIN, TREE_END = "<!-- tree begins -->\n```text\n", "```\n<!-- tree ends -->"
EXPLAINED_FOLDERS = {"ci", "docs", "quickstart", "bench", "studies"}

UNSAFE_NAMES = {"eval", "exec"}
UNSAFE_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads",
    "shelve.open", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads",
    "joblib.load", "torch.load", "pandas.read_pickle", "pd.read_pickle", "os.system", "yaml.load",
    "yaml.unsafe_load", "builtins.eval", "builtins.exec",
}  # fmt: skip
UNSAFE_METHODS = {"extractall"}
UNSAFE_KEYWORDS = {"shell=True", "allow_pickle=True", "weights_only=False"}


@dataclass(frozen=True)
class House:
    """The repository: its folder and the files that belong to it.

    Attributes:
        root: the top folder.
        files: every file that git tracks or would track, relative to `root`.
    """

    root: Path
    files: tuple[Path, ...]

    @classmethod
    def at(cls, root: Path) -> House:
        """List the files under a folder, through git where it is a repository of its own."""
        if (root / ".git").exists():
            command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
            listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
            names = [Path(name) for name in listed.stdout.split("\0") if name]
            files = [name for name in names if (root / name).is_file()]
        else:
            found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
            files = [path for path in found if not UNWATCHED.intersection(path.parts)]
        return cls(root, tuple(sorted(set(files))))

    @property
    def packages(self) -> list[str]:
        """The sub-packages, such as `omics-data`, in alphabetical order."""
        names = {
            path.parts[1] for path in self.files if path.match("sub-packages/*/pyproject.toml")
        }
        return sorted(names)

    def sources(self) -> Iterator[Path]:
        """Yield every Python file in the `src` of a sub-package."""
        for path in self.files:
            if path.suffix == ".py" and path.parts[:1] == ("sub-packages",) and "src" in path.parts:
                yield path

    def text(self, path: Path | str) -> str:
        """Return the text of a file, empty where it does not exist."""
        full = self.root / path
        return full.read_text(encoding="utf-8") if full.is_file() else ""

    def project(self, package: str) -> dict[str, object]:
        """Return the `[project]` table of a sub-package."""
        table = tomllib.loads(self.text(f"sub-packages/{package}/pyproject.toml"))
        return table.get("project", {})


Rule = Callable[[House], Iterator[str]]


def namespace(house: House) -> Iterator[str]:
    """`omics` is a PEP 420 namespace: one `src/omics/__init__.py` would hide five packages."""
    for path in house.files:
        if path.parts[-3:] == ("src", "omics", "__init__.py"):
            yield f"{path}: a namespace package must not have this file; delete it"


def typed(house: House) -> Iterator[str]:
    """Every package tells type checkers that it is typed."""
    for package in house.packages:
        marker = Path(f"sub-packages/{package}/src/{package.replace('-', '/')}/py.typed")
        if marker not in house.files:
            yield f"{marker}: missing; add an empty file"


def versions(house: House) -> Iterator[str]:
    """All packages have one version and ask for siblings of just that version."""
    found = {package: str(house.project(package).get("version")) for package in house.packages}
    if len(set(found.values())) > 1:
        yield f"sub-packages: the versions differ: {found}"
    for package in house.packages:
        for line in requirements(house.project(package)):
            name = distribution(line)
            if name in found and line != f"{name}~={found[name]}":
                yield f"sub-packages/{package}/pyproject.toml: {line!r} should be ~={found[name]}"


def bounds(house: House) -> Iterator[str]:
    """Every dependency has a lower bound and none a pin; pins live in ci/constraints.txt."""
    for package in house.packages:
        for line in requirements(house.project(package)):
            pinned = re.search(r"(?<![~!<>])==", line)
            if pinned or not re.search(r"[>~]=", line):
                yield f"sub-packages/{package}/pyproject.toml: {line!r} needs >= or ~=, and no =="


def file_length(house: House) -> Iterator[str]:
    """No source file is longer than a person can hold in mind."""
    for path in house.sources():
        lines = house.text(path).count("\n")
        if lines > MAX_SOURCE_LINES:
            yield f"{path}: {lines} lines; split it, {MAX_SOURCE_LINES} is the limit"


def file_names(house: House) -> Iterator[str]:
    """A file says what it is for, and its name is found once in the whole house."""
    owners: dict[str, Path] = {}
    for path in house.sources():
        if path.stem in JUNK_DRAWERS:
            yield f"{path}: a name that says nothing; name the file after what it does"
        if path.name in REPEATED_NAMES:
            continue
        if path.name in owners:
            yield f"{path}: the name is taken by {owners[path.name]}; a name is used once"
        owners[path.name] = path


def docstrings(house: House) -> Iterator[str]:
    """Every module opens with a docstring."""
    for path in house.sources():
        if not ast.get_docstring(ast.parse(house.text(path))):
            yield f"{path}: no module docstring; begin with one sentence of purpose"


def file_size(house: House) -> Iterator[str]:
    """The repository holds code and text, not data."""
    for path in house.files:
        size = (house.root / path).stat().st_size
        if size > MAX_FILE_BYTES:
            yield f"{path}: {size} bytes; {MAX_FILE_BYTES} is the limit for a tracked file"


def unsafe_calls(house: House) -> Iterator[str]:
    """Nothing in `src` can run code that came with a file."""
    for path in house.sources():
        for node in ast.walk(ast.parse(house.text(path))):
            if isinstance(node, ast.Call) and (reason := unsafe(node)):
                yield f"{path}:{node.lineno}: {reason} is not allowed in src"
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                for name in sorted(names & UNSAFE_CALLS):
                    yield f"{path}:{node.lineno}: importing {name} is not allowed in src"


def unsafe(call: ast.Call) -> str | None:
    """Return what is dangerous about a call, or None."""
    name = ast.unparse(call.func)
    if name in UNSAFE_NAMES | UNSAFE_CALLS or name.rpartition(".")[2] in UNSAFE_METHODS:
        return f"{name}()"
    for keyword in call.keywords:
        given = f"{keyword.arg}={ast.unparse(keyword.value)}"
        if given in UNSAFE_KEYWORDS:
            return f"{name}({given})"
    return None


def commands(house: House) -> Iterator[str]:
    """README.md opens with two commands, and `.ci/run` runs the second as it stands there."""
    wanted = [COMMAND.format(session=session) for session in ("quickstart", "tests")]
    blocks = re.findall(r"^```\w*\n(.*?)^```$", house.text("README.md"), re.MULTILINE | re.DOTALL)
    if [block.strip() for block in blocks[:2]] != wanted:
        yield f"README.md: its first two code blocks must be: {' | '.join(wanted)}"
    if wanted[1] not in house.text(".ci/run"):
        yield f".ci/run: does not run the test command of README.md: {wanted[1]}"


def readme_tree(house: House) -> Iterator[str]:
    """The tree in README.md is the real one, with a purpose for every file."""
    purposes = shown_purposes(house)
    real = {str(path) for path in tree_paths(house)}
    for path in sorted(real - set(purposes)):
        yield f"README.md: the tree lacks {path}; run ci/check_house.py --write-tree"
    for path in sorted(set(purposes) - real):
        yield f"README.md: the tree shows {path}, which does not exist; run it with --write-tree"
    for path, purpose in purposes.items():
        if not purpose or len(purpose) > MAX_PURPOSE:
            yield f"README.md: the tree needs a purpose of 1 to {MAX_PURPOSE} letters for {path}"


RULES: list[Rule] = [
    namespace, typed, versions, bounds, file_length, file_names, docstrings, file_size,
    unsafe_calls, commands, readme_tree,
]  # fmt: skip


def requirements(project: dict[str, object]) -> list[str]:
    """Return all requirements of a `[project]` table, those of its extras included."""
    base = project.get("dependencies", [])
    extras = project.get("optional-dependencies", {})
    assert isinstance(base, list)
    assert isinstance(extras, dict)
    return [*base, *(line for lines in extras.values() for line in lines)]


def distribution(requirement: str) -> str:
    """Return the name in a requirement such as `numpy>=2.0`."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


# The tree of README.md


def tree_paths(house: House) -> list[Path]:
    """Return what the tree shows, in its order: a folder right before its files.

    Top-level files, the files of the explained folders and each module are shown; folders inside a
    package (`configs/`, `templates/`) and inside `docs/` are one line.
    """
    shown: set[Path] = set()
    for path in house.files:
        top_level = len(path.parts) == 1 and not path.name.startswith(".")
        if top_level or path == Path(".ci/run"):
            shown.add(path)
        elif path.parts[0] in EXPLAINED_FOLDERS:
            shown.update({Path(path.parts[0]), Path(*path.parts[:2])})
        elif path.match("sub-packages/*/src/omics/*/*") or "src" in path.parts:
            shown.update(module_lines(path))
    return sorted(shown, key=lambda path: tree_key(house, path))


def module_lines(path: Path) -> set[Path]:
    """Return the lines of the tree that a file under `sub-packages/*/src` asks for."""
    package, inside = Path(*path.parts[:2]), path.parts[5:]
    if not inside or path.name in {"__init__.py", "py.typed"}:
        return {package} | ({Path(*path.parts[:6])} if len(inside) > 1 else set())
    return {package, Path(*path.parts[:6])}


def tree_key(house: House, path: Path) -> tuple[object, ...]:
    """Sort top-level files first, then folders; packages in the order of their imports."""
    top = path.parts[0]
    folder = len(path.parts) > 1 or (house.root / path).is_dir()
    rank = 0
    if top == "sub-packages":
        order = ["data", "tokenizers", "models", "eval", "train", "dna"]
        name = path.parts[1].removeprefix("omics-")
        rank = order.index(name) if name in order else len(order)
    return (top == "sub-packages", folder, top, rank, path.parts[1:])


def shown_purposes(house: House) -> dict[str, str]:
    """Read the tree of README.md back: path to purpose."""
    text = house.text("README.md")
    if TREE_BEGIN not in text or TREE_END not in text:
        return {}
    block = text.split(TREE_BEGIN)[1].split(TREE_END)[0]
    purposes: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        matched = re.fullmatch(r"( *)(\S+)(?: {2,}(.*))?", line)
        if matched is None:
            purposes[f"(unreadable: {line!r})"] = ""
            continue
        indent, name, purpose = len(matched[1]) // 2, matched[2], (matched[3] or "").strip()
        folders[indent:] = [name.rstrip("/")]
        purposes["/".join(folders)] = purpose
    return {expand(path): purpose for path, purpose in purposes.items()}


def expand(shown: str) -> str:
    """Turn the short path of the tree (`omics-data/store.py`) into the real one."""
    package, _, inside = shown.partition("/")
    if not package.startswith("omics-"):
        return shown
    source = f"sub-packages/{package}"
    return f"{source}/src/{package.replace('-', '/')}/{inside}" if inside else source


def write_tree(house: House) -> None:
    """Rewrite the tree of README.md, keeping the purposes that are there."""
    known = shown_purposes(house)
    lines = []
    for path in tree_paths(house):
        inside_package = path.parts[0] == "sub-packages"
        depth = (len(path.parts) > 2) if inside_package else len(path.parts) - 1
        if path == Path(".ci/run"):
            depth = 0
        name = str(path) if path == Path(".ci/run") else path.name
        if (house.root / path).is_dir():
            name += "/"
        purpose = known.get(str(path)) or first_sentence(house, path)
        lines.append(f"{'  ' * depth + name:<28}  {purpose}".rstrip() + "\n")
    readme = house.root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(TREE_BEGIN)
    after = rest.split(TREE_END)[1]
    readme.write_text(before + TREE_BEGIN + "".join(lines) + TREE_END + after, encoding="utf-8")


def first_sentence(house: House, path: Path) -> str:
    """Return what a Python file or package says it is for; nothing if that is too long to be shown.

    A sentence ends early where a part of it does: a phrase that breaks off says nothing.
    """
    if (house.root / path / "__init__.py").is_file():
        path = path / "__init__.py"
    if path.suffix != ".py":
        return ""
    docstring = ast.get_docstring(ast.parse(house.text(path))) or ""
    sentence = docstring.split("\n\n")[0].replace("\n", " ").replace("`", "").rstrip(".")
    ends = [match.start() for match in re.finditer(r"[,:;] ", sentence)] + [len(sentence)]
    return sentence[: max((end for end in ends if end <= MAX_PURPOSE), default=0)]


def main(arguments: list[str] | None = None) -> int:
    """Check the repository that holds this file, or rewrite the tree of its README."""
    parser = argparse.ArgumentParser(description="Check the structure rules of the repository.")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--write-tree", action="store_true", help="rewrite the tree in README.md")
    options = parser.parse_args(arguments)
    house = House.at(options.root)
    if options.write_tree:
        write_tree(house)
    problems = [f"{rule.__name__}: {problem}" for rule in RULES for problem in rule(house)]
    for problem in problems:
        print(problem)
    print(f"{len(RULES)} rules, {len(house.files)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
