"""The verb `migrate` of `omics-train`: an old configuration to ours, and what became of its keys."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omics.data.command_line import print_json, say

if TYPE_CHECKING:
    from omics.train.migrating.migration import Migration


def add_to(app: typer.Typer) -> None:
    """Register the verb `migrate`.

    Args:
        app: the application of `omics-train`.
    """
    app.command(name="migrate")(migrate)


def migrate(
    old: Annotated[
        Path,
        typer.Argument(metavar="OLD", help="A bmfm configuration, or Bioformers' settings.json."),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="The configuration to write (.yaml).")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what became of each key as one JSON object.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there already.")
    ] = False,
) -> None:
    """Translate a configuration of bmfm or Bioformers, and tell what became of every key.

    A key is carried over, or dropped with the reason. Nothing in the old file is run or imported,
    and ${oc.env:NAME} stays as it is.
    """
    from omics.data.atomic_files import require_free, write_bytes
    from omics.data.errors import UsageError
    from omics.train.migrating.migration import migrate as translate

    if out.suffix != ".yaml":
        raise UsageError(f"--out {out} must end with .yaml: Hydra finds configurations by it.")
    require_free(out, overwrite=overwrite)
    result = translate(old)
    write_bytes(out, result.to_yaml(old.name).encode())
    if as_json:
        print_json({"out": str(out), **result.to_dict()})
        return
    for line in _lines(result, out):
        say(line)


def _lines(result: Migration, out: Path) -> list[str]:
    lines = []
    for kind, title in (
        ("mapped", "carried over"),
        ("changed", "carried over, with another meaning"),
        ("dropped", "dropped"),
    ):
        entries = [entry for entry in result.entries if entry.kind == kind]
        lines.append(f"{title} ({len(entries)})")
        for entry in entries:
            arrow = f" -> {entry.new}" if entry.new and entry.new != entry.old else ""
            lines.append(f"  {entry.old}{arrow}{': ' + entry.why if entry.why else ''}")
    if result.defaults:
        lines.append(f"set, because the default was another ({len(result.defaults)})")
        lines += [f"  {key} = {value}" for key, value in result.defaults.items()]
    if result.steps:
        lines.append("before the run")
        lines += [f"  {command or '-'}    # {what}" for command, what in result.steps]
    missing = "" if "working_dir" in result.config else " working_dir=FOLDER"
    lines += [
        f"wrote {out}",
        f"next: omics-train {result.verb} -cd {shlex.quote(str(out.parent))} -cn {out.stem}{missing}",
    ]
    return lines
