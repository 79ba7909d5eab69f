"""The chores of the monorepo: quickstart, tests, lint, types, docs, wheels, bench, studies, gpu.

- One environment serves every session. `environment` makes and fills it, the others require it,
  and each step is skipped while the digest of what it was made from is unchanged.
- No index has our six packages: each wheel is built once into `.nox/wheels` and all are installed
  together without their dependencies, which come from `ci/constraints.txt` beforehand.
- Nothing here names an index. pip reads its own configuration and `PIP_*` variables, so CPU or
  CUDA torch is the caller's choice (docs/installation.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests", "docs", "wheels"]

ROOT = Path(__file__).parent
CONSTRAINTS = "ci/constraints.txt"
PACKAGES = [
    "omics-data",
    "omics-tokenizers",
    "omics-models",
    "omics-eval",
    "omics-train",
    "omics-dna",
]
# The optional dependencies that the tests and the quickstart need.
TESTED_EXTRAS = [
    "attribution",
    "integration",
    "lora",
    "ontology",
    "plots",
    "qc",
    "rdata",
    "soma",
    "streaming",
    "sweep",
]
# litdata asks for torchvision, whose CUDA build breaks a CPU torch; nothing here needs it.
WITHOUT_DEPENDENCIES = ["litdata"]
# What `bench -- loader` compares with, beside what the tests bring.
PEERS = ["bionemo-scdl", "scDataset", "tiledbsoma-ml"]
PEERS_FROM_PYTHON_312 = ["annbatch", "zarrs"]
NEVER_WITH = {"omics-data": "torch", "omics-tokenizers": "torch"}

_environment_bin: list[Path] = []  # filled by `environment`, which runs first in the same process


# What goes in, and whether it changed


def metadata(package: str) -> dict[str, Any]:
    """Return the `[project]` table of one package."""
    return nox.project.load_toml(ROOT / "sub-packages" / package / "pyproject.toml")["project"]


def third_party() -> list[str]:
    """Return the requirements of all packages, their tested extras and all dependency groups."""
    wanted: set[str] = set()
    for package in PACKAGES:
        project = metadata(package)
        wanted.update(project["dependencies"])
        for extra in TESTED_EXTRAS:
            wanted.update(project.get("optional-dependencies", {}).get(extra, []))
    groups = nox.project.load_toml(ROOT / "pyproject.toml")
    wanted.update(nox.project.dependency_groups(groups, *groups["dependency-groups"]))
    return sorted(line for line in wanted if name_of(line) not in PACKAGES)


def name_of(requirement: str) -> str:
    """Return the distribution that a requirement such as `numpy>=2.0` names."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def install_third_party(session: nox.Session, folder: Path, *options: str) -> None:
    """Install everything that is not ours, without what must not come along.

    Args:
        session: whose environment is filled.
        folder: for the lists of requirements.
        options: for pip.
    """
    alone = [line for line in third_party() if name_of(line) in WITHOUT_DEPENDENCIES]
    listed = folder / "third-party.txt"
    listed.write_text("\n".join(line for line in third_party() if line not in alone) + "\n")
    session.install(*options, "-r", str(listed))
    session.install(*options, "--no-deps", *alone)


def check_requirements(session: nox.Session) -> None:
    """Stop unless every package has what it asks for, but for those installed without it."""
    found = session.run(
        "python", "-m", "pip", "check", silent=True, log=False, success_codes=[0, 1]
    )
    problems = [line for line in str(found).splitlines() if " requires " in line or " has " in line]
    wrong = [line for line in problems if not line.startswith(tuple(WITHOUT_DEPENDENCIES))]
    if wrong:
        session.error("\n".join(wrong))


def sources_digest(package: str) -> str:
    """Return the sha256 of everything that goes into one package's wheel."""
    folder = ROOT / "sub-packages" / package
    digest = hashlib.sha256()
    paths = [folder / "pyproject.toml", folder / "README.md", *sorted((folder / "src").rglob("*"))]
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


# The shared environment


@nox.session(default=False, reuse_venv=True)
def environment(session: nox.Session) -> None:
    """Make the one environment that serves all sessions: third-party packages, then our wheels."""
    location = Path(session.virtualenv.location)
    _environment_bin[:] = [Path(session.bin)]
    stamps_file = location / "omics-stamps.json"
    stamps = json.loads(stamps_file.read_text()) if stamps_file.exists() else {}

    requirements = "\n".join(third_party()) + "\n"
    described = requirements + (ROOT / CONSTRAINTS).read_text() + sys.version
    digest = hashlib.sha256(described.encode()).hexdigest()
    if stamps.get("third-party") != digest:
        install_third_party(session, location, "-c", CONSTRAINTS)
        stamps["third-party"] = digest
        stamps_file.write_text(json.dumps(stamps))

    digests = {package: sources_digest(package) for package in PACKAGES}
    stale = [
        package
        for package in PACKAGES
        if stamps.get(package) != digests[package] or not wheels_of(package)
    ]
    if stale:
        for wheel in [wheel for package in stale for wheel in wheels_of(package)]:
            wheel.unlink()
        folders = [f"./sub-packages/{package}" for package in stale]
        build = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(wheel_folder())]
        session.run("python", "-m", "pip", "wheel", "-q", *build, *folders)
        built = [str(wheel) for package in stale for wheel in wheels_of(package)]
        session.install("--no-deps", "--no-index", "--force-reinstall", *built)
        check_requirements(session)
        stamps.update({package: digests[package] for package in stale})
        stamps_file.write_text(json.dumps(stamps))


def wheel_folder() -> Path:
    """Return where the six wheels lie, beside the shared environment."""
    return _environment_bin[0].parent.parent / "wheels"


def wheels_of(package: str) -> list[Path]:
    """Return the built wheel of one package, if there is one."""
    return sorted(wheel_folder().glob(f"{package.replace('-', '_')}-*.whl"))


def run(session: nox.Session, command: str, *arguments: str) -> None:
    """Run a command of the shared environment; the caller's environment variables are handed on."""
    folder = _environment_bin[0]
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
    session.env.update(PATH=path, VIRTUAL_ENV=str(folder.parent))
    session.run(str(folder / command), *arguments, external=True)


# Sessions


@nox.session(default=False, venv_backend="none", requires=["environment"])
def quickstart(session: nox.Session) -> None:
    """Run the main job on 700 real cells (`-- --work DIR --seed N` go to quickstart/run.py)."""
    run(session, "python", "quickstart/run.py", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def tests(session: nox.Session) -> None:
    """Run the tests against the installed wheels (`-- ARGUMENTS` go to pytest)."""
    # The cores are shared out between the two workers: threads that wait for a core spin.
    if "OMP_NUM_THREADS" not in os.environ:
        session.env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // 2))
    run(session, "pytest", "-n", "2", "-m", "not gpu", *session.posargs)


@nox.session(default=False, venv_backend="none", requires=["environment"])
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device."""
    run(session, "pytest", "-m", "gpu", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def lint(session: nox.Session) -> None:
    """Check style, package order, spelling and the rules of the house."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "lint-imports")
    run(session, "codespell")
    run(session, "python", "ci/check_house.py")


@nox.session(venv_backend="none", requires=["environment"])
def types(session: nox.Session) -> None:
    """Check types, strictly, one package at a time."""
    for package in session.posargs or PACKAGES:
        run(session, "mypy", f"sub-packages/{package}/src")


@nox.session(venv_backend="none", requires=["environment"])
def docs(session: nox.Session) -> None:
    """Build the documentation without warnings and check what it promises."""
    run(session, "python", "ci/check_api_docs.py")
    run(session, "python", "ci/check_migration_pages.py")
    run(session, "python", "ci/check_scaling_page.py")
    run(session, "sphinx-build", "-q", "-W", "--keep-going", "docs", "docs/_build/html")
    session.log("The pages begin at docs/_build/html/index.html")


@nox.session(venv_backend="none", requires=["environment"])
def wheels(session: nox.Session) -> None:
    """Install each wheel alone into a clean environment, import it and run its command.

    Its siblings come from the built wheels, everything else from the index. `-- omics-data` tries
    one package only.
    """
    clean = wheel_folder().parent / "alone"
    for package in session.posargs or PACKAGES:
        run(session, "python", "-m", "venv", "--clear", str(clean))
        python = str(clean / "bin" / "python")
        install = ["-q", "--no-compile", "-c", CONSTRAINTS, "--find-links", str(wheel_folder())]
        pinned = f"{package}=={metadata(package)['version']}"
        session.run(python, "-m", "pip", "install", *install, pinned, external=True)
        absent = [NEVER_WITH[package]] if package in NEVER_WITH else []
        check = ["ci/check_wheel.py", package.replace("-", "."), *absent]
        session.run(python, *check, external=True)
        session.run(str(clean / "bin" / package), "--help", silent=True, external=True)
    shutil.rmtree(clean)


@nox.session(default=False, venv_backend="none", requires=["environment"])
def bench(session: nox.Session) -> None:
    """Run a script of bench/ by its name (`-- loader --help` shows its options)."""
    scripts = sorted(path.stem for path in (ROOT / "bench").glob("*.py"))
    name, *options = session.posargs or [""]
    if name not in scripts:
        session.error(f"Give one of these after `--`: {', '.join(scripts)}")
    if name == "loader":
        # Beside the environment, not in it: what they ask for must not change what is tested.
        peers = wheel_folder().parent / "peers"
        names = PEERS + (PEERS_FROM_PYTHON_312 if sys.version_info >= (3, 12) else [])
        target = ["--no-deps", "--upgrade", "--target", str(peers)]
        run(session, "python", "-m", "pip", "install", "-q", *target, *names)
        session.env["PYTHONPATH"] = str(peers)
    run(session, "python", "-W", "ignore", f"bench/{name}.py", *options)


@nox.session(default=False, venv_backend="none", requires=["environment"])
def studies(session: nox.Session) -> None:
    """Run studies of planted truth by their names, or all (`-- --help` shows the options)."""
    run(session, "python", "-W", "ignore", "studies/planted.py", *session.posargs)


@nox.session(default=False, reuse_venv=False)
def constraints(session: nox.Session) -> None:
    """Resolve every dependency afresh and rewrite ci/constraints.txt.

    What a CUDA build of torch brings is left out: torch pins that itself.
    """
    install_third_party(session, Path(session.create_tmp()), "--upgrade")
    freeze = session.run(
        "python", "-m", "pip", "freeze", "--exclude", "pip", silent=True, log=False
    )
    path = ROOT / CONSTRAINTS
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    of_cuda = ("nvidia-", "cuda-", "triton==")
    lines = [line for line in str(freeze).splitlines() if "==" in line]
    pins = [line.split("+")[0] for line in lines if not line.startswith(of_cuda)]
    path.write_text("\n".join([*header, *pins]) + "\n")
