"""The tokenizer of a checkpoint folder, and whether it is the one that the model was trained with."""

from pathlib import Path
from typing import cast

from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_sentencepiece_available

from mrr_model.files.damage import AGAIN, read_json, reading
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
"""Vocabularies of tokenizers without a tokenizer.json. If all are missing, transformers makes an empty one."""
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model")
COPY = "Copy the model's own tokenizer there."
JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer from its files alone: a tokenizer.json is read whatever class the config names.

    Raises:
        FileNotFoundError: If the folder has no tokenizer.
        ValueError: If a file cannot be read; names the file.
    """
    _check_files(folder)
    file = folder / FAST
    if not file.is_file():
        with reading(f"the tokenizer in {folder}"):
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    try:
        with reading(folder / JSON_FILES[0] if (folder / JSON_FILES[0]).is_file() else file):
            return cast(PreTrainedTokenizerBase, PreTrainedTokenizerFast.from_pretrained(folder))
    except ValueError:
        with reading(file):
            Tokenizer.from_file(str(file))  # raises if that file alone is at fault
        raise


def _check_files(folder: Path) -> None:
    """Check that a folder holds a tokenizer, and that its JSON files can be read."""
    for name in JSON_FILES:
        fields = read_json(folder / name) if (folder / name).is_file() else {}
        longest = fields.get("model_max_length", 0)
        if isinstance(longest, bool) or not isinstance(longest, int | float | None):
            raise ValueError(f"{folder / name}: model_max_length must be a number, got {longest!r}. {AGAIN}")
    if not any((folder / name).is_file() for name in (FAST, *VOCABULARIES)):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: neither {FAST} nor a vocabulary ({', '.join(VOCABULARIES)}). Copy the "
            "tokenizer's files there."
        )
    pieces = [name for name in SENTENCEPIECE if (folder / name).is_file()]
    if pieces and not (folder / FAST).is_file() and not is_sentencepiece_available():
        raise ValueError(
            f"{folder / pieces[0]} is read by the package sentencepiece, which is not installed: pip install "
            f"sentencepiece. A {FAST} beside it needs no package."
        )


def load_stock_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a stock model's tokenizer as transformers does, by the class that its files name.

    From a tokenizer.json transformers takes the vocabulary alone for many classes, and rebuilds the rest. If the class
    is remote code, the file is read as it is.

    Raises:
        FileNotFoundError: As `load_tokenizer`.
        ValueError: As `load_tokenizer`.
    """
    _check_files(folder)
    config = folder / JSON_FILES[0]
    if config.is_file() and "auto_map" in read_json(config):
        return load_tokenizer(folder)
    with reading(f"the tokenizer in {folder}"):
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: MatryoshkaModel, folder: Path) -> None:
    """Check that a tokenizer can be this model's.

    Raises:
        ValueError: If it has no words, ids or token types beyond the embeddings, or lacks a special token of the input
            template.
    """
    file = folder / FAST if (folder / FAST).is_file() else folder
    vocabulary = tokenizer.get_vocab()
    rows = cast(Tensor, model.model.get_input_embeddings().weight).shape[0]
    if len(vocabulary) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(f"{file} holds no vocabulary, so that every word is unknown. {COPY}")
    last = max(vocabulary.values())
    if last >= rows:
        raise ValueError(f"{file} gives ids up to {last}, but the model's embeddings have {rows} rows. {COPY}")
    template = model.matryoshka.template
    types, last_type = getattr(model.config, "type_vocab_size", 0), max(template.token_types or (0,))
    if types and last_type >= types:  # 0: the model uses none
        raise ValueError(
            f"{folder / 'config.json'}: type_vocab_size is {types}, but the input template has the token type "
            f"{last_type}. Copy the model's own config.json and tokenizer there, or give a template with others."
        )
    for piece in (*template.query, *template.passage, *template.prompt):
        if piece in SPECIAL_TOKENS and getattr(tokenizer, f"{piece[1:-1]}_token_id", None) is None:
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: the input template needs the special token {piece}, which the "
                f"tokenizer does not define. Define {piece[1:-1]}_token there."
            )
