"""Keys that a page and the table do not share are reported, each way."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from omics.train.migrating.migration_rules import Rule

CI = Path(__file__).parent
spec = importlib.util.spec_from_file_location(
    "check_migration_pages", CI / "check_migration_pages.py"
)
assert spec is not None
assert spec.loader is not None
pages = importlib.util.module_from_spec(spec)
sys.modules["check_migration_pages"] = pages
spec.loader.exec_module(pages)

RULES = {
    rule.old: rule
    for rule in (
        Rule(old="a.kept", new="b.kept"),
        Rule(old="a.changed", new="b.other", why="in other units"),
        Rule(old="a.gone", why="nobody needs it"),
        Rule(old="a.also_gone", why="nobody needs it"),
    )
}
EMPTY = "# A page\n\n<!-- keys of a begin -->\n<!-- keys of a end -->\n\nMore text.\n"


def problems(text: str) -> list[str]:
    return list(pages.problems_of("page.md", {"a": RULES}, text))


def test_a_written_page_is_in_order_and_keeps_its_text() -> None:
    page = pages.written({"a": RULES}, EMPTY)
    assert problems(page) == []
    assert page.startswith("# A page")
    assert page.endswith("More text.\n")
    assert "| `a.changed` | `b.other` | in other units |" in page
    assert "| `a.gone`, `a.also_gone` | nobody needs it |" in page
    assert pages.written({"a": RULES}, page) == page


def test_keys_are_missed_each_way() -> None:
    page = pages.written({"a": RULES}, EMPTY)
    assert problems(page.replace("| `a.kept` | `b.kept` |  |\n", "")) == [
        "page.md: the key a.kept of the table is not documented"
    ]
    assert problems(page.replace("`a.gone`", "`a.new`")) == [
        "page.md: the key a.gone of the table is not documented",
        "page.md: the key a.new is documented and not in the table",
    ]


def test_what_is_said_of_a_key_is_that_of_the_table() -> None:
    page = pages.written({"a": RULES}, EMPTY)
    assert problems(page.replace("in other units", "as before")) == [
        "page.md: the section 'a' differs from the table; run with --write"
    ]


def test_sections_are_missed_each_way() -> None:
    assert problems("nothing") == ["page.md: the section 'a' of the table is not on the page"]
    other = "<!-- keys of b begin -->\n<!-- keys of b end -->\n"
    assert "page.md: the table has no section 'b'" in problems(EMPTY + other)
