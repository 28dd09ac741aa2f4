"""The tokenizer of a checkpoint folder, and whether it is the one that the model was trained with."""

from pathlib import Path
from typing import cast

from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mrr_model.files.damage import read_json, reading
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import SPECIAL_TOKENS

FAST = "tokenizer.json"
VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tekken.json",
)
"""What a tokenizer is made of that has no tokenizer.json. Without any of them transformers makes up an empty one."""
OWN = "Copy the model's own tokenizer there."
OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, by its files alone: a tokenizer.json is read without asking what class the config
    names.

    Raises ``FileNotFoundError`` for a folder without one, ``ValueError`` that names a file that cannot be read.
    """
    for name in OBJECTS:
        if (folder / name).is_file():
            read_json(folder / name)
    file = folder / FAST
    if not file.is_file():
        if not any((folder / name).is_file() for name in VOCABULARIES):
            raise FileNotFoundError(
                f"{folder} holds no tokenizer: neither {FAST} nor a vocabulary ({', '.join(VOCABULARIES)}). Copy the "
                "tokenizer's files there."
            )
        with reading(f"the tokenizer in {folder}"):
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    try:
        with reading(folder / OBJECTS[0] if (folder / OBJECTS[0]).is_file() else file):
            return cast(PreTrainedTokenizerBase, PreTrainedTokenizerFast.from_pretrained(folder))
    except ValueError:
        with reading(file):
            Tokenizer.from_file(str(file))  # raises where that file alone is at fault
        raise


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: MatryoshkaModel, folder: Path) -> None:
    """Raise ``ValueError`` for a tokenizer that cannot be this model's: without words, with ids that the embeddings
    lack, or without a special token that the input template needs.
    """
    file = folder / FAST if (folder / FAST).is_file() else folder
    vocabulary = tokenizer.get_vocab()
    rows = cast(Tensor, model.model.get_input_embeddings().weight).shape[0]
    if len(vocabulary) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(f"{file} holds no vocabulary, so that every word is unknown. {OWN}")
    last = max(vocabulary.values())
    if last >= rows:
        raise ValueError(f"{file} gives ids up to {last}, and the model's embeddings have {rows} rows. {OWN}")
    template = model.matryoshka.template
    for piece in (*template.query, *template.passage, *template.prompt):
        if piece in SPECIAL_TOKENS and getattr(tokenizer, f"{piece[1:-1]}_token_id", None) is None:
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: the input template needs the special token {piece}, which the "
                f"tokenizer does not define. Define {piece[1:-1]}_token there."
            )
