"""The contract of MatryoshkaReranker, on the shipped model (an encoder) and on a published-format decoder."""

import asyncio
import math
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from reference import MISTRAL
from transformers import BertModel

from mrr_model import Compression, MatryoshkaReranker, RankedDocument, Target
from mrr_model.calibration.maps import CalibratedSetting, Calibration, KnotMap, PlattMap
from mrr_model.calibration.probability import probability
from mrr_model.checkpoint import Checkpoint
from mrr_model.compression import Plan
from mrr_model.inference.batching import MIN_SHARING_PAIRS
from mrr_model.modeling.model import MatryoshkaModel

DECODER = MISTRAL
QUERY = "how do plants make food?"
DOCUMENTS = [
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "",
    "The committee met on Tuesday to discuss the budget for the coming year.",
    "Plants are green because of chlorophyll.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "A " + "very " * 700 + "long document that is cut.",
]


def test_scores_are_probabilities_in_input_order(reranker: MatryoshkaReranker) -> None:
    scores = reranker.score(QUERY, DOCUMENTS)
    assert all(type(score) is float and 0 < score < 1 for score in scores)
    assert scores == pytest.approx([reranker.score_pairs([(QUERY, text)])[0] for text in DOCUMENTS], abs=1e-5)


def test_normalize_false_gives_the_logits_under_the_probabilities(reranker: MatryoshkaReranker) -> None:
    logits = reranker.score(QUERY, DOCUMENTS, normalize=False)
    assert (reranker.calibration is not None) == (reranker.name == "mini")  # which is shipped with its maps
    plan, calibrated = reranker.plan(), logits
    if reranker.calibration is not None:
        own = reranker.calibration.nearest(plan).map
        calibrated = [own(logit) for logit in logits]
    assert reranker.score(QUERY, DOCUMENTS) == [probability(logit) for logit in calibrated]


@pytest.mark.parametrize("shown", [True, False, None])
def test_progress_shows_if_it_is_asked_for(
    mini: MatryoshkaReranker, shown: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in (
        lambda: mini.rank(QUERY, DOCUMENTS[:1], show_progress=shown),
        lambda: mini.score(QUERY, DOCUMENTS[:1], show_progress=shown),
        lambda: mini.score_pairs([(QUERY, DOCUMENTS[0])], show_progress=shown),
        lambda: asyncio.run(mini.arank(QUERY, DOCUMENTS[:1], show_progress=shown)),
        lambda: asyncio.run(mini.ascore(QUERY, DOCUMENTS[:1], show_progress=shown)),
    ):
        call()
        assert ("Re-ranking" in capsys.readouterr().err) is (shown is True)


def test_rank_sorts_by_logit_and_ties_keep_input_order(reranker: MatryoshkaReranker) -> None:
    ranking = reranker.rank(QUERY, DOCUMENTS)
    scores = reranker.score(QUERY, DOCUMENTS)
    assert [document.index for document in ranking] == sorted(range(6), key=lambda index: -scores[index])
    assert all(
        document
        == RankedDocument(document.index, scores[document.index], DOCUMENTS[document.index], reranker.exits[-1])
        for document in ranking
    )
    order = [document.index for document in ranking]
    assert order.index(0) + 1 == order.index(4)  # the same text twice


def test_top_n_and_min_score(reranker: MatryoshkaReranker) -> None:
    ranking = reranker.rank(QUERY, DOCUMENTS)
    assert reranker.rank(QUERY, DOCUMENTS, top_n=2) == ranking[:2]
    assert reranker.rank(QUERY, DOCUMENTS, top_n=100) == ranking
    assert reranker.rank(QUERY, DOCUMENTS, min_score=ranking[2].score) == [
        d for d in ranking if d.score >= ranking[2].score
    ]
    logits = reranker.rank(QUERY, DOCUMENTS, normalize=False)
    assert reranker.rank(QUERY, DOCUMENTS, normalize=False, min_score=logits[1].score, top_n=1) == logits[:1]


def test_nothing_in_nothing_out(reranker: MatryoshkaReranker) -> None:
    assert reranker.score(QUERY, []) == reranker.rank(QUERY, []) == reranker.score_pairs([]) == []


def test_score_pairs_takes_many_queries_and_identical_pairs_score_once(mini: MatryoshkaReranker) -> None:
    pairs = [(QUERY, DOCUMENTS[0]), ("who met?", DOCUMENTS[2]), (QUERY, DOCUMENTS[0])]
    with patch.object(mini.engine.encoder, "encode", wraps=mini.engine.encoder.encode) as encode:
        scores = mini.score_pairs(pairs)
    assert len(encode.call_args.args[0]) == 2
    assert scores[0] == scores[2] != scores[1]


def test_batches_order_and_neighbours_do_not_change_a_score(reranker: MatryoshkaReranker) -> None:
    options: dict[str, Any] = {"depth": reranker.num_layers - 1, "keep_ratio": {1: 0.6, 3: 0.25}, "normalize": False}
    expected = reranker.score(QUERY, DOCUMENTS, **options)
    tolerance = [1e-5 * max(1.0, abs(logit)) for logit in expected]
    backwards = reranker.score(QUERY, DOCUMENTS[::-1], **options)[::-1]
    alone = [reranker.score(QUERY, [text], **options)[0] for text in DOCUMENTS]
    with patch.object(reranker.engine.budget, "limit", 1):
        one_by_one = reranker.score(QUERY, DOCUMENTS, **options)
    for other in (backwards, alone, one_by_one):
        assert all(abs(a - b) <= allowed for a, b, allowed in zip(expected, other, tolerance, strict=True))


def test_a_call_overrides_the_default_and_leaves_it(reranker: MatryoshkaReranker) -> None:
    before = reranker.score(QUERY, DOCUMENTS)
    compressed = reranker.score(QUERY, DOCUMENTS, depth=3, keep_ratio=0.5)
    assert compressed != before
    assert reranker.score(QUERY, DOCUMENTS) == before
    with patch.object(reranker, "compression", Compression(3, 0.5)):
        assert reranker.score(QUERY, DOCUMENTS) == compressed
        assert reranker.score(QUERY, DOCUMENTS, depth=None, keep_ratio=1.0) == before


def test_async_forms_give_the_same_and_leave_the_loop_free(mini: MatryoshkaReranker) -> None:
    async def run() -> tuple[Any, Any, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        ranking, scores = await asyncio.gather(mini.arank(QUERY, DOCUMENTS, depth=3), mini.ascore(QUERY, DOCUMENTS))
        ticker.cancel()
        return ranking, scores, ticks

    ranking, scores, ticks = asyncio.run(run())
    assert ranking == mini.rank(QUERY, DOCUMENTS, depth=3)
    assert scores == mini.score(QUERY, DOCUMENTS)
    assert ticks > 2


def test_threads_with_different_settings_share_one_reranker(mini: MatryoshkaReranker) -> None:
    settings = [{"depth": 2 + n % 5, "keep_ratio": (1.0, 0.5, 0.25)[n % 3]} for n in range(10)]
    expected = [mini.score(QUERY, DOCUMENTS, **setting) for setting in settings]
    start = threading.Barrier(10)

    def work(setting: dict[str, Any]) -> list[float]:
        start.wait()
        return mini.score(QUERY, DOCUMENTS, **setting)

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(work, settings)) == expected


@pytest.mark.slow
def test_pickle_gives_the_same_scores_here_and_in_a_fresh_process(mini: MatryoshkaReranker, tmp_path: Path) -> None:
    expected = mini.score(QUERY, DOCUMENTS, depth=3, keep_ratio=0.5)
    assert pickle.loads(pickle.dumps(mini)).score(QUERY, DOCUMENTS, depth=3, keep_ratio=0.5) == expected
    (tmp_path / "reranker.pickle").write_bytes(pickle.dumps(mini))
    code = (
        "import pathlib, pickle, sys; reranker = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes());"
        "print(reranker.score(sys.argv[2], sys.argv[3:], depth=3, keep_ratio=0.5))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "reranker.pickle"), QUERY, *DOCUMENTS]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert [float(score) for score in run.stdout.strip(" []\n").split(",")] == pytest.approx(expected, abs=1e-6)


def test_the_readme_example_warns_once_about_its_depth() -> None:
    with pytest.warns(UserWarning, match="depth=20 .*6 layers") as caught:
        reranker = MatryoshkaReranker(depth=20, keep_ratio=0.5)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reranker.rank(QUERY, DOCUMENTS[:2])
        reranker.rank(QUERY, DOCUMENTS[:2], depth=30)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    MatryoshkaReranker(model_kwargs={"device_map": {"": "cpu"}}).rank(QUERY, DOCUMENTS, depth=2, keep_ratio=0.25)
    assert capfd.readouterr() == ("", "")


def test_model_kwargs_reach_the_stock_loader(mini: MatryoshkaReranker) -> None:
    with patch.object(BertModel, "from_pretrained", wraps=BertModel.from_pretrained) as loader:
        placed = MatryoshkaReranker(dtype="float32", model_kwargs={"device_map": {"": "cpu"}})
    assert loader.call_args.kwargs["device_map"] == {"": "cpu"}
    assert placed.score(QUERY, DOCUMENTS) == mini.score(QUERY, DOCUMENTS)


def test_prompt_changes_a_decoder(decoder: MatryoshkaReranker) -> None:
    prompt = "Predict whether queries A and B are asking the same thing."
    other = decoder.score(QUERY, DOCUMENTS, prompt=prompt)
    assert other != decoder.score(QUERY, DOCUMENTS)
    with patch.object(decoder, "prompt", prompt):
        assert decoder.score(QUERY, DOCUMENTS) == other


def test_dtype_auto_is_bfloat16_only_where_the_processor_has_it() -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        with patch("mrr_model.inference.device.computes_bfloat16", return_value=native):
            assert MatryoshkaReranker(device="cpu").dtype == expected


def test_bfloat16_scores_stay_near_float32(mini: MatryoshkaReranker) -> None:
    narrow = MatryoshkaReranker(dtype="bfloat16").score(QUERY, DOCUMENTS, normalize=False)
    wide = mini.score(QUERY, DOCUMENTS, normalize=False)
    assert narrow == pytest.approx(wide, abs=0.03 * max(abs(logit) for logit in wide))


def test_save_pretrained_and_reopen(reranker: MatryoshkaReranker, tmp_path: Path) -> None:
    reranker.save_pretrained(tmp_path)
    reopened = MatryoshkaReranker.from_pretrained(tmp_path, dtype="float32", max_length=reranker.max_length)
    assert reopened.score(QUERY, DOCUMENTS, depth=4, keep_ratio=0.5) == reranker.score(
        QUERY, DOCUMENTS, depth=4, keep_ratio=0.5
    )
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith("---\n")


def test_push_to_hub_uploads_what_save_pretrained_writes(mini: MatryoshkaReranker) -> None:
    uploaded: dict[str, Any] = {}

    def upload_folder(self: object, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        uploaded.update(repo_id=repo_id, files={path.name for path in Path(folder_path).rglob("*")})
        return type("CommitInfo", (), {"commit_url": "https://hub/owner/name/commit/1"})

    with (
        patch("huggingface_hub.HfApi.create_repo") as create,
        patch("huggingface_hub.HfApi.upload_folder", upload_folder),
    ):
        assert mini.push_to_hub("owner/name", private=True) == "https://hub/owner/name/commit/1"
    create.assert_called_once_with("owner/name", private=True, exist_ok=True)
    assert uploaded["repo_id"] == "owner/name"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= uploaded["files"]


def test_a_loaded_checkpoint_is_taken_as_it_is(mini: MatryoshkaReranker) -> None:
    loaded = Checkpoint(mini.model, mini.tokenizer, mini.engine.compensation.adapters, mini.calibration, mini.profile)
    shared = MatryoshkaReranker(loaded, depth=3)
    assert shared.model is mini.model
    assert shared.score(QUERY, DOCUMENTS) == mini.score(QUERY, DOCUMENTS, depth=3)


def test_flops_fall_with_depth_and_width(reranker: MatryoshkaReranker) -> None:
    full = reranker.flops(depth=None, keep_ratio=1.0)
    assert isinstance(full, float)
    assert full > reranker.flops(depth=4) > reranker.flops(depth=3)
    if reranker.merge_layers:
        assert (
            reranker.flops(depth=4) > reranker.flops(depth=4, keep_ratio=0.5) > reranker.flops(depth=4, keep_ratio=0.25)
        )
    assert reranker.flops(passage_tokens=100) < reranker.flops(passage_tokens=101)


# Calibrated probabilities


CURVE = KnotMap(logits=(-4.0, -1.0, 0.5, 6.0), calibrated=(-9.0, -3.0, -2.5, 1.0))
CALIBRATION = Calibration(
    settings=(
        CalibratedSetting(depth=6, map=CURVE),
        CalibratedSetting(depth=3, keep_ratio={1: 0.5}, map=PlattMap(slope=0.2, intercept=-4.0)),
    ),
    data="toy",
    targets="labels",
    pairs=100,
    relevant_share=0.1,
)


def calibrated(reranker: MatryoshkaReranker, calibration: Calibration = CALIBRATION) -> MatryoshkaReranker:
    """The same weights with maps."""
    loaded = Checkpoint(reranker.model, reranker.tokenizer, reranker.engine.compensation.adapters, calibration)
    return MatryoshkaReranker(loaded, dtype="float32", max_length=reranker.max_length)


@pytest.mark.parametrize("setting", [{"depth": 6}, {"depth": 3, "keep_ratio": {1: 0.5}}, {"depth": 4}], ids=str)
def test_probabilities_use_the_settings_own_or_the_nearest_map(
    reranker: MatryoshkaReranker, setting: dict[str, Any]
) -> None:
    maps = {6: CURVE, 3: PlattMap(slope=0.2, intercept=-4.0), 4: PlattMap(slope=0.2, intercept=-4.0)}
    own = calibrated(reranker)
    logits = own.score(QUERY, DOCUMENTS, normalize=False, **setting)
    assert logits == reranker.score(QUERY, DOCUMENTS, normalize=False, **setting)
    scores = own.score(QUERY, DOCUMENTS, **setting)
    assert scores == [probability(maps[setting["depth"]](logit)) for logit in logits]
    assert scores != reranker.score(QUERY, DOCUMENTS, **setting)
    order = [ranked.index for ranked in own.rank(QUERY, DOCUMENTS, **setting)]
    assert order == [ranked.index for ranked in reranker.rank(QUERY, DOCUMENTS, **setting)]
    kept = own.rank(QUERY, DOCUMENTS, min_score=scores[3], **setting)
    assert {ranked.index for ranked in kept} == {index for index in range(6) if scores[index] >= scores[3]}


@pytest.mark.parametrize("slope", [1e-6, 1e6])
def test_the_steepest_and_flattest_maps_keep_the_order_and_the_range(mini: MatryoshkaReranker, slope: float) -> None:
    steep = CalibratedSetting(depth=6, map=PlattMap(slope=slope, intercept=1e6 * (slope < 1)))
    own = calibrated(mini, CALIBRATION.model_copy(update={"settings": (steep,)}))
    ranking = own.rank(QUERY, DOCUMENTS)
    assert [ranked.index for ranked in ranking] == [ranked.index for ranked in mini.rank(QUERY, DOCUMENTS)]
    assert all(0 < ranked.score < 1 for ranked in ranking)


def test_maps_and_profile_pickle_and_are_left_out_with_the_adapters(mini: MatryoshkaReranker) -> None:
    own = calibrated(mini)
    assert pickle.loads(pickle.dumps(own)).score(QUERY, DOCUMENTS) == own.score(QUERY, DOCUMENTS)
    assert own.copy(depth=3).calibration == CALIBRATION
    assert own.copy(compensated=False).calibration is None


# The engine


def test_logits_of_all_exits_are_those_of_each(reranker: MatryoshkaReranker) -> None:
    deep, shallow = (reranker.plan(depth, {1: 0.5}) for depth in (5, 3))
    pairs = [(QUERY, text) for text in DOCUMENTS]
    both = reranker.engine.logits(pairs, Plan((3, 5), deep.merges, deep.adapters))
    assert (both.shape, both.dtype, both.device.type) == ((6, 2), torch.float32, "cpu")
    for column, plan in enumerate((shallow, deep)):
        assert both[:, column].tolist() == pytest.approx(reranker.engine.logits(pairs, plan)[:, 0].tolist(), abs=1e-4)
    assert reranker.engine.logits([], deep).shape == (0, 1)


def test_token_counts_are_the_spans_as_cut(reranker: MatryoshkaReranker) -> None:
    counts = reranker.engine.token_counts([(QUERY, text) for text in DOCUMENTS])
    batch = reranker.engine.batch([(QUERY, text) for text in DOCUMENTS])
    assert counts == list(zip(batch.spans.query.tolist(), batch.spans.passage.tolist(), strict=True))
    assert counts[5][1] == max(passage for _, passage in counts) <= reranker.max_length
    assert reranker.engine.token_counts([]) == []


def test_flops_of_a_call_count_a_shared_query_once(reranker: MatryoshkaReranker) -> None:
    plan, flops = reranker.plan(4, 0.5), reranker.engine.flops
    pairs = [(QUERY, text) for text in DOCUMENTS]
    alone = [flops([pair], plan) for pair in pairs]
    [(query, passage), *_] = reranker.engine.token_counts(pairs)
    assert flops([], plan) == 0
    assert flops(pairs[: MIN_SHARING_PAIRS - 1], plan) == sum(alone[: MIN_SHARING_PAIRS - 1])
    saved = [sum(alone[:count]) - flops(pairs[:count], plan) for count in (4, 5, 6)]
    if not reranker.model.backbone.causal:
        assert saved == [0, 0, 0]
        # One pair takes what its lengths say; the template's own tokens are in both.
        own = query - 2  # the span holds [CLS] and [SEP]
        assert alone[0] == reranker.flops(depth=4, keep_ratio=0.5, query_tokens=own, passage_tokens=passage)
        return
    one = saved[0] / 3
    assert saved == pytest.approx([3 * one, 4 * one, 5 * one])
    assert 0 < one < min(alone)
    other = [("who met on Tuesday, and what did they discuss?", text) for text in DOCUMENTS]
    together = flops([*pairs, *other], plan)
    assert together == pytest.approx(flops(pairs, plan) + flops(other, plan))


BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": ""}, ValueError, "^query"),
    ({"query": "  \n"}, ValueError, "^query"),
    ({"query": 3}, TypeError, r"^query .*3 \(int\)"),
    ({"documents": "one text"}, TypeError, "^documents .*single str"),
    ({"documents": 5}, TypeError, "^documents .*single int"),
    ({"documents": ["a", None]}, TypeError, r"^documents\[1\] .*None"),
    ({"depth": 1}, ValueError, "^depth=1 .*2, 3, 4, 5, 6"),
    ({"depth": 0}, ValueError, "^depth .*0"),
    ({"depth": 2.5}, TypeError, r"^depth .*2.5 \(float\)"),
    ({"depth": "4"}, TypeError, "^depth .*'4'"),
    ({"depth": True}, TypeError, "^depth .*True"),
    ({"keep_ratio": 0}, ValueError, r"^keep_ratio .*\(0, 1\], got 0"),
    ({"keep_ratio": 1.5}, ValueError, r"^keep_ratio .*\(0, 1\], got 1.5"),
    ({"keep_ratio": float("nan")}, ValueError, r"^keep_ratio .*nan"),
    ({"keep_ratio": None}, TypeError, r"^keep_ratio .*None"),
    ({"keep_ratio": "half"}, ValueError, "^keep_ratio='half'"),
    ({"keep_ratio": {1: 0.5, 3: 0.75}}, ValueError, "^keep_ratio .*0.75 at merge layer 3"),
    ({"keep_ratio": {6: 0.5}}, ValueError, "^keep_ratio .*merge layer 6,.* 1, 2, 3, 4, 5"),
    ({"keep_ratio": {"x": 0.5}}, TypeError, "^keep_ratio's merge layers .*'x'"),
    ({"prompt": "Say yes."}, ValueError, "^prompt='Say yes.'"),
    ({"prompt": 7}, TypeError, "^prompt .*7"),
    ({"top_n": 0}, ValueError, "^top_n .*0"),
    ({"top_n": 2.0}, TypeError, "^top_n .*2.0"),
    ({"min_score": "0.5"}, TypeError, "^min_score .*'0.5'"),
    ({"min_score": math.nan}, ValueError, "^min_score .*nan"),
    ({"normalize": "yes"}, TypeError, "^normalize .*'yes'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_a_bad_argument_of_a_call_is_named(
    mini: MatryoshkaReranker, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mini.rank(**{"query": QUERY, "documents": DOCUMENTS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "no such/model name"}, FileNotFoundError, "^model 'no such/model name'"),
        ({"model": "owner/absent", "local_files_only": True}, FileNotFoundError, "^model 'owner/absent'"),
        ({"max_length": 513}, ValueError, "^max_length=513 .*512"),
        ({"max_length": 0}, ValueError, "^max_length .*0"),
        ({"batch_tokens": 1.5}, TypeError, "^batch_tokens .*1.5"),
        ({"dtype": "int8"}, ValueError, "^dtype .*'float32', 'bfloat16', 'float16'"),
        ({"device": "abacus"}, ValueError, "^device .*'abacus'"),
        ({"device": "cuda"}, ValueError, "^device .*'cuda'"),
        ({"depth": 1}, ValueError, "^depth=1 "),
        ({"keep_ratio": {7: 0.5}}, ValueError, "^keep_ratio .*merge layer 7"),
        ({"prompt": "Say yes."}, ValueError, "^prompt"),
        ({"normalize": 1}, TypeError, "^normalize"),
        ({"target": 3}, TypeError, "^target"),
        ({"target": Target(speedup=3), "depth": 3}, ValueError, "^target"),
    ],
)
def test_a_bad_argument_of_the_constructor_is_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MatryoshkaReranker(**arguments)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([("q", "d"), ("q",)], TypeError, r"^pairs\[1\]"),
        ([("", "d")], ValueError, r"^pairs\[0\]\[0\]"),
        ([("q", 1)], TypeError, r"^pairs\[0\]\[1\] .*1"),
        ("qd", TypeError, "^pairs"),
    ],
)
def test_a_bad_pair_is_named(mini: MatryoshkaReranker, pairs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mini.score_pairs(pairs)


def test_a_broken_checkpoint_is_an_error_and_no_ranking() -> None:
    broken = MatryoshkaReranker(dtype="float32")
    broken.model.heads["6"].linear.weight.data.fill_(math.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match=r"nan for document 0.*'mini'"):
        broken.rank(QUERY, DOCUMENTS)
    assert broken.rank(QUERY, DOCUMENTS, depth=5)  # the other exits have heads of their own


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]


def failing_above(pairs: int, error: Exception) -> Any:
    """Patch a model's layers to raise `error` for every batch of more pairs."""
    run_layers = MatryoshkaModel.run_layers

    def limited(self: MatryoshkaModel, hidden: Any, plan: Any, last: int) -> Any:
        if len(hidden) > pairs:
            raise error
        return run_layers(self, hidden, plan, last)

    return patch.object(MatryoshkaModel, "run_layers", limited)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu"])
@pytest.mark.parametrize("model", ["mini", DECODER], ids=["encoder", "decoder"])
def test_out_of_memory_halves_the_batches_and_is_logged_once(
    model: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = MatryoshkaReranker(model, dtype="float32", max_length=128)
    texts = [f"{text} {number}" for number, text in enumerate(DOCUMENTS * 3)]
    wanted = reranker.score(QUERY, texts)
    with failing_above(2, error):
        assert reranker.score(QUERY, texts) == pytest.approx(wanted, abs=1e-5)
        assert reranker.score(QUERY, texts) == pytest.approx(wanted, abs=1e-5)
    [record] = caplog.records
    assert record.name == "mrr_model.inference.batching"
    assert "Out of memory with a batch of" in record.message
    assert reranker.batch_tokens < 1024


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 3), ("bfloat16", 6)])
def test_a_batch_holds_a_fixed_number_of_bytes_unless_batch_tokens_is_given(dtype: str, largest: int) -> None:
    texts = [f"{number} " + "word " * 100 for number in range(8)]  # cut to 64 tokens with the query

    def batches(**options: Any) -> list[int]:
        reranker = MatryoshkaReranker("mini", dtype=dtype, max_length=64, depth=2, **options)
        budget = patch("mrr_model.inference.device.BATCH_BYTES", 6 * 64 * reranker.model.config.hidden_size * 2)
        with (
            budget,
            patch("mrr_model.inference.device.BATCH_TOKENS", 1),
            patch.object(MatryoshkaModel, "embed", autospec=True, side_effect=MatryoshkaModel.embed) as embedded,
        ):
            reranker.score(QUERY, texts)
        return [len(call.args[1].input_ids) for call in embedded.call_args_list]

    assert max(batches()) == largest
    assert max(batches(batch_tokens=128)) == 2


@pytest.mark.parametrize("together", [1, 3, 256])
def test_logits_go_to_their_pairs_for_any_number_of_batches_scored_together(together: int) -> None:
    reranker = MatryoshkaReranker(DECODER, dtype="float32", max_length=128)
    pairs = [(query, f"{text} {number}") for query in (QUERY, "bees") for number, text in enumerate(DOCUMENTS * 3)]
    plan = reranker.plan()
    each = torch.cat([reranker.engine.logits([pair], plan) for pair in pairs])
    reranker.engine.budget.limit = 1
    with patch("mrr_model.inference.forward.SCORED_TOGETHER", together):
        torch.testing.assert_close(reranker.engine.logits(pairs, plan), each, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["mini", DECODER], ids=["encoder", "decoder"])
def test_out_of_memory_at_the_last_exit_scores_fewer_pairs_at_a_time(model: Any) -> None:
    reranker = MatryoshkaReranker(model, dtype="float32", max_length=128)
    texts = [f"{text} {number}" for number, text in enumerate(DOCUMENTS * 3)]
    wanted = reranker.score(QUERY, texts)
    score_pooled = MatryoshkaModel.score_pooled

    def limited(most: int) -> Any:
        def run(self: MatryoshkaModel, pooled: Any, exit_layer: int) -> torch.Tensor:
            if len(pooled) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return score_pooled(self, pooled, exit_layer)

        return patch.object(MatryoshkaModel, "score_pooled", run)

    with limited(1):
        assert reranker.score(QUERY, texts) == pytest.approx(wanted, abs=1e-5)
    with limited(0), pytest.raises(torch.OutOfMemoryError):
        reranker.score(QUERY, texts)


def test_halving_never_makes_a_budget_larger() -> None:
    """Another thread may have halved it further meanwhile."""
    reranker = MatryoshkaReranker(dtype="float32", batch_tokens=8)
    reranker.engine.budget.halve(1024)
    assert reranker.batch_tokens == 8


def test_a_pair_that_does_not_fit_alone_and_every_other_error_are_raised(caplog: pytest.LogCaptureFixture) -> None:
    reranker = MatryoshkaReranker(dtype="float32")
    with failing_above(0, OUT_OF_MEMORY[0]), pytest.raises(torch.OutOfMemoryError):
        reranker.score(QUERY, DOCUMENTS)
    with failing_above(1, RuntimeError("shapes differ")), pytest.raises(RuntimeError, match="shapes differ"):
        reranker.score(QUERY, DOCUMENTS)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("setting", [{}, {"depth": 3, "keep_ratio": 0.5}], ids=str)
def test_a_model_left_in_training_mode_scores_without_dropout(
    make_checkpoint: Callable[..., Checkpoint], setting: dict[str, Any]
) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("bert", hidden_dropout_prob=0.5), max_length=64)
    reranker.model.train()
    first = reranker.score(QUERY, DOCUMENTS, **setting)
    reranker.model.train()
    assert reranker.score(QUERY, DOCUMENTS, **setting) == pytest.approx(first, abs=1e-6)


def test_a_reranker_built_in_inference_mode_scores_at_any_setting() -> None:
    with torch.inference_mode():
        reranker = MatryoshkaReranker(dtype="float32")
        inside = reranker.score(QUERY, DOCUMENTS, depth=3, keep_ratio=0.5)
    assert reranker.score(QUERY, DOCUMENTS, depth=3, keep_ratio=0.5) == pytest.approx(inside, abs=1e-6)


def test_a_card_saved_without_measurements_does_not_report_them(mini: MatryoshkaReranker, tmp_path: Path) -> None:
    mini.save_pretrained(tmp_path / "whole")
    mini.copy(compensated=False).save_pretrained(tmp_path / "bare")
    whole, bare = ((tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("whole", "bare"))
    assert "<!-- profile -->" in whole
    assert "<!-- calibration -->" in whole
    assert "<!-- profile -->" not in bare
    assert "<!-- calibration -->" not in bare
    assert "## Data and licences" in bare
    assert not (tmp_path / "bare" / "profile.json").exists()
