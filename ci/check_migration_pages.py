"""Hold the pages "coming from ..." against the tables of `omics-train migrate`, key by key.

- Between `<!-- keys of SECTION begin -->` and `<!-- keys of SECTION end -->` a page has the keys of
  one section of a table, and nothing else. A key that is documented and not in the table, or in the
  table and not documented, is a problem.
- `check_migration_pages.py --write` rewrites what is between the markers.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
PAGES = {"bmfm": "coming-from-bmfm.md", "bioformers": "coming-from-bioformers.md"}


def tables(rules: Mapping[str, Any]) -> str:
    """Return the tables of one section in Markdown.

    Args:
        rules: of the section, by old key.
    """
    carried = [rule for rule in rules.values() if rule.kind != "dropped"]
    lines = []
    if carried:
        lines += ["| key | here | what changes |", "|---|---|---|"]
        lines += [f"| `{rule.old}` | `{rule.new}` | {rule.why} |" for rule in carried]
        lines.append("")
    reasons: dict[str, list[str]] = {}
    for rule in rules.values():
        if rule.kind == "dropped":
            reasons.setdefault(rule.why, []).append(f"`{rule.old}`")
    if reasons:
        lines += ["| dropped | because |", "|---|---|"]
        lines += [f"| {', '.join(keys)} | {why} |" for why, keys in reasons.items()]
        lines.append("")
    return "\n".join(lines)


def between(section: str, text: str) -> re.Match[str] | None:
    """Find what a page has between the markers of a section.

    Args:
        section: its name.
        text: of the page.
    """
    begin, end = (re.escape(f"<!-- keys of {section} {word} -->\n") for word in ("begin", "end"))
    return re.search(f"{begin}(.*?){end}", text, re.DOTALL)


def problems_of(name: str, sections: Mapping[str, Mapping[str, Any]], text: str) -> Iterator[str]:
    """Say what a page documents and the table lacks, and the other way round.

    Args:
        name: of the page.
        sections: of the table.
        text: of the page.
    """
    for section in re.findall(r"<!-- keys of (\w+) begin -->", text):
        if section not in sections:
            yield f"{name}: the table has no section {section!r}"
    for section, rules in sections.items():
        found = between(section, text)
        if found is None:
            yield f"{name}: the section {section!r} of the table is not on the page"
            continue
        shown = re.findall(r"^\| (`.*?`) \|", found[1], re.MULTILINE)
        keys = {key.strip("`") for cell in shown for key in cell.split(", ")}
        for key in sorted(set(rules) - keys):
            yield f"{name}: the key {key} of the table is not documented"
        for key in sorted(keys - set(rules)):
            yield f"{name}: the key {key} is documented and not in the table"
        if keys == set(rules) and found[1] != f"\n{tables(rules)}\n":
            yield f"{name}: the section {section!r} differs from the table; run with --write"


def written(sections: Mapping[str, Mapping[str, Any]], text: str) -> str:
    """Return a page with the tables as they are.

    Args:
        sections: of the table.
        text: of the page.
    """
    for section, rules in sections.items():
        found = between(section, text)
        if found is not None:
            text = f"{text[: found.start(1)]}\n{tables(rules)}\n{text[found.end(1) :]}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Check both pages, or rewrite their tables."""
    from omics.train.migrating.migration import rules_of

    parser = argparse.ArgumentParser(description="Check the pages about old configurations.")
    parser.add_argument("--write", action="store_true", help="rewrite the tables of the pages")
    options = parser.parse_args(arguments)
    problems = []
    for kind, name in PAGES.items():
        page = ROOT / "docs" / "guides" / name
        text = page.read_text(encoding="utf-8")
        if options.write:
            text = written(rules_of(kind), text)
            page.write_text(text, encoding="utf-8")
        problems += problems_of(f"docs/guides/{name}", rules_of(kind), text)
    for problem in problems:
        print(problem)
    print(f"{len(PAGES)} pages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
