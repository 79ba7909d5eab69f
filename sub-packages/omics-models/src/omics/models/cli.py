"""The console command `omics-models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from omics.data.command_line import make_app, print_json, run, say

app = make_app("omics-models", "Look into models: what a bundle holds and whether it is whole.")


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


def _listed(items: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in items.items())


def main() -> None:
    """Run the command."""
    run(app)
