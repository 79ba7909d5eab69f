"""Stock encoders of transformers on flat batches: the numbers of a padded batch."""

from __future__ import annotations

import pytest
import torch
import transformers

from omics.data.errors import UsageError
from omics.models import register_attention

LENGTHS = [5, 1, 9]


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_attention()
    register_attention()


def _bert(implementation, **changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(
        vocab_size=30,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attn_implementation=implementation,
        **{"attention_probs_dropout_prob": 0.0, **sizes, **changes},
    )
    torch.manual_seed(0)
    return transformers.BertModel(config, add_pooling_layer=False).train()


def _cells():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 30, (n,), generator=generator) for n in LENGTHS]


def _flat(cells):
    collate = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    batch = dict(collate([{"input_ids": cell} for cell in cells]))
    del batch["labels"]
    return batch


def test_a_flat_batch_has_hidden_states_and_gradients_of_a_padded_one():
    cells, stock, ours = _cells(), _bert("eager"), _bert("omics")
    ids = torch.nn.utils.rnn.pad_sequence(cells, batch_first=True)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    padded = stock(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    flat = ours(**_flat(cells)).last_hidden_state[0]
    torch.testing.assert_close(flat, padded, atol=1e-5, rtol=1e-5)
    padded.square().sum().backward()
    flat.square().sum().backward()
    for one, other in zip(stock.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-4)


def test_rows_of_equal_length_need_no_offsets():
    ids = torch.stack([torch.arange(1, 8), torch.arange(8, 15)])
    expected = _bert("eager")(input_ids=ids).last_hidden_state
    torch.testing.assert_close(_bert("omics")(input_ids=ids).last_hidden_state, expected)


def _modernbert(implementation):
    config = transformers.ModernBertConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        local_attention=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    return transformers.ModernBertModel(config).eval()


def test_windows_reach_as_far_as_theirs():
    ids = torch.randint(3, 30, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = _modernbert("eager")(input_ids=ids).last_hidden_state
    found = _modernbert("omics")(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_offsets_that_are_filled_again_are_read_again():
    model, first, second = _bert("omics").eval(), [4, 7], [6, 5]
    batches = [_flat([torch.arange(1, n + 1) for n in lengths]) for lengths in (first, second)]
    expected = model(**batches[1]).last_hidden_state
    model(**batches[0])
    offsets = batches[0]["cu_seq_lens_q"].copy_(batches[1]["cu_seq_lens_q"])
    found = model(**{**batches[1], "cu_seq_lens_q": offsets}).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_padding_is_refused():
    ids = torch.ones(2, 4, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with pytest.raises(UsageError, match="takes batches without padding: flatten cells"):
        _bert("omics")(input_ids=ids, attention_mask=mask)


def test_dropped_weights_are_refused_in_training_and_not_in_evaluation():
    model = _bert("omics", attention_probs_dropout_prob=0.1)
    with pytest.raises(UsageError, match="drops 10% of them in training"):
        model(**_flat(_cells()))
    model.eval()(**_flat(_cells()))


def test_decoders_are_refused():
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        attn_implementation="omics",
    )
    with pytest.raises(UsageError, match="is for encoders"):
        transformers.LlamaModel(config)(input_ids=torch.ones(1, 4, dtype=torch.long))
