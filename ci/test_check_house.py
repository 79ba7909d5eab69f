"""Each rule of the house accepts a sound tree and reports a planted fault."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

CI = Path(__file__).parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


check_house = load("check_house")

README = """# house
```bash
python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s quickstart
```
```bash
python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s tests
```
<!-- tree begins -->
```text
```
<!-- tree ends -->
"""
PROJECT = '[project]\nname = "{name}"\nversion = "0.1.0"\ndependencies = {needs}\n'


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A sound house of two packages."""
    write(tmp_path, "README.md", README)
    write(tmp_path, ".ci/run", README.splitlines()[5])
    write(tmp_path, "ci/check_house.py", '"""Check the house."""\n')
    for name, needs in {"data": '["numpy>=2"]', "models": '["omics-data~=0.1.0"]'}.items():
        package = f"sub-packages/omics-{name}"
        write(tmp_path, f"{package}/pyproject.toml", PROJECT.format(name=name, needs=needs))
        for file in ("__init__", f"{name}_file", "cli"):
            write(tmp_path, f"{package}/src/omics/{name}/{file}.py", f'"""The {file}."""\n')
        write(tmp_path, f"{package}/src/omics/{name}/py.typed", "")
    write(tmp_path, "sub-packages/omics-models/src/omics/models/configs/__init__.py", '"""Are."""')
    check_house.write_tree(check_house.House.at(tmp_path))
    purposes = {"run": "checks", "README.md": "the page", "ci/": "checks", "configs/": "settings"}
    purposes |= {"omics-data/": "stores", "omics-models/": "models"}
    text = (tmp_path / "README.md").read_text()
    for line in text.splitlines():
        name = line.strip().removeprefix(".ci/")
        if name in purposes:
            text = text.replace(f"\n{line}\n", f"\n{line}   {purposes[name]}\n")
    write(tmp_path, "README.md", text)
    return tmp_path


def problems(root: Path) -> list[str]:
    house = check_house.House.at(root)
    return [f"{rule.__name__}: {text}" for rule in check_house.RULES for text in rule(house)]


def append(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: write(root, name, (root / name).read_text() + text)


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: write(root, name, (root / name).read_text().replace(old, new))


def new_file(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: write(root, name, text)


SOURCE = "sub-packages/omics-data/src/omics/data/data_file.py"
NEIGHBOUR = "sub-packages/omics-models/src/omics/models"
MODELS = "sub-packages/omics-models/pyproject.toml"
FAULTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "stray namespace file": (
        "namespace",
        new_file("sub-packages/omics-data/src/omics/__init__.py", '"""Stray."""\n'),
    ),
    "untyped package": ("typed", lambda root: (root / NEIGHBOUR / "py.typed").unlink()),
    "one version ahead": ("versions", replace(MODELS, 'version = "0.1.0"', 'version = "0.2.0"')),
    "old sibling": ("versions", replace(MODELS, "omics-data~=0.1.0", "omics-data~=0.0.9")),
    "pinned dependency": ("bounds", replace(MODELS, '["', '["torch==2.13.0", "')),
    "unbounded dependency": ("bounds", replace(MODELS, '["', '["torch", "')),
    "long file": ("file_length", append(SOURCE, "\n" * 600)),
    "junk drawer": ("file_names", new_file(f"{NEIGHBOUR}/utils.py", '"""Things."""\n')),
    "name used twice": ("file_names", new_file(f"{NEIGHBOUR}/data_file.py", '"""Again."""\n')),
    "no docstring": ("docstrings", new_file(f"{NEIGHBOUR}/bare.py", "x = 1\n")),
    "big file": ("file_size", new_file("docs/picture.svg", "x" * 300_001)),
    "eval": ("unsafe_calls", append(SOURCE, 'x = eval("1")\n')),
    "pickle": ("unsafe_calls", append(SOURCE, "import pickle\nx = pickle.load(f)\n")),
    "imported pickle.loads": ("unsafe_calls", append(SOURCE, "from pickle import loads\n")),
    "allow_pickle": ("unsafe_calls", append(SOURCE, "x = np.load(f, allow_pickle=True)\n")),
    "shell": ("unsafe_calls", append(SOURCE, "subprocess.run(x, shell=True)\n")),
    "pickled weights": ("unsafe_calls", append(SOURCE, "x = load(f, weights_only=False)\n")),
    "archive": ("unsafe_calls", append(SOURCE, "tarfile.open(x).extractall(y)\n")),
    "other command": ("commands", replace("README.md", "nox -s quickstart", "nox -s quick")),
    "other checks": ("commands", replace(".ci/run", "nox -s tests", "nox -s test")),
    "file not in the tree": ("readme_tree", new_file(f"{NEIGHBOUR}/heads.py", '"""New."""\n')),
    "ghost in the tree": ("readme_tree", lambda root: (root / SOURCE).unlink()),
    "no purpose": ("readme_tree", replace("README.md", "The models_file", "")),
}


def test_a_sound_house_has_no_problems(house: Path) -> None:
    assert problems(house) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_reported_by_its_rule(house: Path, fault: str) -> None:
    rule, plant = FAULTS[fault]
    plant(house)
    assert rule in {problem.split(":")[0] for problem in problems(house)}


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule.__name__ for rule in check_house.RULES} == {rule for rule, _ in FAULTS.values()}


@pytest.mark.parametrize(
    "line",
    ["model.eval()", "re.compile('x')", "yaml.safe_load(f)", "np.load(f, allow_pickle=False)"],
)
def test_harmless_calls_are_left_alone(house: Path, line: str) -> None:
    append(SOURCE, f"{line}\n")(house)
    assert problems(house) == []


def test_the_tree_keeps_purposes_and_takes_new_ones_from_docstrings(house: Path) -> None:
    write(house, f"{NEIGHBOUR}/heads.py", '"""Heads on pooled rows.\n\nMore."""\n')
    check_house.write_tree(check_house.House.at(house))
    lines = (house / "README.md").read_text().splitlines()
    assert "  heads.py                    Heads on pooled rows" in lines
    assert "omics-data/                   stores" in lines
    assert problems(house) == []
    for text, shown in (("Heads, " + 20 * "and more ", "Heads"), (20 * "heads ", "")):
        write(house, f"{NEIGHBOUR}/further.py", f'"""{text}."""\n')
        check_house.write_tree(check_house.House.at(house))
        line = f"  {'further.py':28}{shown}".rstrip()
        assert line in (house / "README.md").read_text().splitlines()
        assert len(problems(house)) == (not shown)
        (house / NEIGHBOUR / "further.py").unlink()
        check_house.write_tree(check_house.House.at(house))


def test_files_that_git_ignores_are_not_part_of_the_house(house: Path) -> None:
    subprocess.run(["git", "init", "-q", str(house)], check=True)
    write(house, ".gitignore", "scratch/\n")
    write(house, "scratch/huge.bin", "x" * 400_000)
    assert problems(house) == []
    (house / ".gitignore").unlink()
    assert [text.split(":")[0] for text in problems(house)] == ["file_size"]


def test_the_command_ends_with_one_when_there_is_a_problem(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_house.main(["--root", str(house)]) == 0
    new_file("sub-packages/omics-data/src/omics/__init__.py", '"""Stray."""\n')(house)
    assert check_house.main(["--root", str(house)]) == 1
    assert "must not have this file" in capsys.readouterr().out
