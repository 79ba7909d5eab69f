"""Vocabularies in the tokenizer.json of Hugging Face, as published checkpoints hold them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from omics.data import GeneTable
from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError, InputDataError, MissingPathError
from omics.tokenizers import import_hf_tokenizer, read_hf_tokenizer

SPECIALS = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {},
}
BERT = {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 3]}


def write(folder, tokens, *, specials=SPECIALS, processor=TEMPLATE, **changes):
    """Write a tokenizer.json as the library does."""
    value = {
        "version": "1.0",
        "added_tokens": [
            {"id": tokens.index(token), "content": token, "special": True} for token in specials
        ],
        "pre_tokenizer": None,
        "post_processor": processor,
        "model": {
            "type": "WordLevel",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "unk_token": "[UNK]",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(value | changes))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with ten bins whose genes end with the depth tokens."""
    write(tmp_path / "tokenizers/genes", [*SPECIALS, "CD3E", "CD19", "7SK", "[S]", "[T]"])
    write(tmp_path / "tokenizers/expressions", [*SPECIALS, *(str(n) for n in range(10))])
    return tmp_path


def test_ids_and_roles_are_those_of_the_file(checkpoint):
    vocabulary = read_hf_tokenizer(checkpoint / "tokenizers/genes")
    assert vocabulary.tokens == (*SPECIALS, "CD3E", "CD19", "7SK", "[S]", "[T]")
    roles = {role: vocabulary.id_of(role) for role in ("unk", "sep", "pad", "cls", "mask")}
    assert roles == {"unk": 0, "sep": 1, "pad": 2, "cls": 3, "mask": 4}
    assert vocabulary.other_specials == ("[S]", "[T]")
    assert read_hf_tokenizer(checkpoint / "tokenizers/genes/tokenizer.json") == vocabulary


def test_the_special_tokens_map_beside_the_file_names_roles(tmp_path):
    folder = write(tmp_path, ["<pad>", "start", "GENE", "extra"], specials=["<pad>"])
    names = {
        "cls_token": {"content": "start"},
        "mask_token": "<pad>",
        "additional_special_tokens": ["extra", "absent"],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    vocabulary = read_hf_tokenizer(folder)
    assert vocabulary.specials == {"cls": "start", "mask": "<pad>", "pad": "<pad>"}
    assert vocabulary.other_specials == ("extra",)
    assert vocabulary.names == ("GENE",)


def test_the_tokens_of_a_template_are_special_whatever_they_are_called(tmp_path):
    processor = {"type": "BertProcessing", "cls": ["begin", 1], "sep": ["end", 0]}
    folder = write(tmp_path, ["end", "begin", "GENE"], specials=[], processor=processor)
    vocabulary = read_hf_tokenizer(folder)
    assert vocabulary.specials == {"cls": "begin", "sep": "end"}
    tokenizer = import_hf_tokenizer(folder)
    assert (tokenizer.prepend, tokenizer.append_sep) == (("begin",), True)


def test_a_vocabulary_is_read_without_its_post_processor(tmp_path):
    folder = write(tmp_path, [*SPECIALS, "A"], processor={"type": "Sequence"})
    assert read_hf_tokenizer(folder).names == ("A",)


def test_added_tokens_may_stand_behind_the_vocabulary(tmp_path):
    folder = write(tmp_path, [*SPECIALS, "A"])
    value = json.loads((folder / "tokenizer.json").read_text())
    value["added_tokens"] += [{"id": 6, "content": "[S]", "special": False}]
    (folder / "tokenizer.json").write_text(json.dumps(value))
    assert read_hf_tokenizer(folder).tokens[6] == "[S]"


@pytest.mark.parametrize("processor", [TEMPLATE, BERT])
def test_cells_are_encoded_as_the_checkpoint_wants_them(checkpoint, processor):
    write(
        checkpoint / "tokenizers/genes",
        [*SPECIALS, "CD3E", "CD19", "7SK", "[S]", "[T]"],
        processor=processor,
    )
    tokenizer = import_hf_tokenizer(checkpoint, binned=True, max_length=9)
    bound = tokenizer.bind(GeneTable(["CD19", "ACTB", "CD3E"]))
    batch = CellBatch(
        indptr=np.array([0, 3]),
        genes=np.array([0, 1, 2], np.uint16),
        counts=np.ones(3, np.uint8),
        rows=np.array([0]),
        num_genes=3,
        fields={"bin": np.array([9, 1, 0], np.int32)},
    )
    tokens = bound.encode(batch)
    assert tokens.fields["genes"].tolist() == [3, 6, 5, 1]
    assert tokens.fields["expressions"].tolist() == [3, 14, 5, 1]
    continuous = import_hf_tokenizer(checkpoint / "tokenizers", depth_tokens=True)
    assert [spec.kind for spec in continuous.fields] == ["discrete", "continuous"]
    assert continuous.num_special == 4
    assert continuous.values[0].name == "expressions"


def test_one_file_without_a_template_gives_plain_cells(tmp_path):
    tokenizer = import_hf_tokenizer(write(tmp_path, [*SPECIALS, "A"], processor=None))
    assert tokenizer.prepend == ()
    assert not tokenizer.append_sep


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, InputDataError, "of the kind 'BPE'"),
        ({"model": None}, InputDataError, "of the kind None"),
        ({"model": {"type": "WordLevel"}}, InputDataError, "vocabulary of another form"),
        ({"model": {"type": "WordLevel", "vocab": {"A": "x"}}}, InputDataError, "the id 'x'"),
        ({"model": {"type": "WordLevel", "vocab": {"A": 0}}}, InputDataError, "gives the id 0 to"),
        (
            {"model": {"type": "WordLevel", "vocab": {"A": 9}}},
            InputDataError,
            "6 token ids that do not run from 0 to 5",
        ),
        ({"post_processor": {"type": "Sequence"}}, ConfigError, "of the kind 'Sequence'"),
        ({"post_processor": {"type": "TemplateProcessing"}}, InputDataError, "has another form"),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[MASK]"}}],
                }
            },
            InputDataError,
            r"ends cells with \[MASK\]",
        ),
    ],
)
def test_other_tokenizers_are_refused_by_what_they_are(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        import_hf_tokenizer(write(tmp_path, [*SPECIALS, "A"], **changes))


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "no JSON object")])
def test_a_damaged_file_is_refused(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputDataError, match=message):
        read_hf_tokenizer(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingPathError, match=r"There is no .*tokenizer\.json"):
        import_hf_tokenizer(tmp_path)
    write(tmp_path / "genes", [*SPECIALS, "A"])
    with pytest.raises(MissingPathError, match=r"no expressions/tokenizer\.json"):
        import_hf_tokenizer(tmp_path, binned=True)
