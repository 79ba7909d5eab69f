"""Reads the `tokenizer.json` of Hugging Face: gene vocabularies that others published.

- Plain JSON, read here: no library is needed and nothing is executed. Only the model `WordLevel`
  (a token is a name) is a vocabulary of genes; others are refused by name.
- Special tokens are those that the file says are added and special, those that
  `special_tokens_map.json` beside it names, and every other name in brackets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError, InputDataError, MissingPathError
from omics.tokenizers.gene_token_file import special_role
from omics.tokenizers.gene_tokenizer import GENES, GeneTokenizer
from omics.tokenizers.value_field import BIN, EXPRESSION, ValueField
from omics.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILE_NAME = "tokenizer.json"
MAP_NAME = "special_tokens_map.json"
EXPRESSIONS = "expressions"
MAX_FILE_BYTES = 256 * 2**20
_ROLE_OF_KEY = {
    "pad_token": "pad",
    "unk_token": "unk",
    "cls_token": "cls",
    "sep_token": "sep",
    "mask_token": "mask",
    "bos_token": "cls",
    "eos_token": "sep",
}


def read_hf_tokenizer(path: str | Path) -> Vocabulary:
    """Return the vocabulary of a `tokenizer.json`, with its ids.

    Args:
        path: the file, or its folder.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is not a tokenizer of whole names, or contradicts itself.
    """
    return _vocabulary(*_read(path))


def import_hf_tokenizer(
    folder: str | Path,
    *,
    binned: bool = False,
    depth_tokens: bool = False,
    max_length: int | None = None,
) -> GeneTokenizer:
    """Return the gene tokenizer of a published checkpoint.

    The special tokens around the genes of a cell are those of the file's template. The values of
    the field `expressions` are read from the field `expression` of a CellBatch, bins from `bin`.

    Args:
        folder: of the checkpoint: it holds `tokenizers/genes/tokenizer.json` and, for bins,
            `tokenizers/expressions/tokenizer.json`; the folder `tokenizers` itself, or one
            `tokenizer.json` of genes, does as well.
        binned: the values are tokens of bins, not continuous.
        depth_tokens: cells begin with `[S]` and `[T]` after their first tokens.
        max_length: tokens that a cell may have, special ones included; None for no limit.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: a file is not a tokenizer of whole names, or contradicts itself.
        ConfigError: the template or an option needs a token that the vocabulary lacks.
    """
    found = _folders(Path(folder))
    value, path = _read(found[GENES])
    vocabulary = _vocabulary(value, path)
    around = _template(value)
    if around is None:
        raise ConfigError(
            f"The post_processor of {path} is of the kind {value['post_processor'].get('type')!r}; "
            "TemplateProcessing and BertProcessing are what can be read."
        )
    front, back = around
    sep = vocabulary.specials.get("sep")
    if back not in ([], [sep]):
        raise InputDataError(
            f"The template of {path} ends cells with {', '.join(back)}; one token of the role 'sep' "
            f"(here {sep!r}) is what can be read."
        )
    field = ValueField(name=EXPRESSIONS, source=EXPRESSION)
    if binned:
        if EXPRESSIONS not in found:
            raise MissingPathError(
                f"{folder} has no {EXPRESSIONS}/{FILE_NAME}, which names the bins. Give the folder "
                "of the whole checkpoint, or read continuous values."
            )
        bins = read_hf_tokenizer(found[EXPRESSIONS])
        field = ValueField(name=EXPRESSIONS, source=BIN, bins=bins)
    return GeneTokenizer(
        vocabulary,
        values=[field],
        prepend=front,
        depth_tokens=depth_tokens,
        append_sep=bool(back),
        max_length=max_length,
    )


def _folders(folder: Path) -> dict[str, Path]:
    """Return where the vocabularies of the fields lie."""
    for parent in (folder / "tokenizers", folder):
        if (parent / GENES / FILE_NAME).is_file():
            there = [name for name in (GENES, EXPRESSIONS) if (parent / name / FILE_NAME).is_file()]
            return {name: parent / name for name in there}
    return {GENES: folder}


def _read(path: str | Path) -> tuple[dict[str, Any], Path]:
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    return _read_json(file), file


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MissingPathError(
            f"There is no {file}. Give a {FILE_NAME} of Hugging Face, or the folder of a checkpoint "
            "that holds it."
        )
    if file.stat().st_size > MAX_FILE_BYTES:
        raise InputDataError(
            f"{file} has {file.stat().st_size:,} bytes; a vocabulary has a few megabytes. Is it the "
            "right file?"
        )
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputDataError(f"{file} is not JSON ({error}). Fetch it again.") from None
    if not isinstance(value, dict):
        raise InputDataError(f"{file} holds no JSON object. Fetch it again.")
    return value


def _vocabulary(value: Mapping[str, Any], path: Path) -> Vocabulary:
    model: dict[str, Any] = value["model"] if isinstance(value.get("model"), dict) else {}
    kind = model.get("type")
    if kind != "WordLevel":
        raise InputDataError(
            f"{path} holds a tokenizer of the kind {kind!r}; a vocabulary of genes is 'WordLevel'. "
            "Tokenizers of sequences (BPE and others) are not read here."
        )
    token_of: dict[int, str] = {}
    added = value.get("added_tokens") or []
    try:
        pairs = [*model["vocab"].items(), *((each["content"], each["id"]) for each in added)]
        special = [each["content"] for each in added if each.get("special")]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputDataError(
            f"{path} has a vocabulary of another form ({error!r}). Fetch it again."
        ) from None
    for token, token_id in pairs:
        if (
            not isinstance(token, str)
            or isinstance(token_id, bool)
            or not isinstance(token_id, int)
        ):
            raise InputDataError(f"{path} gives {token!r} the id {token_id!r}. Fetch it again.")
        if token_of.setdefault(token_id, token) != token:
            raise InputDataError(
                f"{path} gives the id {token_id} to {token_of[token_id]!r} and to {token!r}."
            )
    if sorted(token_of) != list(range(len(token_of))):
        raise InputDataError(
            f"{path} has {len(token_of)} token ids that do not run from 0 to {len(token_of) - 1}."
        )
    roles, named = _named_specials(path.with_name(MAP_NAME))
    tokens = [token_of[token_id] for token_id in range(len(token_of))]
    there = set(tokens)
    specials = {role: token for role, token in roles.items() if token in there}
    special += [token for token in named if token in there]
    special += [token for token in tokens if special_role(token) is not None]
    front, back = _template(value) or ([], [])
    special += [token for token in (*front, *back) if token in there]
    for token in dict.fromkeys(special):
        role = special_role(token)
        if role and role not in specials:
            specials[role] = token
    # Whatever they are called, one token in front of a cell and one behind it have these roles.
    for role, around in (("cls", front), ("sep", back)):
        if len(around) == 1 and around[0] in there:
            specials.setdefault(role, around[0])
    others = [token for token in dict.fromkeys(special) if token not in specials.values()]
    return Vocabulary(tokens, specials=specials, other_specials=others)


def _named_specials(file: Path) -> tuple[dict[str, str], list[str]]:
    """Return role to token, and further tokens, of the file that names them; nothing without it."""
    if not file.is_file():
        return {}, []
    value = _read_json(file)
    roles: dict[str, str] = {}
    for key, role in _ROLE_OF_KEY.items():
        for token in _contents(value.get(key)):
            roles.setdefault(role, token)
    return roles, list(_contents(value.get("additional_special_tokens")))


def _contents(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _contents(value.get("content"))
    elif isinstance(value, list):
        for each in value:
            yield from _contents(each)


def _template(value: Mapping[str, Any]) -> tuple[list[str], list[str]] | None:
    """Return the special tokens before and behind a single sequence; None if that is not said."""
    processor = value.get("post_processor") or {}
    try:
        if not processor:
            return [], []
        if processor.get("type") in {"BertProcessing", "RobertaProcessing"}:
            return [processor["cls"][0]], [processor["sep"][0]]
        if processor.get("type") != "TemplateProcessing":
            return None
        pieces = [next(iter(piece.items())) for piece in processor["single"]]
        at = next(index for index, (kind, _) in enumerate(pieces) if kind == "Sequence")
        names = [str(piece["id"]) for _, piece in pieces]
        return names[:at], names[at + 1 :]
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:
        raise InputDataError(
            f"The post_processor of a {FILE_NAME} has another form ({error!r}). Fetch it again."
        ) from None
