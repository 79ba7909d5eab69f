"""The console command `omics-models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from omics.data.atomic_files import require_free
from omics.data.command_line import make_app, print_json, progress, run, say
from omics.data.errors import ExistingPathError

app = make_app(
    "omics-models",
    "Look into models, and turn published checkpoints into bundles: models with everything from raw "
    "counts to numbers.",
)

MOST_SHOWN = 5
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@app.command(name="list")
def list_command(json: Json = False) -> None:
    """List the published checkpoints that can be converted: where they lie and how they are used.

    No weights are shipped. Look at the licence in the repository before you use them.
    """
    from omics.models.published.catalogue import catalogue

    rows = catalogue()
    if json:
        print_json({"checkpoints": [row.to_dict() for row in rows.values()]})
        return
    for row in rows.values():
        place = "/".join(part for part in (row.hub, row.folder) if part) or "no hub: give its file"
        say(f"{row.name}")
        say(f"  from           {place}")
        say(f"  size           {row.parameters}")
        say(f"  licence        {row.licence}")
        say(f"  preprocessing  {row.preprocessing}")
        length = (
            f"at most {row.max_length:,} tokens" if row.max_length else "all genes of the panel"
        )
        say(f"  embedding      {row.pooling}; {length}")


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint file (.ckpt, .pt, .bin, .safetensors), its folder, hf:owner/name, or "
            "a name that `omics-models list` shows."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle folder to create.")],
    *,
    known_as: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="What the checkpoint is: a name that `omics-models list` shows, or a kind (bmfm, "
            "geneformer, bioformers). It is found out where this is left out.",
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="bmfm: the folder of the vocabularies (`tokenizers`), where it is not beside the "
            "checkpoint."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Geneformer: a table of gene tokens (ensembl_id, symbol, token_id, median) instead "
            "of the dictionaries beside the checkpoint."
        ),
    ] = None,
    genes: Annotated[
        Path | None,
        typer.Option(
            help="A list of genes, one a line. Bioformers: its panel, in its order. bmfm: the genes "
            "that cells are limited to, instead of the whole vocabulary."
        ),
    ] = None,
    num_bins: Annotated[
        int | None, typer.Option(min=1, help="Bioformers: the number of bins, zeros included.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="The name of the label, for old checkpoints with one nameless classifier."
        ),
    ] = None,
    read_depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Read-depth-aware models: the total count of a cell that the model is asked for; "
            "10,000 where it is left out.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Turn a published checkpoint into a bundle, without executing anything that came with it.

    The bundle holds the weights, the vocabulary, the preprocessing that the checkpoint needs, the
    classes of its labels and where it is from.
    """
    from omics.models.published.checkpoint_conversion import convert_checkpoint
    from omics.models.published.checkpoint_opening import PUBLISHED, ConversionOptions

    _require_free_folder(out, overwrite=overwrite)
    with progress("reading weights", None, "tensors") as advance:
        options = ConversionOptions(
            vocabulary=vocabulary,
            table=table,
            genes=genes,
            num_bins=num_bins,
            label=label,
            read_depth=read_depth,
            on_progress=advance,
        )
        bundle = convert_checkpoint(source, known_as=known_as, options=options)
    bundle.save(out, overwrite=overwrite)
    record = bundle.provenance[PUBLISHED]
    config = bundle.model.model_config
    facts: dict[str, Any] = {
        "bundle": str(out),
        "digest": bundle.digest,
        "kind": record["kind"],
        "name": record["name"],
        "sha256": record["sha256"],
        "parameters": sum(each.numel() for each in bundle.model.parameters()),
        "labels": {name: len(classes) for name, classes in bundle.labels.items()},
        "left_out": record["left_out"],
    }
    if json:
        print_json(facts)
        return
    say(
        f"Wrote {out}: {record['kind']}, {facts['parameters']:,} parameters, "
        f"{config.num_layers} x {config.hidden_size}, {_listed(facts['labels']) or 'no labels'}"
    )
    for name, reason in record["left_out"].items():
        say(f"  left out       {name}: {reason}")


@app.command()
def export(
    bundle: Annotated[str, typer.Argument(help="A bundle that `convert` made.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to create.")],
    *,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a converted bundle in the layout it was published in: safetensors, configuration, keys."""
    from omics.models.bundle import Bundle
    from omics.models.published.checkpoint_conversion import export_checkpoint

    _require_free_folder(out, overwrite=overwrite)
    folder = export_checkpoint(Bundle.load(bundle), out, overwrite=overwrite)
    files = sorted(file.name for file in folder.iterdir())
    if json:
        print_json({"folder": str(folder), "files": files})
        return
    say(f"Wrote {folder}: {', '.join(files)}")


@app.command()
def card(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, or hf:owner/name.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="A file to write; without it the card is printed.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the model card of a bundle in Markdown: sizes, preprocessing, labels, origin, use."""
    from omics.data.atomic_files import write_bytes
    from omics.models.bundle import Bundle
    from omics.models.bundle_card import model_card

    if out is not None:
        require_free(out, overwrite=overwrite)
    text = model_card(Bundle.load(bundle), bundle)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_bytes(out, text.encode())
    say(f"Wrote {out}")


@app.command()
def info(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, or hf:owner/name.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check a bundle's digests and say what it holds: sizes, genes, labels, preprocessing."""
    from omics.models.bundle import Bundle

    loaded = Bundle.load(bundle)
    config = loaded.model.model_config
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    facts: dict[str, Any] = {
        "path": str(Path(loaded.path or bundle)),
        "digest": loaded.digest,
        "parameters": parameters,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "pooling": config.pooling,
        "tokenizer": loaded.tokenizer.kind,
        "fields": {spec.name: spec.vocabulary_size for spec in loaded.tokenizer.fields},
        "labels": {name: list(classes) for name, classes in loaded.labels.items()},
        "preprocessing": [transform.to_dict() for transform in loaded.transforms],
        "provenance": dict(loaded.provenance),
    }
    if json:
        print_json(facts)
        return
    say(f"{facts['path']}: whole (every digest agrees)")
    layers = "layer" if config.num_layers == 1 else "layers"
    say(f"  parameters     {parameters:,}: {config.num_layers} {layers} x {config.hidden_size}")
    say(f"  tokenizer      {loaded.tokenizer.kind}, ids per field: {_listed(facts['fields'])}")
    for name, classes in loaded.labels.items():
        say(f"  label          {name}: {len(classes)} classes ({', '.join(classes)})")
    for step in facts["preprocessing"]:
        say(f"  preprocessing  {_listed(step)}")
    for key, value in loaded.provenance.items():
        say(f"  {key:<14} {_listed(value) if isinstance(value, dict) else value}")


def _require_free_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse an output folder before any work is done for it."""
    if path.exists() and not overwrite:
        raise ExistingPathError(f"{path} exists; choose another path or add --overwrite.")


def _listed(items: dict[str, Any]) -> str:
    """Return one line; of a long list or table only its length."""
    return ", ".join(
        f"{key} ({len(value):,} entries)"
        if isinstance(value, list | dict) and len(value) > MOST_SHOWN
        else f"{key} {value}"
        for key, value in items.items()
    )


def main() -> None:
    """Run the command."""
    run(app)
