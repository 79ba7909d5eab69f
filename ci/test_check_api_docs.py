"""What documents promise and the packages do not have is reported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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


check_api_docs = load("check_api_docs")


def shell(*lines: str) -> str:
    return "text\n\n```bash\n" + "\n".join(lines) + "\n```\n"


@pytest.mark.parametrize(
    "line",
    [
        "omics-data check cells.h5ad --json  # a comment",
        "omics-data --version",
        "cd work && omics-data -v verify cells.store",
        "omics-data split cells.store split.parquet \\\n  --stratify cell_type --fractions 0.8,0,0.2",
        'omics-train finetune working_dir=w "label_columns=[a]" trainer.max_epochs=3 --cfg job',
        "omics-train pretrain model=small trainer.losses.0.weight=2 data_module.split=s -m seed=1,2",
        "ls omics-nothing/",
    ],
)
def test_commands_that_exist_are_accepted(line: str) -> None:
    assert list(check_api_docs.page_problems(shell(line))) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("omics-date check cells.h5ad", "there is no command omics-date"),
        ("omics-data convertt a b", "has no verb convertt"),
        ("omics-data check cells.h5ad --yaml", "has no option --yaml"),
        ("omics-data --loud check cells.h5ad", "has no option --loud"),
        ("omics-train pretrain trainer.epochs=3", "no configuration key trainer.epochs"),
        ("omics-train pretrain working_directory=w", "no configuration key working_directory"),
        ("omics-train pretrain --epochs 3", "no option --epochs"),
        ("true && omics-eval embedd a", "has no verb embedd"),
    ],
)
def test_commands_that_do_not_exist_are_reported(line: str, message: str) -> None:
    problems = list(check_api_docs.page_problems(shell("omics-data --help", line)))
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("from omics.data import no_such_thing", "imports omics.data.no_such_thing"),
        ("store.take([1", "does not compile"),
    ],
)
def test_python_blocks_that_cannot_run_are_reported(body: str, message: str) -> None:
    problems = list(check_api_docs.page_problems(f"```python\n{body}\n```\n"))
    assert len(problems) == 1
    assert message in problems[0]


def test_python_blocks_that_import_what_exists_are_accepted() -> None:
    page = "```python\nfrom omics.data import open_store\nstore = open_store('cells.store')\n```\n"
    assert list(check_api_docs.page_problems(page)) == []


def test_public_names_and_api_pages_must_agree(tmp_path: Path) -> None:
    (tmp_path / "docs" / "api").mkdir(parents=True)
    for page in (CI.parent / "docs" / "api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        (tmp_path / "docs" / "api" / page.name).write_text(text, encoding="utf-8")
    assert list(check_api_docs.api_problems(tmp_path)) == []

    page = tmp_path / "docs" / "api" / "data.md"
    page.write_text(page.read_text().replace("omics.data.open_store", "omics.data.shut_store"))
    assert list(check_api_docs.api_problems(tmp_path)) == [
        "docs/api/data.md: omics.data.open_store is public and not documented",
        "docs/api/data.md: omics.data.shut_store is documented and not public",
    ]


def test_every_verb_is_shown_in_a_document(tmp_path: Path) -> None:
    assert list(check_api_docs.coverage_problems(CI.parent)) == []
    (tmp_path / "README.md").write_text(shell("omics-data check cells.h5ad"))
    missing = list(check_api_docs.coverage_problems(tmp_path))
    assert "no document shows `omics-data convert` in a shell block" in missing
    assert "no document shows `omics-data check` in a shell block" not in missing
