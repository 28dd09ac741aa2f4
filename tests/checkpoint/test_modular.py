"""Modular folders of sentence-transformers: their modules are the head, and what no head expresses is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.folders import bert_tokenizer, change_json, randomized, save_classifier, stock_config
from models.published import build_ettin
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import nn
from transformers import AutoModel

from mrr_model import MatryoshkaReranker, checkpoint

SIZE = 32
PAIRS = [
    ("what do pandas eat?", "pandas eat bamboo."),
    ("who", "bees make honey from the nectar of flowers " * 3),
    ("the giant panda is a bear " * 5, "penguins live in antarctica " * 9),
]


def base(folder: Path, **fields: Any) -> Transformer:
    tokenizer = bert_tokenizer(model_max_length=60)
    randomized(AutoModel.from_config(stock_config("bert", tokenizer, **fields))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Transformer(str(folder), transformer_task="feature-extraction")


def save(folder: Path, *head: nn.Module, **options: Any) -> Path:
    """A CrossEncoder of a tiny BERT and these modules, saved by the library."""
    torch.manual_seed(0)
    modules = [base(folder.parent / "base"), *head]
    model = CrossEncoder(modules=modules, device="cpu", activation_fn=nn.Identity(), **options)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def scorer(inputs: int = SIZE, **options: Any) -> Dense:
    options = {"activation_function": nn.Identity(), "module_output_name": "scores", **options}
    return Dense(inputs, 1, **options)


def norm() -> LayerNorm:
    made = LayerNorm(SIZE)
    with torch.no_grad():
        made.norm.weight.add_(0.3 * torch.randn(SIZE))
        made.norm.bias.add_(0.3 * torch.randn(SIZE))
    return made


def assert_as_cross_encoder(folder: Path, **options: Any) -> None:
    expected = CrossEncoder(str(folder), device="cpu").predict(PAIRS, **options)
    reranker = MatryoshkaReranker(folder, dtype="float32", device="cpu")
    assert reranker.score_pairs(PAIRS) == pytest.approx(expected.tolist(), abs=1e-4)
    assert [reranker.score_pairs([pair])[0] for pair in PAIRS] == pytest.approx(expected.tolist(), abs=1e-4)


pytestmark = pytest.mark.filterwarnings("ignore:.*cut:UserWarning")


@pytest.mark.parametrize("mode", ["cls", "mean", "lasttoken"])
def test_pooling_and_layers(tmp_path: Path, mode: Any) -> None:
    head = (Dense(SIZE, SIZE, bias=False, activation_function=nn.GELU()), norm(), Dropout(0.1), Dense(SIZE, 24))
    assert_as_cross_encoder(save(tmp_path / "saved", Pooling(SIZE, mode), *head, scorer(24)))


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Mish()])
def test_activations(tmp_path: Path, activation: nn.Module) -> None:
    dense = Dense(SIZE, 16, activation_function=activation)
    assert_as_cross_encoder(save(tmp_path / "saved", Pooling(SIZE, "cls"), dense, scorer(16, bias=False)))


def test_a_prompt_of_the_library_precedes_the_query(tmp_path: Path) -> None:
    options = {"prompts": {"search": "query: "}, "default_prompt_name": "search"}
    folder = save(tmp_path / "saved", Pooling(SIZE, "cls"), scorer(), **options)
    assert_as_cross_encoder(folder)
    reranker = MatryoshkaReranker(folder, dtype="float32", device="cpu", prompt="fact: ")
    expected = CrossEncoder(str(folder), device="cpu").predict(PAIRS, prompt="fact: ")
    assert reranker.score_pairs(PAIRS) == pytest.approx(expected.tolist(), abs=1e-4)


def move_transformer(folder: Path) -> None:
    """Into a sub-folder of its own, as earlier versions of the library laid folders out."""
    inside = folder / "0_Transformer"
    inside.mkdir()
    kept = {"modules.json", "config_sentence_transformers.json"}
    for file in [file for file in folder.iterdir() if file.is_file() and file.name not in kept]:
        file.rename(inside / file.name)
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")


def test_a_modernbert_in_a_sub_folder(tmp_path: Path) -> None:
    """Its layers' names have no prefix."""
    folder = tmp_path / "saved"
    folder.mkdir()
    build_ettin(folder)
    expected = MatryoshkaReranker(folder, dtype="float32").score_pairs(PAIRS)
    move_transformer(folder)
    assert MatryoshkaReranker(folder, dtype="float32").score_pairs(PAIRS) == expected


def test_a_transformer_in_a_sub_folder_and_old_fields(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", Pooling(SIZE, "mean"), scorer())
    expected = MatryoshkaReranker(folder, dtype="float32").score_pairs(PAIRS)
    move_transformer(folder)
    change_json(folder / "1_Pooling" / "config.json", pooling_mode=None, pooling_mode_mean_tokens=True)
    assert MatryoshkaReranker(folder, dtype="float32").score_pairs(PAIRS) == expected


def test_its_own_length_goes_before_the_tokenizers(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", Pooling(SIZE, "cls"), scorer())
    change_json(folder / "sentence_bert_config.json", max_seq_length=20)
    assert MatryoshkaReranker(folder).max_length == 20
    assert_as_cross_encoder(folder)


def test_a_saved_classifier_is_opened_by_its_modules(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(model_max_length=60)
    save_classifier(tmp_path / "stock", stock_config("bert", tokenizer), tokenizer)
    CrossEncoder(str(tmp_path / "stock"), device="cpu").save_pretrained(str(tmp_path / "saved"))
    loaded = checkpoint.load(tmp_path / "saved")
    assert loaded.source == "Transformer of BertForSequenceClassification"
    assert_as_cross_encoder(tmp_path / "saved")


def test_a_bi_encoder_is_no_reranker(tmp_path: Path) -> None:
    modules = [base(tmp_path / "base"), Pooling(SIZE, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    with pytest.raises(ValueError, match="it is a plain model"):
        checkpoint.load(tmp_path / "saved")


def changed(name: str, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / name, **fields)


def rewritten(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        (folder / "modules.json").write_text(json.dumps(change(modules)), "utf-8")

    return rewrite


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda folder: (folder / "modules.json").write_text("[{", "utf-8"), r"modules\.json is not valid JSON"),
    "no list": (rewritten(lambda modules: {"0": modules[0]}), r"modules\.json: it must be a list of modules"),
    "empty": (rewritten(lambda modules: []), r"modules\.json: it must be a list of modules"),
    "remote code": (
        rewritten(lambda modules: [{**modules[0], "type": "custom_st.Transformer"}, *modules[1:]]),
        r"modules\.json: module 0 is 'custom_st\.Transformer', which is not known: Transformer",
    ),
    "unknown": (
        rewritten(lambda modules: [*modules, {**modules[1], "type": "sentence_transformers.models.Normalize"}]),
        r"module 3 is 'sentence_transformers\.models\.Normalize'",
    ),
    "outside": (rewritten(lambda modules: [modules[0], {**modules[1], "path": "../else"}]), r"got '\.\./else'"),
    "no score": (rewritten(lambda modules: modules[:2]), r"modules\.json: .* with Pooling after it gives no score"),
    "missing": (lambda folder: (folder / "2_Dense" / "config.json").unlink(), r"Dense module's 2_Dense/config\.json"),
    "max": (changed("1_Pooling/config.json", pooling_mode="max"), r"1_Pooling/config\.json pools max.*cls, mean, last"),
    "two": (changed("1_Pooling/config.json", pooling_mode=["cls", "max"]), "pools cls and max"),
    "labels": (changed("2_Dense/config.json", out_features=2), r"2_Dense/config\.json gives 2 labels"),
    "width": (changed("2_Dense/config.json", in_features=16), r"2_Dense/config\.json takes 16 numbers.*gives 32"),
    "weights": (changed("2_Dense/config.json", bias=False), r"unexpected: 2_Dense/linear\.bias"),
    "activated": (
        changed("2_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh"),
        "Tanh to the score",
    ),
    "foreign activation": (
        changed("2_Dense/config.json", activation_function="mine.Act"),
        r"activation 'mine\.Act', which is not supported",
    ),
    "residual": (changed("2_Dense/config.json", use_residual=True), "has a residual"),
    "lower case": (
        changed("sentence_bert_config.json", do_lower_case=True),
        r"sentence_bert_config\.json: do_lower_case is not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_file(tmp_path: Path, name: str) -> None:
    change, reason = REFUSED[name]
    folder = save(tmp_path / "saved", Pooling(SIZE, "cls"), scorer())
    change(folder)
    with pytest.raises(ValueError, match=reason) as raised:
        checkpoint.load(folder)
    assert str(raised.value).count(str(folder)) == 1
    assert "\n" not in str(raised.value)
