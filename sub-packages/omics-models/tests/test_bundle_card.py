"""The model card of a bundle: what it says, and that nothing in it becomes markup."""

from __future__ import annotations

from ragged_tokens import heads, small_model
from test_bundle import make_bundle

from omics.models import Bundle, model_card
from omics.tokenizers import SequenceTokenizer


def test_a_card_says_what_a_bundle_holds(tmp_path):
    bundle = make_bundle().save(tmp_path / "bundle")
    text = model_card(bundle, "lab/bundle")
    parameters = sum(each.numel() for each in bundle.model.parameters())
    assert text.startswith("# bundle\n")
    for line in (
        f"| parameters | {parameters:,} |",
        "| blocks | 2 of width 32, 2 heads |",
        "1. `log_normalize`: target\\_sum 1000.0, field\\_name expression, added\\_total 0.0",
        "1. `top_genes`: max\\_genes 30",
        "| expression | continuous | 5 | mlp |",
        "| embedding of a cell | 32 numbers: mean of the final hidden states |",
        "| label cell.type | 3: b cell, t cell, nk |",
        "| expression, whole cell | is\\_zero\\_bce, mse of every gene |",
        "| seed | 3 |",
        "omics-eval embed cells.h5ad --model lab/bundle --out embedded.h5ad",
    ):
        assert line in text, line


def test_names_that_came_with_a_checkpoint_are_text():
    evil = ["<script>alert(1)</script>", "a | b\n# heading", "`code` [link](http://x)", "*bold*"]
    bundle = Bundle(
        model=small_model(labels=(*heads()["labels"],)),
        tokenizer=make_bundle().tokenizer,
        labels={"cell.type": evil[:3]},
        provenance={
            "published": {"name": evil[3], "settings": {"secret": "not shown"}},
            "x": "y" * 999,
        },
    )
    text = model_card(bundle, "here")
    assert text.startswith("# \\*bold\\*\n")
    assert "<" not in text
    assert "&lt;script>" in text
    assert "a \\| b # heading, \\`code\\` \\[link](http://x)" in text
    assert "not shown" not in text
    assert max(len(line) for line in text.splitlines()) < 400


def test_a_long_list_of_classes_is_counted_and_cut():
    many = [f"class {n}" for n in range(50)]
    head = heads()["labels"][0]
    import dataclasses

    bundle = Bundle(
        model=small_model(labels=(dataclasses.replace(head, num_classes=50),)),
        tokenizer=make_bundle().tokenizer,
        labels={head.name: many},
    )
    text = model_card(bundle, "here")
    assert "| label cell.type | 50: class 0, " in text
    assert "class 19 and 30 more |" in text
    assert "| origin | not recorded |" in text


def test_a_model_of_sequences_has_a_card_too():
    from omics.models.model_config import FieldInput

    tokenizer = SequenceTokenizer()
    size = tokenizer.fields[0].vocabulary_size
    field = FieldInput(name="sequence", encoder="embedding", vocabulary_size=size)
    model = small_model(fields=(field,), positions="rope", window=4, activation="silu", glu=True)
    text = model_card(Bundle(model=model, tokenizer=tokenizer), "here")
    assert "| positions | rotary, base 10,000 |" in text
    assert "| window | 4 tokens; every 3th block sees all |" in text
    assert "| feed-forward | 48 wide, silu, gated |" in text
    assert "It reads sequences" in text
