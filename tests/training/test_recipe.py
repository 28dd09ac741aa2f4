"""The recipe at toy size: what its stages learn, that they resume, and what they refuse.

Runs that several tests look at are module-scoped fixtures; leave their folders as they are.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import stock_config
from transformers import AutoModel, LlamaForCausalLM

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.data.groups import Group
from mrr_model.training import trainer as trainers
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.initialize import from_pretrained_backbone
from mrr_model.training.recipe import finetune

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
STAGE = {"learning_rate": 3e-3, "lora": LORA}
SGD: dict[str, Any] = {"trainer": {"optim": "sgd"}, "distill": {"learning_rate": 0.1}}
"""An optimizer whose steps are as close as the gradients are; Adam divides small ones by their own size."""


def run_config(model: Path, train: Path, output: Path, **changes: Any) -> FinetuneConfig:
    fields: dict[str, Any] = {
        "model": str(model), "train": (train,), "output": output, "stages": ("distill",), "train_group_size": 4,
        "groups_per_step": 8, "max_length": 32, "save_steps": 4, "freeze_embeddings": False,
        "distill": {"learning_rate": 3e-3, "teacher_temperature": 0.2, "ratios": (1, 2)},
        "vertical": STAGE, "horizontal": {**STAGE, "ratios": (2,)},
    }  # fmt: skip
    distill = {**fields["distill"], **changes.pop("distill", {})}
    return FinetuneConfig(**{**fields, "distill": distill, **changes})


STAGES = ("distill", "vertical", "horizontal")


@pytest.fixture(scope="module")
def at_once(stock_encoder: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages."""
    return finetune(run_config(stock_encoder, toy_file, tmp_path_factory.mktemp("at-once") / "out", stages=STAGES))


@pytest.fixture(scope="module")
def one_by_one(stock_encoder: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each stage, over the checkpoint of the stage before it."""
    folders: dict[str, Path] = {}
    start = stock_encoder
    for stage in STAGES:
        output = tmp_path_factory.mktemp("one-by-one") / stage
        start = folders[stage] = finetune(run_config(start, toy_file, output, stages=(stage,)))
    return folders


def cats_first(reranker: MatryoshkaReranker, rows: list[Group], **setting: Any) -> float:
    labelled = [row for row in rows if row.positives]
    ranked = [reranker.rank(row.query, [*row.negatives, *row.positives], **setting)[0].text for row in labelled]
    return sum(text in row.positives for text, row in zip(ranked, labelled, strict=True)) / len(labelled)


@pytest.mark.parametrize(
    ("family", "head"), [("stock_encoder", None), ("stock_encoder", "similarity"), ("stock_decoder", None)]
)
def test_the_whole_recipe_teaches_every_exit_and_width(
    family: str, head: str | None, request: pytest.FixtureRequest, toy_file: Path, toy_rows: list[Group], tmp_path: Path
) -> None:
    model = request.getfixturevalue(family)
    folder = finetune(run_config(model, toy_file, tmp_path / "out", stages=STAGES, head=head, distill={"epochs": 12.0}))
    assert sorted(path.name for path in (folder / "compensation").iterdir()) == [
        "horizontal_1_2.safetensors",
        "vertical.safetensors",
    ]
    assert not (folder / "steps").exists()
    reranker = MatryoshkaReranker(folder, max_length=32, dtype="float32")
    assert reranker.exits == (1, 2, 3, 4)
    assert reranker.model.matryoshka.head == (head or "linear")
    for depth in (2, 3, 4):
        for keep_ratio in (1.0, 0.5):
            right = cats_first(reranker, toy_rows, depth=depth, keep_ratio=keep_ratio)
            assert right > 0.8, f"depth {depth}, keep ratio {keep_ratio}: by chance it is 0.25"
    if head == "similarity":  # every part of such heads is trained
        before, _ = from_pretrained_backbone(model, head=head)
        for name, weight in before.heads.named_parameters():
            assert not torch.equal(weight, reranker.model.heads.get_parameter(name)), name


RESUMED: dict[str, Any] = {"stages": STAGES} | {
    stage: {**STAGE, "lora": {**LORA, "dropout": 0.1}, **ratios}  # dropout: random state must be resumed too
    for stage, ratios in (("vertical", {}), ("horizontal", {"ratios": (2,)}))
}


@pytest.fixture(scope="module")
def unbroken(stock_encoder: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(run_config(stock_encoder, toy_file, tmp_path_factory.mktemp("unbroken") / "out", **RESUMED))


@pytest.mark.parametrize("dies_in", ["distill", "vertical", "horizontal_1_2"])
def test_a_run_that_was_cut_short_ends_as_if_it_had_not_been(
    dies_in: str, unbroken: Path, stock_encoder: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainers.RankingTrainer.compute_loss

    def dies_at_step_five(self: trainers.RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5 and Path(str(self.args.output_dir)).name == dies_in:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(trainers.RankingTrainer, "compute_loss", dies_at_step_five)
    with pytest.raises(KeyboardInterrupt):
        finetune(run_config(stock_encoder, toy_file, tmp_path / "broken", **RESUMED))
    assert not (tmp_path / "broken" / "config.json").exists()
    seen: dict[str, list[int]] = {}

    def notes_steps(self: trainers.RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        seen.setdefault(Path(str(self.args.output_dir)).name, []).append(self.state.global_step)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(trainers.RankingTrainer, "compute_loss", notes_steps)
    broken = finetune(run_config(stock_encoder, toy_file, tmp_path / "broken", **RESUMED))
    assert next(iter(seen)) == dies_in
    assert seen[dies_in] == [4, 5]
    weights = sorted(path.relative_to(unbroken) for path in unbroken.rglob("*.safetensors"))
    assert len(weights) == 3
    for path in weights:
        assert (broken / path).read_bytes() == (unbroken / path).read_bytes(), path


def test_stages_can_run_one_by_one(at_once: Path, one_by_one: dict[str, Path]) -> None:
    last = one_by_one["horizontal"]
    for name in ("model.safetensors", "compensation/vertical.safetensors", "compensation/horizontal_1_2.safetensors"):
        assert (last / name).read_bytes() == (at_once / name).read_bytes(), name


def test_training_the_model_again_drops_the_compensation_that_repaired_it(
    one_by_one: dict[str, Path], toy_file: Path, tmp_path: Path
) -> None:
    assert checkpoint.load(one_by_one["vertical"]).adapters.keys() == {"vertical"}
    again = finetune(run_config(one_by_one["vertical"], toy_file, tmp_path / "again", distill={"max_steps": 1}))
    assert not checkpoint.load(again).adapters


def test_compensation_leaves_full_size_as_it_was(one_by_one: dict[str, Path]) -> None:
    texts = ["the red cat runs", "a dog", "bird sings the"]
    before, after = (
        MatryoshkaReranker(one_by_one[stage], max_length=32, dtype="float32", normalize=False)
        for stage in ("distill", "horizontal")
    )
    assert before.score("a runs", texts) == pytest.approx(after.score("a runs", texts), abs=1e-6)
    for setting in ({"depth": 2}, {"keep_ratio": 0.5}, {"depth": 3, "keep_ratio": 0.5}):
        assert before.score("a runs", texts, **setting) != pytest.approx(
            after.score("a runs", texts, **setting), abs=1e-6
        ), setting


def test_a_horizontal_adapter_is_trained_with_the_vertical_one_on(
    one_by_one: dict[str, Path], toy_file: Path, tmp_path: Path
) -> None:
    without = finetune(run_config(one_by_one["distill"], toy_file, tmp_path / "out", stages=("horizontal",)))
    name = "compensation/horizontal_1_2.safetensors"
    assert (without / name).read_bytes() != (one_by_one["horizontal"] / name).read_bytes()


@pytest.mark.parametrize("family", ["stock_encoder", "stock_decoder"])
def test_a_lora_is_merged_and_leaves_a_plain_checkpoint(
    family: str, request: pytest.FixtureRequest, toy_file: Path, toy_rows: list[Group], tmp_path: Path
) -> None:
    model = request.getfixturevalue(family)
    lora = {"epochs": 12.0, "learning_rate": 1e-2, "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
    folder = finetune(run_config(model, toy_file, tmp_path / "out", distill=lora))
    loaded = checkpoint.load(folder)
    assert not loaded.adapters
    before = from_pretrained_backbone(model)[0].model.get_input_embeddings().weight
    assert torch.equal(loaded.model.model.get_input_embeddings().weight, before)
    assert cats_first(MatryoshkaReranker(folder, max_length=32, dtype="float32"), toy_rows) > 0.8


@pytest.mark.parametrize("family", ["stock_encoder", "stock_decoder"])
def test_checkpointing_and_accumulation_give_the_same_model(
    family: str, request: pytest.FixtureRequest, toy_file: Path, tmp_path: Path
) -> None:
    model = request.getfixturevalue(family)
    changes: dict[str, Any] = {"stages": STAGES, "save_steps": 100}
    stage = {**STAGE, "learning_rate": 0.1, "max_steps": 3}
    changes |= {"vertical": stage, "horizontal": {**stage, "ratios": (2,)}}
    sgd = {**SGD, "distill": {**SGD["distill"], "max_steps": 3}}
    plain = finetune(run_config(model, toy_file, tmp_path / "plain", **sgd, **changes))
    switches = {**SGD["trainer"], "activation_checkpointing": True, "gradient_accumulation_steps": 2}
    on = {**sgd, "trainer": switches}
    switched = finetune(run_config(model, toy_file, tmp_path / "on", groups_per_step=4, **on, **changes))
    one, other = checkpoint.load(plain), checkpoint.load(switched)
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], weight, atol=2e-4, rtol=0, msg=name)
    for name, adapter in one.adapters.items():
        for module, low in adapter.items():
            torch.testing.assert_close(other.adapters[name][module].delta(), low.delta(), atol=2e-4, rtol=0)


def test_batches_of_similar_lengths_give_the_same_model(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    whole, parted = (
        checkpoint.load(finetune(run_config(stock_encoder, toy_file, tmp_path / str(parts), length_parts=parts, **SGD)))
        for parts in (1, 3)
    )
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(parted.model.state_dict()[name], weight, atol=1e-4, rtol=0, msg=name)


def test_streamed_rows_train_for_max_steps(
    stock_encoder: Path, toy_file: Path, toy_rows: list[Group], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"stream": True, "distill": {"max_steps": 60}}
    folder = finetune(run_config(stock_encoder, toy_file, tmp_path / "out", **changes))
    assert cats_first(MatryoshkaReranker(folder, max_length=32, dtype="float32"), toy_rows) > 0.8
    with pytest.raises(ValueError, match="give max_steps in distill"):
        run_config(stock_encoder, toy_file, tmp_path / "out", stream=True)


@pytest.mark.parametrize("family", ["stock_encoder", "stock_decoder"])
def test_losses_fall_at_every_exit_and_width(
    family: str, request: pytest.FixtureRequest, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, float]] = []
    whole = trainers.RankingTrainer.log

    def noting(self: trainers.RankingTrainer, logs: dict[str, float], start_time: float | None = None) -> None:
        whole(self, logs, start_time)
        logged.append(self.state.log_history[-1])

    monkeypatch.setattr(trainers.RankingTrainer, "log", noting)
    changes: dict[str, Any] = {"distill": {"max_steps": 60}, "trainer": {"logging_steps": 10}}
    finetune(run_config(request.getfixturevalue(family), toy_file, tmp_path / "out", **changes))
    lines = [line for line in logged if "loss" in line]
    assert len(lines) == 6
    for name in (f"labels/{width}/exit {layer}" for width in ("full width", "narrow") for layer in (1, 2, 3, 4)):
        assert lines[-1][name] < 0.8 * lines[0][name], name


def test_every_cascade_trains(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    folders = [
        finetune(run_config(stock_encoder, toy_file, tmp_path / name, distill={"cascade": name, "max_steps": 2}))
        for name in ("anchors", "final", "none")  # at four exits, next is what anchors is
    ]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 3


def test_a_finished_or_foreign_folder_is_not_overwritten(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="unfinished run with another config"):
        finetune(run_config(stock_encoder, toy_file, tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileExistsError, match="already holds a checkpoint"):
        finetune(run_config(stock_encoder, toy_file, tmp_path))


def test_training_continues_from_a_checkpoint_of_this_project(
    stock_encoder: Path, toy_file: Path, tmp_path: Path
) -> None:
    few: dict[str, Any] = {"distill": {"max_steps": 1}}
    first = finetune(run_config(stock_encoder, toy_file, tmp_path / "first", exits=(2, 4), merge_layer=2, **few))
    second = finetune(run_config(first, toy_file, tmp_path / "second", **few))
    reranker = MatryoshkaReranker(second, max_length=32)
    assert reranker.exits == (2, 4)
    assert reranker.model.matryoshka.default_merge_layer == 2
    for fixed in ({"exits": (1, 4)}, {"merge_layer": 1}, {"head": "linear"}):
        with pytest.raises(ValueError, match="exits, merge_layer and head are fixed in the checkpoint"):
            finetune(run_config(first, toy_file, tmp_path / "third", **fixed))


def test_compensation_needs_a_re_ranker(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a re-ranker yet"):
        finetune(run_config(stock_encoder, toy_file, tmp_path / "out", stages=("vertical",)))


def test_vertical_compensation_needs_a_shallow_exit(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    last = finetune(run_config(stock_encoder, toy_file, tmp_path / "last", exits=(4,), distill={"max_steps": 1}))
    with pytest.raises(ValueError, match="needs an exit below the last layer"):
        finetune(run_config(last, toy_file, tmp_path / "out", stages=("vertical",)))


def test_frozen_embeddings_stay_as_they_were(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    before = from_pretrained_backbone(stock_encoder)[0].model.get_input_embeddings().weight
    few: dict[str, Any] = {"distill": {"max_steps": 2}}
    frozen = finetune(run_config(stock_encoder, toy_file, tmp_path / "out", freeze_embeddings=True, **few))
    after = MatryoshkaReranker(frozen, max_length=32, dtype="float32").model.model.get_input_embeddings().weight
    assert torch.equal(before, after)


def test_heads_of_a_causal_model_start_as_its_row_for_yes(stock_decoder: Path) -> None:
    model, tokenizer = from_pretrained_backbone(stock_decoder)
    yes = LlamaForCausalLM.from_pretrained(stock_decoder).lm_head.weight[tokenizer.convert_tokens_to_ids("Yes")]
    assert all(torch.equal(head.linear.weight[0], yes) for head in model.heads.values())  # type: ignore[union-attr,index]


def test_a_model_with_local_layers_merges_after_a_global_one(stock_encoder: Path, tmp_path: Path) -> None:
    config = stock_config("modernbert", vocab_size=20, num_hidden_layers=8, pad_token_id=0)
    assert config.layer_types[1] == "sliding_attention"
    AutoModel.from_config(config).save_pretrained(tmp_path)
    for file in stock_encoder.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model, _ = from_pretrained_backbone(tmp_path)
    assert model.matryoshka.default_merge_layer == 1  # a quarter of the layers would be 2


def test_dropout_is_what_the_caller_says(stock_encoder: Path) -> None:
    model, _ = from_pretrained_backbone(stock_encoder, dropout=0.25)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trainer": {"seed": 3}}, "seed has a flag of its own: --seed"),
        ({"trainer": {"per_device_train_batch_size": 3}}, "flag of its own: --groups-per-step"),
        ({"trainer": {"learning_rate": 1}}, "in each stage: --distill-learning-rate, --vertical-learning-rate"),
        ({"trainer": {"max_steps": 1}}, "--horizontal-max-steps"),
        ({"trainer": {"label_names": []}}, "the recipe sets label_names itself"),
        ({"trainer": {"eval_strategy": "steps"}}, "--dev"),
        ({"trainer": {"save_strategy": "best"}}, "--dev"),
        ({"lr": 1}, "Extra inputs are not permitted"),
        ({"distill": {"learning_rate": -1}}, "learning_rate"),
        ({"distill": {"ratios": ()}}, "at least one"),
        ({"horizontal": {"ratios": (1, 2)}}, "different whole numbers above 1"),
        ({"train": ()}, "train"),
        ({"stages": ("distil",)}, "stages"),
    ],
)
def test_configs_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**{"model": "m", "train": ("t",), "output": Path("o"), **wrong})


def test_a_config_survives_json() -> None:
    one = FinetuneConfig(model="m", train=("t",), output=Path("o"), distill={"lora": LORA})
    assert FinetuneConfig.model_validate(json.loads(one.model_dump_json())) == one
