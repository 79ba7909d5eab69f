"""The console command `omics-dna`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omics.data.command_line import make_app, print_json, progress, run, say
from omics.data.errors import ExistingPathError, UsageError

if TYPE_CHECKING:
    from omics.dna.fasta import Fasta
    from omics.dna.window_tables import Written
    from omics.dna.windows import Windows
    from omics.models import Bundle

app = make_app("omics-dna", "DNA sequences: windows of a FASTA file to tokens and vectors.")

UNTRAINED = (
    "The encoder is untrained (random weights, seed {seed}): its vectors are only a random "
    "projection of the windows. Give a trained one with --bundle."
)

FastaPath = Annotated[Path, typer.Argument(help="A FASTA file of DNA, not compressed.")]
Window = Annotated[int, typer.Option("--window", min=1, help="Letters of a window.")]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        min=1,
        show_default="the window",
        help="Letters from one window to the next; less than the window makes them overlap.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def embed(
    fasta: FastaPath,
    *,
    out: Annotated[Path, typer.Option("--out", help="The Parquet file of vectors to write.")],
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", help="The encoder: a bundle folder, or hf:owner/name."),
    ] = None,
    window: Window = 512,
    stride: Stride = None,
    kmer: Annotated[
        int | None,
        typer.Option(
            "--kmer", min=1, show_default="1", help="Letters of a token, without a bundle."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, show_default="0", help="Of the random weights, without a bundle."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Windows run at once.")
    ] = 64,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    save_bundle: Annotated[
        Path | None,
        typer.Option("--save-bundle", help="Keep the untrained encoder in this new folder."),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write one vector for every window of a FASTA file.

    Windows of nothing but N are left out. The columns of the Parquet file
    are sequence, start, end (from 0, end not included), n_fraction (the
    share of N) and vector. Without --bundle the encoder is small, seeded
    and UNTRAINED: its vectors are only a random projection.
    """
    from omics.data.atomic_files import require_free
    from omics.dna.fasta import Fasta
    from omics.dna.window_tables import sequence_tokenizer_of, write_vectors
    from omics.models.inference import choose_device

    started = time.monotonic()
    _check_options(bundle, seed=seed, save_bundle=save_bundle)
    require_free(out, overwrite=overwrite)
    with Fasta(fasta) as records:
        _refuse_same(fasta, out)
        encoder = _encoder(bundle, kmer=kmer, seed=seed)
        target = choose_device(device)
        tokenizer = sequence_tokenizer_of(encoder)
        windows = _plan(records, window=window, stride=stride, kmer=tokenizer.k)
        if not json:
            _say_plan(windows)
            if bundle is None:
                say(UNTRAINED.format(seed=seed or 0))
        with progress("embedding", len(windows), "windows") as advance:
            written = write_vectors(
                windows,
                encoder,
                out,
                batch_size=batch_size,
                device=target,
                overwrite=overwrite,
                on_progress=advance,
            )
    if save_bundle is not None:
        encoder.model.to("cpu")
        encoder.save(save_bundle)
    size = encoder.model.model_config.hidden_size
    facts: dict[str, Any] = {"dimensions": size, "trained": bundle is not None}
    if save_bundle is not None:
        facts["saved_bundle"] = str(save_bundle)
    if bundle is None:
        facts["warning"] = UNTRAINED.format(seed=seed or 0)
    _report(written, windows, facts=facts, json=json, started=started)
    if save_bundle is not None and not json:
        say(f"The encoder is in {save_bundle}; --bundle {save_bundle} gives the same vectors.")


@app.command()
def encode(
    fasta: FastaPath,
    *,
    out: Annotated[Path, typer.Option("--out", help="The Parquet file of tokens to write.")],
    window: Window = 512,
    stride: Stride = None,
    kmer: Annotated[int, typer.Option("--kmer", min=1, help="Letters of a token.")] = 1,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write the token ids of every window of a FASTA file.

    Windows of nothing but N are left out. The columns of the Parquet file
    are sequence, start, end (from 0, end not included) and input_ids, which
    begin with [CLS].
    """
    from omics.data.atomic_files import require_free
    from omics.dna.fasta import Fasta
    from omics.dna.window_tables import write_tokens
    from omics.tokenizers import SequenceTokenizer

    started = time.monotonic()
    require_free(out, overwrite=overwrite)
    tokenizer = SequenceTokenizer(k=kmer)
    with Fasta(fasta) as records:
        _refuse_same(fasta, out)
        windows = _plan(records, window=window, stride=stride, kmer=kmer)
        if not json:
            _say_plan(windows)
        with progress("encoding", len(windows), "windows") as advance:
            written = write_tokens(
                windows, tokenizer, out, overwrite=overwrite, on_progress=advance
            )
    facts = {"vocabulary_size": tokenizer.vocabulary_size}
    _report(written, windows, facts=facts, json=json, started=started)


def _check_options(bundle: str | None, *, seed: int | None, save_bundle: Path | None) -> None:
    if bundle is not None and seed is not None:
        raise UsageError("--seed is for the weights of a new encoder, and --bundle has its own.")
    if bundle is not None and save_bundle is not None:
        raise UsageError("--save-bundle keeps a new encoder, and --bundle is one already.")
    if save_bundle is not None and save_bundle.exists():
        raise ExistingPathError(
            f"{save_bundle} exists already, and a bundle is written once. Choose another folder."
        )


def _refuse_same(fasta: Path, out: Path) -> None:
    if out.exists() and out.samefile(fasta):
        raise UsageError(f"--out {out} is the FASTA file itself; choose another path.")


def _encoder(bundle: str | None, *, kmer: int | None, seed: int | None) -> Bundle:
    from omics.dna.window_tables import sequence_tokenizer_of, untrained_bundle

    if bundle is None:
        return untrained_bundle(kmer=kmer or 1, seed=seed or 0)
    from omics.models import Bundle

    loaded = Bundle.load(bundle)
    k = sequence_tokenizer_of(loaded).k
    if kmer is not None and kmer != k:
        raise UsageError(
            f"--kmer {kmer} does not fit the bundle {bundle}, whose tokens have {k} "
            f"{'letter' if k == 1 else 'letters'}. Leave --kmer out."
        )
    return loaded


def _plan(fasta: Fasta, *, window: int, stride: int | None, kmer: int) -> Windows:
    from omics.dna.windows import Windows

    return Windows(fasta, window=window, stride=stride, min_length=kmer)


def _say_plan(windows: Windows) -> None:
    fasta = windows.fasta
    if fasta.index_note is not None:
        say(f"note: {fasta.index_note}")
    records = "record" if len(fasta) == 1 else "records"
    say(
        f"{fasta.path}: {len(fasta):,} {records}, {int(fasta.lengths.sum()):,} letters, "
        f"{len(windows):,} windows of {windows.window} every {windows.stride}"
    )


def _report(
    written: Written, windows: Windows, *, facts: dict[str, Any], json: bool, started: float
) -> None:
    seconds = time.monotonic() - started
    if json:
        print_json(
            {
                "out": str(written.path),
                "windows": written.num_windows,
                "all_n_windows": written.num_all_n,
                "too_short_windows": written.num_too_short,
                "index_note": windows.fasta.index_note,
                "seconds": round(seconds, 3),
                **written.metadata,
                **facts,
            }
        )
        return
    left_out = f"{written.num_all_n:,} of nothing but N"
    if written.num_too_short:
        left_out += f" and {written.num_too_short:,} shorter than a token"
    size = f" of {facts['dimensions']} values" if "dimensions" in facts else ""
    say(
        f"Wrote {written.num_windows:,} windows{size} to {written.path} in {seconds:.1f} s; "
        f"left out {left_out}."
    )


def main() -> None:
    """Run the command."""
    run(app)
