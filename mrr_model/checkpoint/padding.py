"""The token that a causal sequence classifier of transformers reads: the last one that is not its padding token."""

from transformers import PreTrainedTokenizerBase

from mrr_model.template import SPECIAL_TOKENS, InputTemplate


def without_trailing_padding(
    template: InputTemplate, tokenizer: PreTrainedTokenizerBase, pad_token_id: int | None
) -> InputTemplate:
    """Leave out what ends every input and is the padding token, too.

    transformers' `*ForSequenceClassification` of causal models finds the pooled token by its id: the last one that
    differs from `pad_token_id`. Where the padding token is, say, the end-of-text token, and the tokenizer ends every
    input with it, the token before it is read. This package reads the last token, whatever its id. As no token sees
    those after it, an input without its end has the same logit.

    Args:
        template: A template for a classifier that pools the last token.
        tokenizer: The model's tokenizer.
        pad_token_id: The model's, of its configuration; None if it has none, and its last token is read.

    Returns:
        The template that ends with the token that is read.
    """
    pieces = list(template.prompt)
    padding = None if pad_token_id is None else str(tokenizer.convert_ids_to_tokens(pad_token_id))
    while padding is not None and pieces:
        last = pieces.pop()
        if last in SPECIAL_TOKENS:
            if getattr(tokenizer, f"{last[1:-1]}_token_id") == pad_token_id:
                continue
        elif last.endswith(padding):
            pieces += [last.removesuffix(padding)] if last != padding else []
            continue
        pieces.append(last)
        break
    return template.model_copy(update={"prompt": tuple(pieces)})
