"""What this project writes opens with the right scores in other libraries, or not at all; and at the saved defaults."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from sentence_transformers import CrossEncoder
from transformers import AutoConfig, AutoTokenizer

from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder
from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.checkpoint.hub import SHIPPED, wanted
from mrr_model.checkpoint.tokenizer import load_tokenizer
from mrr_model.selection.target import Target
from mrr_model.training.config import FinetuneConfig, SelfDistillConfig
from mrr_model.training.recipe import finetune
from mrr_model.training.self_distill import self_distill

QUERY, TEXTS = "a runs", ["the red cat runs", "a dog", "bird sings the"]
PAIRS = [(QUERY, text) for text in TEXTS]
Make = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def written(
    stock_encoder: Path, toy_file: Path, make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder of every writer, by its name."""
    root = tmp_path_factory.mktemp("written")
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(stock_encoder, num_labels=1)
    classifier.save_pretrained(root / "classifier")
    AutoTokenizer.from_pretrained(stock_encoder).save_pretrained(root / "classifier")
    common: dict[str, Any] = {"train_group_size": 4, "vertical": {"max_steps": 1}}
    finetune(
        FinetuneConfig(
            model=str(stock_encoder),
            train=(str(toy_file),),
            output=root / "finetune",
            stages=("distill", "vertical"),
            distill={"max_steps": 1},
            max_length=32,
            **common,
        )
    )
    self_distill(
        SelfDistillConfig(
            model=str(root / "classifier"),
            texts=(str(toy_file),),
            output=root / "self_distill",
            horizontal={"max_steps": 1, "ratios": (2,)},
            max_length=64,
            **common,
        )
    )
    loaded = make_checkpoint("bert")
    MatryoshkaReranker(loaded, max_length=64, depth=3, keep_ratio=0.5).save_pretrained(root / "save_pretrained")
    core = MatryoshkaReranker(loaded, max_length=64, depth=4, keep_ratio={1: 0.5, 3: 0.25})
    MatryoshkaCrossEncoder(reranker=core).save_pretrained(str(root / "cross_encoder"))
    return {name: root / name for name in WRITERS}


WRITERS = ("finetune", "self_distill", "save_pretrained", "cross_encoder")


def lengths(writer: str) -> dict[str, Any]:
    """Training stores no length: the toy models have 130 positions."""
    return {"max_length": 64} if writer in ("finetune", "self_distill") else {}


@pytest.mark.parametrize("writer", WRITERS)
def test_plain_crossencoder_gives_the_right_scores(written: dict[str, Path], writer: str) -> None:
    folder = written[writer]
    wanted = MatryoshkaReranker(folder, dtype="float32", **lengths(writer)).score(QUERY, TEXTS)
    options = {"processor_kwargs": {"model_max_length": 64}} if lengths(writer) else {}
    for _ in range(2):  # random heads would differ
        plain = CrossEncoder(str(folder), trust_remote_code=True, device="cpu", **options)
        assert type(plain) is CrossEncoder
        assert plain.predict(PAIRS) == pytest.approx(wanted, abs=1e-5)
    ours = MatryoshkaCrossEncoder(folder, **lengths(writer))
    assert ours.predict(PAIRS) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("writer", WRITERS)
def test_plain_crossencoder_without_trust_refuses(written: dict[str, Path], writer: str) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        CrossEncoder(str(written[writer]), device="cpu")


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("writer", [*WRITERS, "mini"])
def test_the_auto_classes_refuse(written: dict[str, Path], writer: str, name: str) -> None:
    folder = SHIPPED["mini"] if writer == "mini" else written[writer]
    with pytest.raises(ValueError, match="matryoshka"):
        getattr(transformers, name).from_pretrained(folder)


def test_a_causal_backbone_is_refused_too(saved_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="matryoshka"):
        transformers.AutoModelForCausalLM.from_pretrained(saved_checkpoint)
    with pytest.raises(ValueError, match="matryoshka"):
        AutoConfig.from_pretrained(saved_checkpoint)


def test_crossencoder_refuses_the_shipped_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matryoshka"):
        CrossEncoder(str(SHIPPED["mini"]), trust_remote_code=True, device="cpu")


@pytest.mark.parametrize("writer", WRITERS)
def test_the_tokenizer_opens_anywhere(written: dict[str, Path], writer: str) -> None:
    ours, other = load_tokenizer(written[writer]), AutoTokenizer.from_pretrained(written[writer])
    assert other(QUERY, TEXTS[0])["input_ids"] == ours(QUERY, TEXTS[0])["input_ids"]


@pytest.mark.parametrize("writer", WRITERS)
def test_all_files_are_fetched_from_the_hub(written: dict[str, Path], writer: str) -> None:
    folder = written[writer]
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    assert wanted(names) == names


# Defaults


def test_a_reloaded_reranker_scores_as_the_saved_one(reference: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_length": 48, "query_max_length": 6, "prompt": "Is B good?", "normalize": False}
    saved = MatryoshkaReranker(
        reference / "mistral" / "model", dtype="float32", depth=6, keep_ratio={2: 0.5, 4: 0.25}, **options
    )
    query, texts = "what does the panda eat in the zoo?", ["Pandas eat bamboo all day long. " * 5, "No."]
    saved.save_pretrained(tmp_path)
    wanted = saved.score(query, texts)
    again = MatryoshkaReranker(tmp_path, dtype="float32")
    assert again.compression == saved.compression
    assert {name: getattr(again, name) for name in options} == options
    assert again.score(query, texts) == pytest.approx(wanted, abs=1e-5)
    assert MatryoshkaCrossEncoder(tmp_path).predict([(query, text) for text in texts]) == pytest.approx(
        wanted, abs=1e-5
    )
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_what_a_user_gives_wins_over_the_saved_defaults(make_checkpoint: Make, tmp_path: Path) -> None:
    saved = MatryoshkaReranker(
        make_checkpoint("bert"), depth=3, keep_ratio=0.5, max_length=64, query_max_length=9, normalize=False
    )
    saved.save_pretrained(tmp_path)
    assert MatryoshkaReranker(tmp_path, depth=2).compression == saved.copy(depth=2).compression
    full = MatryoshkaReranker(tmp_path, depth=None, keep_ratio=1.0, max_length=100, query_max_length=5, normalize=True)
    assert (full.compression.depth, full.compression.keep_ratio) == (None, 1.0)
    assert (full.max_length, full.query_max_length, full.normalize) == (100, 5, True)
    by_target = MatryoshkaReranker(tmp_path, target=Target(speedup=1.0))
    assert (by_target.compression.depth, by_target.compression.keep_ratio) == (6, 1.0)


def test_training_does_not_inherit_a_saved_depth(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    def run(model: Path, name: str, *stages: Any) -> Path:
        return finetune(
            FinetuneConfig(
                model=str(model),
                train=(str(toy_file),),
                output=tmp_path / name,
                stages=stages,
                train_group_size=4,
                max_length=32,
                distill={"max_steps": 1},
                vertical={"max_steps": 1},
            )
        )

    first = run(stock_encoder, "first", "distill")
    MatryoshkaReranker(first, depth=2, keep_ratio=0.5, max_length=32).save_pretrained(tmp_path / "shallow")
    assert MatryoshkaReranker(tmp_path / "shallow").compression.depth == 2
    for name, stage in (("again", "distill"), ("repaired", "vertical")):
        assert MatryoshkaReranker(run(tmp_path / "shallow", name, stage), max_length=32).compression.depth is None


@pytest.mark.parametrize(
    "wrong", [{"depth": 0}, {"depth": "3"}, {"keep_ratio": 2.0}, {"keep_ratio": {"x": 0.5}}, {"surprise": 1}, [], 3]
)
def test_defaults_that_cannot_be_read(make_checkpoint: Make, tmp_path: Path, wrong: Any) -> None:
    checkpoint.save(make_checkpoint("bert", adapters=False), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["matryoshka"]["defaults"] = wrong
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match=r"the 'matryoshka' section of config\.json cannot be read"):
        checkpoint.load(tmp_path)
