"""Tiny random models of every family, tokenizers for them, batches and checkpoints: what the tests share.

Nothing here needs a network or a GPU. Each factory builds a new object, which a test may change; session fixtures
(``tokenizers``, ``saved_checkpoint``) are shared and must be left as they are.
"""

import json
import os
import random
import signal
import string
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from reference import REFERENCE
from tiny import TINY, stock_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Whitespace
from tokenizers.processors import BertProcessing
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.calibration.maps import CalibratedSetting, Calibration, PlattMap
from mrr_model.checkpoint import Checkpoint
from mrr_model.data.groups import Group, write_groups
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.compensation import Adapter, LowRank
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile, ProfilePoint

FIRST_ID = 5
"""Random ids start here: no special tokens, and no padding id, by which XLM-RoBERTa counts its positions."""

ModelFactory = Callable[..., MatryoshkaModel]


def build_model(family: str, *, seed: int = 0, own: Mapping[str, Any] | None = None, **changes: Any) -> MatryoshkaModel:
    """A model of ``family`` in evaluation mode; ``own`` changes MatryoshkaConfig, ``changes`` the stock configuration.

    Norms and biases get noise too: as transformers initialises them (ones, zeros), leaving one out would not show.
    """
    config = stock_config(family, **changes)
    layers = config.num_hidden_layers
    fields: dict[str, Any] = {
        "exits": tuple(range(1, layers + 1)),
        "merge_layers": tuple(range(1, layers)),
        "default_merge_layer": 1,
        "template": TINY[family].template,
        **TINY[family].own,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MatryoshkaModel.from_config(config, MatryoshkaConfig(**{**fields, **(own or {})}))
        with torch.no_grad():
            for parameter in model.model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def random_pairs(spans: Sequence[tuple[int, int, int]], *, seed: int = 0, vocab_size: int = 128) -> list[EncodedPair]:
    """Random ids for pairs whose (query, passage, prompt) spans have those lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        EncodedPair(torch.randint(FIRST_ID, vocab_size, (sum(lengths),), generator=generator).tolist(), *lengths)
        for lengths in spans
    ]


def random_adapter(model: MatryoshkaModel, *, seed: int = 0, rank: int = 2) -> dict[str, LowRank]:
    """A delta for every linear module of the blocks and the heads, large enough to move logits."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            outputs, inputs = module.weight.shape
            a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
            adapter[name] = LowRank(0.1 * a, 0.1 * b, 0.5 + seed)
    return adapter


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level BPE of 1024 tokens that the reference data came with."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(REFERENCE / "mistral" / "model")
    return tokenizer


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of letters, digits, punctuation and a few words."""
    letters = string.ascii_lowercase + string.digits
    pieces = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [*"?.,!()-:'", "the", "what", "panda", "is", "##ing"]
    backend = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer()
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def build_checkpoint(family: str, *, adapters: bool = True, seed: int = 0, **changes: Any) -> Checkpoint:
    """A tiny checkpoint with a tokenizer and, by default, a vertical and two horizontal adapters."""
    model = build_model(family, seed=seed, **changes)
    names = ("vertical", "horizontal_1_2", "horizontal_1_4") if adapters else ()
    deltas: dict[str, Adapter] = {name: random_adapter(model, seed=index) for index, name in enumerate(names)}
    tokenizer = decoder_tokenizer() if "{bos}" in TINY[family].template.query else encoder_tokenizer()
    return Checkpoint(model, tokenizer, deltas)


def write_beir(
    folder: Path,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    candidates: Mapping[str, Sequence[str]] | None = None,
    split: str = "test",
) -> Path:
    """A folder in BEIR's form; with candidates, if they are given."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        rows = [json.dumps({"_id": identifier, "text": text}) + "\n" for identifier, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    judged = [f"{query}\t{document}\t{grade}\n" for query in qrels for document, grade in qrels[query].items()]
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / f"{split}.tsv").write_text(header + "".join(judged), encoding="utf-8")
    if candidates is not None:
        (folder / "candidates").mkdir(exist_ok=True)
        run = [
            f"{query} Q0 {document} {rank} {-rank} first\n"
            for query, documents in candidates.items()
            for rank, document in enumerate(documents, 1)
        ]
        (folder / "candidates" / f"{split}.run").write_text("".join(run), encoding="utf-8")
    return folder


def toy_collection(folder: Path, *, queries: int = 19, seed: int = 0) -> Path:
    """A BEIR folder of three chunks of queries with six candidates each, two of them the same text. The last query has
    no candidate, the first no relevant document.
    """
    drawn = random.Random(seed)
    words = ["the", "what", "panda", "is", "a", "zoo", "in", "bear", "eats", "bamboo", "9"]
    corpus = {f"d{number:02}": " ".join(drawn.choices(words, k=drawn.randint(1, 25))) for number in range(40)}
    corpus["same"] = corpus["d00"]
    names = [f"q{number}" for number in range(queries)]
    candidates = {query: ["d00", *drawn.sample(sorted(corpus)[1:-1], 4), "same"] for query in names[:-1]}
    qrels = {query: {documents[1]: 1, documents[drawn.randrange(6)]: 2} for query, documents in candidates.items()}
    qrels |= {names[-1]: {"d00": 1}, names[0]: {"d00": 0}}
    texts = {query: " ".join(drawn.choices(words, k=drawn.randint(2, 9))) for query in names}
    return write_beir(folder, texts, corpus, {query: qrels[query] for query in names}, candidates)


FACTS = {
    "what do bees make?": "Bees make honey from nectar.",
    "who wrote Faust?": "Goethe is the author of Faust.",
    "what is the capital of France?": "Paris is the capital of France.",
    "how do plants make food?": "Plants make food by photosynthesis.",
    "when did the war end?": "The war ended in 1945.",
    "how tall is the Eiffel tower?": "The Eiffel tower is 330 metres tall.",
    "what do pandas eat?": "Pandas eat bamboo.",
    "where do penguins live?": "Penguins live in Antarctica.",
}
"""Questions whose answers the shipped model finds."""


WORDS = ("red", "blue", "green", "cat", "dog", "bird", "runs", "sleeps", "sings", "the", "a")
"""The language of the toy rows that training runs learn."""


def word_tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Yes", "No", *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    inputs = ["input_ids", "attention_mask"]
    if "cls_token" in tokens:
        backend.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        inputs.append("token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_input_names=inputs, **tokens
    )


def toy_groups() -> Iterator[Group]:
    """The passage with the cat is the answer; every other row has a teacher that says so, every fifth no label."""
    for row in range(48):
        colour, verb = WORDS[row % 5 % 3], WORDS[6 + row % 4 % 3]
        texts = [f"the {colour} {animal} {verb}" if row % 3 else f"{animal} the {verb} a" for animal in WORDS[3:6]]
        answer, negatives = (texts[0],), (*texts[1:], f"a {verb} {colour}")
        if row % 10 == 1:
            yield Group(f"a {verb}", (), (*answer, *negatives), (), (0.9, 0.1, 0.1, 0.0))
        elif row % 2:
            yield Group(f"a {verb}", answer, negatives, (0.9,), (0.1, 0.1, 0.0))
        else:
            yield Group(f"a {verb}", answer, negatives)


@pytest.fixture(scope="session")
def stock_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock BERT of four layers over the toy rows' words."""
    folder = tmp_path_factory.mktemp("stock") / "bert"
    config = stock_config("bert", vocab_size=20, num_hidden_layers=4, initializer_range=0.02, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    word_tokenizer(cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stock_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock Llama of four layers over the toy rows' words."""
    folder = tmp_path_factory.mktemp("stock") / "llama"
    config = stock_config("llama", vocab_size=20, num_hidden_layers=4, initializer_range=0.02)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer(bos_token="[CLS]", eos_token="[SEP]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_rows() -> list[Group]:
    """What :func:`toy_groups` gives."""
    return list(toy_groups())


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy rows as JSON lines."""
    file = tmp_path_factory.mktemp("rows") / "toy.jsonl.gz"
    write_groups(file, toy_groups())
    return file


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small run fastest on one thread, above all beside other processes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the reference checkpoints; see fixtures/README.md."""
    return REFERENCE


@pytest.fixture(scope="session")
def make_config() -> Callable[..., PreTrainedConfig]:
    """``make_config(family, **changes)``: a tiny stock configuration."""
    return stock_config


@pytest.fixture(scope="session")
def make_model() -> ModelFactory:
    """``make_model(family, seed=0, own={...}, **changes)``: a tiny random MatryoshkaModel."""
    return build_model


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., list[EncodedPair]]:
    """``make_pairs([(query, passage, prompt), ...], seed=0)``: pairs of random ids with spans of those lengths."""
    return random_pairs


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., dict[str, LowRank]]:
    """``make_adapter(model, seed=0, rank=2)``: a random non-zero compensation adapter."""
    return random_adapter


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """``make_checkpoint(family, adapters=True, **changes)``: a tiny checkpoint in memory."""
    return build_checkpoint


@pytest.fixture(scope="session")
def toy_calibration() -> Calibration:
    """Maps of two settings of a tiny model with six layers."""
    return Calibration(
        settings=(
            CalibratedSetting(depth=6, map=PlattMap(slope=0.5, intercept=-3.0)),
            CalibratedSetting(depth=4, keep_ratio={1: 0.5}, map=PlattMap(slope=2.0, intercept=1.0)),
        ),
        data="toy (19 queries)",
        targets="labels",
        pairs=108,
        relevant_share=0.25,
    )


@pytest.fixture(scope="session")
def toy_profile() -> Profile:
    """Two settings of a tiny model with six layers, as if they had been measured."""
    return Profile(
        metric="nDCG@10",
        collections=("toy", "other"),
        queries=19,
        query_tokens=8,
        passage_tokens=20,
        device="a processor",
        dtype="float32",
        threads=2,
        points=(
            ProfilePoint(depth=6, quality=0.8, kept=1.0, min_kept=1.0, seconds=0.01, flops=4e9),
            ProfilePoint(
                depth=4, keep_ratio={1: 0.5, 3: 0.25}, quality=0.7, kept=0.875, min_kept=0.86, seconds=0.004, flops=1e9
            ),
        ),
    )


@pytest.fixture(scope="session")
def tokenizers() -> Mapping[str, PreTrainedTokenizerBase]:
    """One tokenizer for all decoders, one for all encoders, by ``"decoder"`` and ``"encoder"``."""
    return {"decoder": decoder_tokenizer(), "encoder": encoder_tokenizer()}


@pytest.fixture(scope="session")
def saved_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with three compensation adapters in this project's own format."""
    folder = tmp_path_factory.mktemp("checkpoints") / "decoder"
    checkpoint.save(build_checkpoint("llama"), folder)
    return folder


@pytest.fixture(scope="session")
def saved_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT of 130 positions with three compensation adapters in this project's own format."""
    folder = tmp_path_factory.mktemp("checkpoints") / "encoder"
    checkpoint.save(build_checkpoint("bert"), folder)
    return folder


@pytest.fixture(scope="session")
def make_beir() -> Callable[..., Path]:
    """``make_beir(folder, queries, corpus, qrels, candidates=None, split="test")``: a collection in BEIR's form."""
    return write_beir


@pytest.fixture(scope="session")
def toy_beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of :func:`toy_collection`."""
    return toy_collection(tmp_path_factory.mktemp("collections") / "toy")


@pytest.fixture(scope="session")
def facts_beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FACTS in BEIR's form: every answer is a candidate of every question, and one more split with half of them."""
    folder = tmp_path_factory.mktemp("collections") / "facts"
    corpus = {f"d{number}": answer for number, answer in enumerate(FACTS.values())}
    queries = {f"q{number}": question for number, question in enumerate(FACTS)}
    qrels = {f"q{number}": {f"d{number}": 1} for number in range(len(FACTS))}
    candidates = {query: list(corpus) for query in queries}
    write_beir(folder, queries, corpus, dict(list(qrels.items())[:4]), candidates, "half")
    return write_beir(folder, queries, corpus, qrels, candidates)


FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")


class Killer:
    """Counts what a process does to files, and kills it before event number ``fatal``.

    ``torn``: the file that was opened last is cut to its half before, as if its bytes had not reached the disk.
    """

    def __init__(self, root: Path, fatal: int | None, torn: bool) -> None:
        self.root, self.fatal, self.torn = str(root), fatal, torn
        self.events = 0
        self.last: str | None = None

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        relative = event in ("os.remove", "os.rmdir") and not Path(path).is_absolute()  # by rmtree
        if not (relative or (isinstance(path, str) and path.startswith(self.root))):
            return
        if event == "open":
            if not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            self.count()
            self.last = path
        else:
            self.count()

    def count(self) -> None:
        self.events += 1
        if self.events == self.fatal:
            if self.torn and self.last is not None and Path(self.last).exists():
                handle = os.open(self.last, os.O_RDONLY)
                half = os.fstat(handle).st_size // 2
                os.close(handle)
                self.fatal = None
                os.truncate(self.last, half)
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(self, write: Callable[..., Any], index: int) -> Callable[..., Any]:
        """A function that writes to its argument number ``index`` without Python's notice."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count()
            made = write(*args, **kwargs)
            if isinstance(args[index], str | os.PathLike):
                self.last = os.fspath(args[index])
            self.count()
            return made

        return wrapped


def run_in_a_fork(action: Callable[[], object], root: Path, fatal: int | None = None, torn: bool = False) -> int | None:
    """How many file events under ``root`` the action caused in a child process; None if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            killer = Killer(root, fatal, torn)
            safetensors.torch.serialize_file = killer.counting(safetensors.torch.serialize_file, 1)
            torch.save = killer.counting(torch.save, 1)
            sys.addaudithook(killer.audit)
            action()
            code = 0
        finally:
            os.write(writing, traceback.format_exc().encode()[-60_000:] if code else str(killer.events).encode())
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the child died of signal {os.WTERMSIG(status)}"
        return None
    assert os.WEXITSTATUS(status) == 0, f"the child failed:\n{answer}"
    return int(answer)


@pytest.fixture(scope="session")
def in_a_fork() -> Callable[..., int | None]:
    """:func:`run_in_a_fork`."""
    return run_in_a_fork


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """:func:`bytes_of`."""
    return bytes_of


@pytest.fixture
def own_mini(tmp_path: Path) -> Path:
    """A copy of the shipped model to write to."""
    MatryoshkaReranker(dtype="float32").save_pretrained(tmp_path / "own-mini")
    for name in ("calibration.json", "profile.json"):
        (tmp_path / "own-mini" / name).unlink(missing_ok=True)
    return tmp_path / "own-mini"


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock BERT of four layers over the toy rows' words, with a classifier of one label."""
    folder = tmp_path_factory.mktemp("stock") / "cross-encoder"
    config = stock_config("bert", vocab_size=20, num_hidden_layers=4, pad_token_id=0, num_labels=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    word_tokenizer(cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mini() -> MatryoshkaReranker:
    """The shipped model in float32, shared by a file's tests."""
    return MatryoshkaReranker(dtype="float32")


@pytest.fixture(scope="module")
def decoder() -> MatryoshkaReranker:
    """The tiny Mistral of the reference data in float32, shared by a file's tests."""
    return MatryoshkaReranker(REFERENCE / "mistral" / "model", dtype="float32", max_length=128)


@pytest.fixture(params=["mini", "decoder"])
def reranker(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)
