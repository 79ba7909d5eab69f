"""The console command `omics-data`; the longer verbs are in a file of their own each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from omics.data.command_line import make_app, print_json, progress, run, say
from omics.data.commands import (
    check_command,
    convert_command,
    datasets_command,
    doctor_command,
    prepare_command,
    qc_command,
    select_command,
    shard_command,
)
from omics.data.commands.shared_options import (
    AsJson,
    Column,
    Fractions,
    Group,
    Overwrite,
    StorePath,
    Stratify,
    TableOut,
    read_fractions,
)
from omics.data.errors import UsageError

app = make_app(
    "omics-data",
    "Look at single-cell files, turn them into stores of raw counts, and divide their cells.",
)

check_command.add_to(app)
convert_command.add_to(app)
qc_command.add_to(app)
prepare_command.add_to(app)
select_command.add_to(app)
shard_command.add_to(app)
datasets_command.add_to(app)
doctor_command.add_to(app)


@app.command()
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Describe a store: size, genes, labels, where it came from."""
    from omics.data.converting.check import describe_store
    from omics.data.storage.store import open_store

    report = describe_store(open_store(store), shown_as=store)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(report.text())


@app.command()
def verify(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="A store folder, or a folder or address of shards."),
    ],
    as_json: AsJson = False,
) -> None:
    """Check every byte against its checksums; exit code 4 if one is damaged."""
    from omics.data.sharding.shards import MANIFEST_NAME
    from omics.data.storage.store import open_store

    if "://" in store or (Path(store) / MANIFEST_NAME).exists():
        _verify_shards(store, as_json=as_json)
        return
    report = open_store(store).verify()
    if as_json:
        print_json(report.to_dict())
    else:
        say(f"{store} is whole: {report.num_files} files, {report.num_bytes:,} bytes")
        if report.extra_files:
            say(f"note: files that do not belong to it: {', '.join(report.extra_files)}")


def _verify_shards(address: str, *, as_json: bool) -> None:
    from omics.data.sharding.shards import open_shards

    shards = open_shards(address)
    checked = shards.verify()
    if as_json:
        print_json({"num_shards": len(shards.manifest.shards), "num_bytes": checked})
    else:
        say(f"{address} is whole: {len(shards.manifest.shards)} shards, {checked:,} bytes")


@app.command()
def split(
    store: StorePath,
    out: TableOut,
    *,
    stratify: Stratify = None,
    group: Group = None,
    column: Column = None,
    perturbation: Annotated[
        str | None,
        typer.Option(metavar="COL", help="Hold out whole perturbations of this obs column."),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --perturbation: its value for controls."),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(help="With --perturbation: between the parts of a combination; +."),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(help="With --perturbation: genes (default), combinations or both."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --perturbation: one to test; repeatable."),
    ] = None,
    fractions: Fractions = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same split.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Divide the cells of a store into train, validation and test, and look for leakage."""
    from omics.data.atomic_files import require_free
    from omics.data.perturbation_names import SEPARATOR
    from omics.data.perturbation_splits import make_perturbation_split
    from omics.data.splits import leakage, make_split
    from omics.data.storage.store import open_store

    require_free(out, overwrite=overwrite)
    about_perturbations = (control, separator, hold_out, held_out)
    if perturbation is None and any(each is not None for each in about_perturbations):
        raise UsageError(
            "--control, --separator, --hold-out and --held-out are about perturbations: add "
            "--perturbation."
        )
    if perturbation is not None and control is None:
        raise UsageError("--perturbation needs the name of the controls: add --control.")
    if perturbation is not None and (stratify or group or column):
        raise UsageError("Give one of --stratify, --group, --column and --perturbation.")
    opened = open_store(store)
    shares = read_fractions(fractions)
    if perturbation is not None:
        table = make_perturbation_split(
            opened,
            column=perturbation,
            control=str(control),
            separator=SEPARATOR if separator is None else separator,
            hold_out=hold_out,
            held_out=held_out or (),
            fractions=shares,
            seed=seed,
        )
    else:
        table = make_split(
            opened, fractions=shares, stratify=stratify, group=group, column=column, seed=seed
        )
    found = leakage(opened, table, group=group)
    table.save(out, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "path": str(out),
                "sizes": table.sizes,
                "method": table.method,
                "seed": seed,
                "store_digest": table.store_digest,
                "leakage": found.to_dict(),
            }
        )
        return
    say(f"wrote {out}: " + ", ".join(f"{name} {size:,}" for name, size in table.sizes.items()))
    if found.duplicate_cells:
        examples = ", ".join(f"{a} = {b}" for a, b in found.duplicate_examples)
        say(
            f"note: {found.duplicate_cells:,} cells equal a cell of another split gene by gene "
            f"(rows {examples})"
        )


@app.command()
def export(
    store: StorePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .h5ad file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a store as an .h5ad file."""
    from omics.data.export import export_h5ad
    from omics.data.storage.store import open_store

    opened = open_store(store)
    with progress("exporting", len(opened)) as advance:
        export_h5ad(opened, out, overwrite=overwrite, on_progress=advance)
    say(f"wrote {out}: {opened.shape[0]:,} cells x {opened.shape[1]:,} genes")


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .h5ad file to write.")],
    *,
    cells: Annotated[int, typer.Option(min=1, help="How many cells.")] = 1000,
    genes: Annotated[int, typer.Option(min=1, help="How many genes.")] = 2000,
    types: Annotated[int, typer.Option(min=1, help="How many cell types.")] = 5,
    batches: Annotated[int, typer.Option(min=1, help="How many batches, of two donors each.")] = 2,
    marker_fold: Annotated[
        float, typer.Option(min=1, help="How many times as much a type expresses its markers.")
    ] = 12.0,
    batch_effect: Annotated[
        float, typer.Option(min=0, max=10, help="How much batches differ: sigma of log factors.")
    ] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same data.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make up an experiment with known cell types, for trying things out."""
    from omics.data.atomic_files import require_free
    from omics.data.export import write_h5ad
    from omics.data.synthetic import synthesize as make_up

    require_free(out, overwrite=overwrite)
    made = make_up(
        cells,
        genes,
        num_types=types,
        num_batches=batches,
        num_donors=2 * batches,
        marker_fold=marker_fold,
        batch_effect=batch_effect,
        seed=seed,
    )
    write_h5ad(made, out, overwrite=overwrite)
    say(f"wrote {out}: {cells:,} cells x {genes:,} genes")
    say(f"next: omics-data check {shlex.quote(str(out))}")


def main() -> None:
    """Run the command and end the process with its exit code."""
    run(app)
