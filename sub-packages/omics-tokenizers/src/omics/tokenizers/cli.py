"""The console command `omics-tokenizers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omics.data.command_line import make_app, print_json, progress, run, say

if TYPE_CHECKING:
    from omics.data import CellStore
    from omics.data.storage.store_collection import StoreCollection
    from omics.data.transforms import Transform
    from omics.tokenizers import CellTokenizer

app = make_app(
    "omics-tokenizers", "See what cells become: inspect tokenizers and encode stores to tokens."
)

Overwrite = Annotated[bool, typer.Option(help="Replace what is there.")]
Aliases = Annotated[
    Path | None,
    typer.Option(help="Table with the columns alias and gene: old ids or other names of genes."),
]


@app.command()
def inspect(
    tokenizer: Annotated[
        Path, typer.Argument(help="Folder with a tokenizer.json, such as BUNDLE/tokenizer.")
    ],
    store: Annotated[
        Path | None, typer.Option(help="A store: say how many of its genes are known.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what a tokenizer makes: its fields, its vocabulary, how well it fits a store."""
    from omics.data.errors import UsageError
    from omics.tokenizers import load_tokenizer, reads_cells

    loaded = load_tokenizer(tokenizer)
    facts: dict[str, Any] = {
        "kind": loaded.kind,
        "fields": {spec.name: [spec.kind, spec.vocabulary_size] for spec in loaded.fields},
    }
    coverage = None
    if reads_cells(loaded):
        facts["special_tokens"] = {
            role: [token, loaded.vocabulary.id_of(role)]
            for role, token in loaded.vocabulary.specials.items()
        }
        facts["max_length"] = getattr(loaded, "max_length", None)
        facts["first_genes"] = list(loaded.vocabulary.names[:5])
        facts["vocabulary_digest"] = loaded.vocabulary.digest
        if store is not None:
            with _cells(store) as opened:
                coverage = loaded.bind(opened.genes, gene_sums=opened.gene_sums()).coverage
    elif store is not None:
        raise UsageError(f"{tokenizer} is a {loaded.kind!r} tokenizer; it cannot read cells.")
    if json:
        known = {} if coverage is None else {"coverage": coverage.to_dict()}
        print_json({**facts, **known})
        return
    for key, value in facts.items():
        say(f"{key:<18} {value}")
    if coverage is not None:
        say(f"{'coverage':<18} {coverage}")
        if coverage.unknown:
            say(f"{'unknown':<18} such as {', '.join(coverage.unknown)}")


@app.command()
def encode(
    store: Annotated[Path, typer.Argument(help="A store, or any source of raw counts.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="`geneformer` or `geneformer-v1` (with --table), or the folder of a saved "
            "tokenizer; without it the store's own genes."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Table of gene tokens (ensembl_id, symbol, token_id, median) of the geneformer "
            "tokenizers."
        ),
    ] = None,
    gene_aliases: Aliases = None,
    transforms: Annotated[
        Path | None,
        typer.Option(
            help="JSON list of transforms that make the fields a saved tokenizer reads, such as "
            "BUNDLE/preprocessing.json; without it log_normalize."
        ),
    ] = None,
    target_sum: Annotated[
        float | None,
        typer.Option(
            help="Counts per cell after normalisation, before log1p (10,000), without --transforms."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one row per cell in store order: its name, token ids and further fields.

    The genes of the store are matched by id or by symbol, whichever finds more of the vocabulary.
    """
    from omics.data.atomic_files import require_free
    from omics.tokenizers.token_table import write_tokens

    require_free(out, overwrite=overwrite)
    with _cells(store) as cells:
        chosen = _tokenizer(tokenizer, table, gene_aliases, cells)
        steps = _transforms(chosen, transforms, target_sum)
        with progress("encoding", len(cells)) as advance:
            coverage = write_tokens(cells, chosen, out, transforms=steps, on_progress=advance)
        say(f"Wrote {len(cells):,} cells to {out}; {coverage}.")


@app.command()
def medians(
    stores: Annotated[
        list[Path], typer.Argument(help="Stores of raw counts; their genes are joined by id.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Table (TSV) to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the non-zero median of each gene of a corpus, as a table for rank-value encoding.

    Medians are exact, of counts scaled to 10,000 per cell; memory does not grow with the number of
    cells, which are read several times. Token ids follow: `<pad>`, `<mask>`, `<cls>`, `<eos>`, then
    the genes in the order of their ids.
    """
    from omics.data.atomic_files import require_free
    from omics.data.storage.store import open_store
    from omics.data.storage.store_collection import is_collection, open_collection
    from omics.tokenizers.gene_medians import corpus_medians, median_tokens, num_passes
    from omics.tokenizers.gene_token_file import write_gene_tokens

    require_free(out, overwrite=overwrite)
    if len(stores) > 1 or is_collection(stores[0]):
        cells: CellStore | StoreCollection = open_collection(
            stores if len(stores) > 1 else stores[0]
        )
    else:
        cells = open_store(stores[0])
    with progress("reading", num_passes(cells) * len(cells)) as advance:
        found = corpus_medians(cells, on_progress=advance)
    tokens = median_tokens(cells.genes, found)
    write_gene_tokens(out, tokens)
    num_genes = len(tokens.symbols)
    say(
        f"Wrote the medians of {num_genes:,} genes over {len(cells):,} cells to {out}; "
        f"{cells.shape[1] - num_genes:,} genes have no count and are left out."
    )


@app.command(name="import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A table of gene tokens (.tsv, .csv), a list of genes, a tokenizer.json of Hugging "
            "Face, or the folder of a checkpoint that holds tokenizers/genes/tokenizer.json."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder to create, with a tokenizer.json.")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="What the source is: `geneformer` or `geneformer-v1` (a table of gene tokens), "
            "`list` (one gene a line), `checkpoint` (a tokenizer.json or its folder). Without it a "
            "file of text is `geneformer` and anything else `checkpoint`."
        ),
    ] = None,
    gene_aliases: Aliases = None,
    binned: Annotated[
        bool, typer.Option(help="Of a checkpoint: values are tokens of bins, not continuous.")
    ] = False,
    depth_tokens: Annotated[
        bool,
        typer.Option(help="Of a checkpoint or list: cells begin with the depths [S] and [T]."),
    ] = False,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens that a cell may have, special ones included.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a tokenizer of a published vocabulary and save it; token ids stay as they are."""
    from omics.data.atomic_files import new_folder
    from omics.data.errors import UnknownNameError, UsageError, nearest
    from omics.data.matching.gene_tables import read_gene_list
    from omics.tokenizers import (
        GeneTokenizer,
        RankValueTokenizer,
        import_hf_tokenizer,
        save_tokenizer,
    )
    from omics.tokenizers.rank_value_tokenizer import PUBLISHED

    if kind is None:
        is_text = source.suffix.lower() in {".tsv", ".csv", ".txt"}
        kind = "geneformer" if is_text else "checkpoint"
    given = {"--gene-aliases": gene_aliases, "--binned": binned, "--depth-tokens": depth_tokens}
    unused = {"checkpoint": ["--gene-aliases"], "list": ["--binned"]}
    for option in unused.get(kind, ["--binned", "--depth-tokens"]):
        if given[option]:
            raise UsageError(f"{option} has no effect on a source of the kind {kind!r}.")
    made: CellTokenizer
    if kind in PUBLISHED:
        made = RankValueTokenizer.from_table(
            source, version=PUBLISHED[kind], max_length=max_length, aliases=gene_aliases
        )
    elif kind == "list":
        made = GeneTokenizer.from_list(
            read_gene_list(source),
            aliases=gene_aliases,
            depth_tokens=depth_tokens,
            max_length=max_length,
        )
    elif kind == "checkpoint":
        made = import_hf_tokenizer(
            source, binned=binned, depth_tokens=depth_tokens, max_length=max_length
        )
    else:
        known = [*PUBLISHED, "list", "checkpoint"]
        raise UnknownNameError(f"There is no kind {kind!r} of vocabulary.{nearest(kind, known)}")
    with new_folder(out, overwrite=overwrite) as folder:
        save_tokenizer(made, folder)
    say(f"Wrote a {made.kind} tokenizer of {len(made.vocabulary):,} tokens to {out}")


@contextlib.contextmanager
def _cells(path: Path) -> Iterator[CellStore | StoreCollection]:
    """Open a store, a collection of stores or a source of cells."""
    from omics.data.cell_source import open_cells
    from omics.data.storage.store_collection import is_collection, open_collection

    if is_collection(path):
        yield open_collection(path)
        return
    with open_cells(path) as store:
        yield store


def _tokenizer(
    name: str | None, table: Path | None, aliases: Path | None, cells: CellStore | StoreCollection
) -> CellTokenizer:
    from omics.data.errors import UsageError
    from omics.tokenizers import GeneTokenizer, RankValueTokenizer, load_tokenizer, reads_cells
    from omics.tokenizers.rank_value_tokenizer import PUBLISHED

    if name in PUBLISHED:
        if table is None:
            raise UsageError(
                f"--tokenizer {name} needs the published table of its genes: add --table FILE with "
                "the columns ensembl_id, symbol, token_id and median."
            )
        return RankValueTokenizer.from_table(table, version=PUBLISHED[name], aliases=aliases)
    if table is not None or aliases is not None:
        raise UsageError(
            "--table and --gene-aliases belong to --tokenizer geneformer or geneformer-v1; a saved "
            "tokenizer has its own."
        )
    if name is None:
        return GeneTokenizer.from_genes(cells.genes)
    loaded = load_tokenizer(Path(name))
    if not reads_cells(loaded):
        raise UsageError(f"{name} is a {loaded.kind!r} tokenizer; it cannot read cells.")
    return loaded


def _transforms(
    tokenizer: CellTokenizer, path: Path | None, target_sum: float | None
) -> list[Transform]:
    from omics.data.errors import UsageError
    from omics.data.transforms import LogNormalize
    from omics.tokenizers import GeneTokenizer
    from omics.tokenizers.transform_file import read_transforms

    if path is not None and target_sum is not None:
        raise UsageError(
            "--target-sum is the one of log_normalize; with --transforms say it there."
        )
    if not isinstance(tokenizer, GeneTokenizer):
        if target_sum is not None:
            raise UsageError("--target-sum has no effect here: ranks do not depend on it.")
        return [] if path is None else read_transforms(path)
    steps: list[Transform] = (
        [LogNormalize(target_sum=10_000.0 if target_sum is None else target_sum)]
        if path is None
        else read_transforms(path)
    )
    made = [name for step in steps if not step.training_only for name in step.fields_added()]
    for field in tokenizer.values:
        if field.source not in made:
            raise UsageError(
                f"The tokenizer reads the field {field.source!r} of cells, and "
                f"{', '.join(step.name for step in steps) or 'no transform'} does not make it. Give "
                "the transforms with --transforms FILE, such as BUNDLE/preprocessing.json."
            )
    return steps


def main() -> None:
    """Run the command."""
    run(app)
