"""The model card of a bundle in Markdown: what it is, how cells reach it, what it gives, its origin.

- Everything in it is read from the bundle. Names that came with a checkpoint or with data are shown
  as text: nothing in them is markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omics.models.readout import Readout
from omics.tokenizers import GeneTokenizer, RankValueTokenizer, reads_cells

if TYPE_CHECKING:
    from omics.models.bundle import Bundle
    from omics.models.model_config import ModelConfig

IS, GIVES, ORIGIN = "What it is", "What it gives", "Where it comes from"
_MOST_CLASSES = 20
_MOST_TEXT = 300
_SHOWN_PARAMETERS = 4
_ESCAPES = {"\\": "\\\\", "|": "\\|", "`": "\\`", "*": "\\*", "_": "\\_", "[": "\\[", "<": "&lt;"}
_TABLE = ["| | |", "|---|---|"]


def model_card(bundle: Bundle, place: str) -> str:
    """Return the model card of a bundle.

    Args:
        bundle: saved or not.
        place: how commands name it.
    """
    published = bundle.provenance.get("published")
    title = published.get("name") if isinstance(published, Mapping) else None
    lines = [f"# {_plain(title or (bundle.path.name if bundle.path else 'A model'))}", ""]
    for heading, facts in card_facts(bundle).items():
        if heading == GIVES:
            lines += ["## From counts to tokens", "", *_input_lines(bundle), ""]
        lines += [f"## {heading}", "", *_TABLE, *_rows(facts), ""]
    return "\n".join([*lines, *_usage(bundle, place)])


def card_facts(bundle: Bundle) -> dict[str, dict[str, object]]:
    """Return what a bundle says of itself, `{heading: {name: value}}`.

    Values come from files: whoever shows them escapes them.

    Args:
        bundle: saved or not.
    """
    config = bundle.model.model_config
    return {
        IS: _sizes(bundle, config),
        GIVES: _outputs(bundle, config),
        ORIGIN: _origin(bundle.provenance),
    }


def _sizes(bundle: Bundle, config: ModelConfig) -> dict[str, object]:
    parameters = sum(each.numel() for each in bundle.model.parameters())
    norm = f"{config.norm}-norm ({config.norm_kind})"
    feed = f"{config.activation}{', gated' if config.glu else ''}"
    positions = {
        "none": "none: a cell is a set of tokens",
        "learned": f"learned, {config.max_positions:,} of them",
        "rope": f"rotary, base {config.rope_theta:,.0f}",
    }
    facts: dict[str, object] = {
        "parameters": f"{parameters:,}",
        "blocks": f"{config.num_layers} of width {config.hidden_size}, {config.num_heads} heads",
        "feed-forward": f"{config.intermediate_size} wide, {feed}",
        "normalisation": norm,
        "attention": config.attention,
        "positions": positions[config.positions],
    }
    if config.window is not None:
        facts["window"] = f"{config.window} tokens; every {config.global_every}th block sees all"
    return facts


def _input_lines(bundle: Bundle) -> list[str]:
    lines = ["Cells are raw counts. In this order, and stored with the weights:", ""]
    lines += [f"1. {_step(each.to_dict())}" for each in bundle.transforms if not each.training_only]
    lines += [f"1. {_tokens(bundle)}", ""]
    fields = [
        f"| {_plain(spec.name)} | {spec.kind} | {spec.vocabulary_size:,} | "
        f"{_plain(bundle.model.model_config.field(spec.name).encoder)} |"
        for spec in bundle.tokenizer.fields
    ]
    return [*lines, "| field | kind | ids | encoder |", "|---|---|---|---|", *fields]


def _tokens(bundle: Bundle) -> str:
    tokenizer = bundle.tokenizer
    text = f"tokenizer of the kind {_code(tokenizer.kind)}"
    if reads_cells(tokenizer):
        text += f": {len(tokenizer.vocabulary.names):,} genes"
    if isinstance(tokenizer, GeneTokenizer):
        front = [*tokenizer.prepend, *(("[S]", "[T]") if tokenizer.depth_tokens else ())]
        text += f"; a cell begins with {_plain(' '.join(front)) or 'nothing'}"
    if isinstance(tokenizer, GeneTokenizer | RankValueTokenizer):
        text += f"; at most {tokenizer.max_length or 'any number of'} tokens"
    return text


def _step(record: Mapping[str, Any]) -> str:
    parameters = {key: value for key, value in record.items() if key != "name"}
    shown = ", ".join(
        f"{_plain(key)} {_short(value)}"
        for key, value in list(parameters.items())[:_SHOWN_PARAMETERS]
    )
    return f"{_code(record['name'])}{f': {shown}' if shown else ''}"


def _short(value: object) -> str:
    if isinstance(value, list | dict):
        return f"({len(value):,} entries)"
    return _plain(value)


def _outputs(bundle: Bundle, config: ModelConfig) -> dict[str, object]:
    layer = config.embedding_layer
    where = "the final hidden states" if layer is None else f"the output of block {layer}"
    pooled = config.embedding_pooling or config.pooling
    facts: dict[str, object] = {
        "embedding of a cell": f"{Readout.of(config).width} numbers: {pooled} of {where}"
    }
    for head in config.field_heads:
        facts[f"{head.field}, {head.kind}"] = "for every token that is asked for"
    for decoder in config.wced:
        facts[f"{decoder.field}, whole cell"] = f"{', '.join(decoder.outputs)} of every gene"
    for name, classes in bundle.labels.items():
        facts[f"label {name}"] = _classes(classes)
    return facts


def _classes(classes: Sequence[str]) -> str:
    shown = ", ".join(str(each) for each in classes[:_MOST_CLASSES])
    more = f" and {len(classes) - _MOST_CLASSES:,} more" if len(classes) > _MOST_CLASSES else ""
    return f"{len(classes):,}: {shown}{more}"


def _origin(provenance: Mapping[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {}
    for key, value in provenance.items():
        if not isinstance(value, Mapping):
            facts[str(key)] = value
            continue
        # What is needed to go back to a published layout is not for people.
        skipped = ("settings", "layout", "extras", "left_out", "prefix")
        facts.update({f"{key}: {k}": v for k, v in value.items() if k not in skipped})
    return facts or {"origin": "not recorded"}


def _usage(bundle: Bundle, place: str) -> list[str]:
    if not reads_cells(bundle.tokenizer):
        return ["## How to use it", "", "It reads sequences: see the guide to DNA.", ""]
    return [
        "## How to use it",
        "",
        "```bash",
        f"omics-models info {place}",
        f"omics-eval embed cells.h5ad --model {place} --out embedded.h5ad",
        "```",
        "",
        "```python",
        "from omics.data import open_store",
        "from omics.models import Bundle, embed_cells",
        "",
        f"bundle = Bundle.load({place!r})",
        'vectors = embed_cells(bundle, open_store("cells.store"))',
        "```",
        "",
    ]


def _rows(facts: Mapping[str, object]) -> list[str]:
    return [f"| {_plain(key)} | {_plain(value)} |" for key, value in facts.items()]


def _code(value: object) -> str:
    """Return a name as code, in which nothing but the mark that ends it is special."""
    return f"`{str(value).replace('`', '')}`"


def _plain(value: object) -> str:
    """Return a value as one line of text without markup."""
    text = " ".join(str(value).split())
    text = text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 3]}..."
    return "".join(_ESCAPES.get(letter, letter) for letter in text)
