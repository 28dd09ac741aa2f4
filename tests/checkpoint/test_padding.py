"""Classifiers whose padding token ends every input."""

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from tiny import stock_config
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerBase

from mrr_model.checkpoint.padding import without_trailing_padding
from mrr_model.compression import Plan
from mrr_model.inference.encode import PairEncoder
from mrr_model.modeling.batch import collate
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import InputTemplate


def ending_in(*pieces: str) -> InputTemplate:
    return InputTemplate(
        query=("{bos}", "{query}", "\n"), passage=("{passage}",), prompt=pieces, truncation="longest_first"
    )


@pytest.fixture
def tokenizer(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    """Its padding token is its end-of-text token."""
    own = copy.deepcopy(tokenizers["decoder"])
    own.pad_token = own.eos_token
    return own


@pytest.mark.parametrize(
    ("pieces", "left"),
    [
        (("{eos}",), ()),
        (("\n", "{eos}", "{eos}"), ("\n",)),
        (("Relevant?</s>",), ("Relevant?",)),
        (("{eos}", "Relevant?"), ("{eos}", "Relevant?")),
        (("Relevant?", "{bos}"), ("Relevant?", "{bos}")),
    ],
)
def test_what_ends_an_input_and_is_padding_is_left_out(
    tokenizer: PreTrainedTokenizerBase, pieces: tuple[str, ...], left: tuple[str, ...]
) -> None:
    assert tokenizer.eos_token == "</s>"
    assert without_trailing_padding(ending_in(*pieces), tokenizer, tokenizer.eos_token_id).prompt == left
    assert without_trailing_padding(ending_in(*pieces), tokenizer, None).prompt == pieces


def test_logits_are_those_of_a_stock_classifier_that_skips_its_padding(
    tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., MatryoshkaModel]
) -> None:
    template = without_trailing_padding(ending_in("{eos}"), tokenizer, tokenizer.eos_token_id)
    model = make_model("llama", own={"exits": (6,), "template": template})
    stock = LlamaForSequenceClassification(
        stock_config("llama", num_labels=1, pad_token_id=tokenizer.eos_token_id)
    ).eval()
    stock.model.load_state_dict(model.model.state_dict())
    stock.score.load_state_dict(model.heads["6"].linear.state_dict())
    texts = [("what is a panda", "A panda is a bear."), ("what is a panda", ""), ("who", "nobody " * 20)]
    ended = [PairEncoder(tokenizer, ending_in("{eos}")).encode([pair])[0].input_ids for pair in texts]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in ended)
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in ended], batch_first=True, padding_value=tokenizer.eos_token_id
    )
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(ids) for ids in ended])[:, None]
    with torch.inference_mode():
        expected = stock(input_ids=padded, attention_mask=mask.long()).logits
        pairs = PairEncoder(tokenizer, template).encode(texts)
        actual = model(collate(pairs, tokenizer.eos_token_id), Plan((6,)))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
