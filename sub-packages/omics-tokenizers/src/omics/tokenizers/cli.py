"""The console command `omics-tokenizers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from omics.data.command_line import make_app, print_json, progress, run, say

app = make_app(
    "omics-tokenizers", "See what cells become: inspect tokenizers and encode stores to tokens."
)

Folder = Annotated[
    Path, typer.Argument(help="Folder with a tokenizer.json, such as BUNDLE/tokenizer.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def inspect(
    tokenizer: Folder,
    store: Annotated[
        Path | None, typer.Option(help="A store: say how many of its genes are known.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a tokenizer makes: its fields, its vocabulary, how well it fits a store."""
    from omics.data.storage.store import open_store
    from omics.tokenizers import GeneTokenizer, load_tokenizer

    loaded = load_tokenizer(tokenizer)
    facts: dict[str, Any] = {
        "kind": loaded.kind,
        "fields": {spec.name: [spec.kind, spec.vocabulary_size] for spec in loaded.fields},
    }
    if isinstance(loaded, GeneTokenizer):
        facts["first_genes"] = list(loaded.vocabulary.names[:5])
        facts["vocabulary_digest"] = loaded.vocabulary.digest
        if store is not None:
            _, coverage = loaded.token_of_gene(open_store(store).genes)
            facts["coverage"] = str(coverage)
    if json:
        print_json(facts)
        return
    for key, value in facts.items():
        say(f"{key:<18} {value}")


@app.command()
def encode(
    store: Annotated[Path, typer.Argument(help="A store folder.")],
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of a saved tokenizer; without it the store's own genes."),
    ] = None,
    target_sum: Annotated[
        float, typer.Option(help="Counts per cell after normalisation, before log1p.")
    ] = 10_000.0,
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Write one row per cell in store order: its name, token ids and expression values."""
    from omics.data.atomic_files import require_free
    from omics.data.errors import UsageError
    from omics.data.storage.store import open_store
    from omics.tokenizers import GeneTokenizer, load_tokenizer
    from omics.tokenizers.token_table import write_tokens

    require_free(out, overwrite=overwrite)
    opened = open_store(store)
    if tokenizer is None:
        chosen = GeneTokenizer.from_genes(opened.genes)
    else:
        loaded = load_tokenizer(tokenizer)
        if not isinstance(loaded, GeneTokenizer):
            raise UsageError(f"{tokenizer} is a {loaded.kind!r} tokenizer; it cannot read cells.")
        chosen = loaded
    with progress("encoding", len(opened)) as advance:
        coverage = write_tokens(opened, chosen, out, target_sum=target_sum, on_progress=advance)
    say(f"Wrote {len(opened)} cells to {out}; {coverage}.")


def main() -> None:
    """Run the command."""
    run(app)
