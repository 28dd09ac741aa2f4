"""Configs of training runs: the keys of a YAML file, or the flags of `mrr finetune` and `mrr self-distill`.

Attribute docstrings are the flags' help, so nothing here needs torch.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from mrr_model.compression import MAX_DENOMINATOR, MAX_LAYERS
from mrr_model.data.groups import OnBadRow
from mrr_model.inference.config import Answers, Template
from mrr_model.validation.config import Config, Flag

Cascade = Literal["anchors", "next", "final", "none"]
"""Which exit teaches an exit: `anchors` (the method's own), the exit at the next deeper anchor layer; `next`, the next
deeper exit; `final`, the last exit; `none`, no exit.
"""
Stage = Literal["distill", "vertical", "horizontal"]
STAGES: tuple[Stage, ...] = ("distill", "vertical", "horizontal")
MANY = 10_000_000
"""Upper bound of all counts: more than any run needs."""
Layer = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
RUN_FLAGS = {
    "output_dir": "output",
    "seed": "seed",
    "per_device_train_batch_size": "groups-per-step",
    "bf16": "bf16",
    "save_steps": "save-steps",
}
"""Training arguments that are fields of a run's config, and their flags."""
STAGE_FLAGS = {
    "num_train_epochs": "epochs",
    "max_steps": "max-steps",
    "learning_rate": "learning-rate",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "weight_decay": "weight-decay",
}
"""Training arguments that are fields of each stage's config, and the ends of their flags."""
OWN = (
    "remove_unused_columns",
    "label_names",
    "save_only_model",
    "resume_from_checkpoint",
    "ignore_data_skip",
    "logging_nan_inf_filter",
)
"""Training arguments that the recipe sets: how rows reach the model, how a run resumes and when it stops."""
EVALUATION = ("do_eval", "eval_strategy", "eval_on_start", "load_best_model_at_end", "metric_for_best_model")
"""Training arguments that need an evaluation during training."""


class LoraConfig(BaseModel):
    """Size of a LoRA; PEFT's own `LoraConfig` is made from it. Defaults: arXiv 2501.16302, implementation details.

    Example:
        >>> LoraConfig(rank=8, alpha=16).dropout
        0.1
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    rank: int = Field(default=32, ge=1, le=65_536)
    """Rank of the LoRA."""
    alpha: float = Field(default=64.0, gt=0)
    """Scale of the LoRA: its delta is multiplied by alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the LoRA's input."""

    help_last: ClassVar[tuple[str, ...]] = ("alpha", "dropout")


class StageConfig(BaseModel):
    """What every training stage has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    help_last: ClassVar[tuple[str, ...]] = (
        "warmup", "weight_decay", "label_weight", "teacher_weight", "teacher_temperature", "cascade_weight",
        "merge_probability", "default_merge_share",
    )  # fmt: skip
    """Fields that help lists last, among the advanced ones."""

    epochs: float = Field(default=1.0, gt=0, le=MANY)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1, le=MANY)
    """Optimizer steps, instead of epochs."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises; then it falls linearly to 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    label_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy to the labels."""
    teacher_weight: float = Field(default=1.0, ge=0)
    """Weight of the soft cross-entropy to the teacher scores of rows that have them."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Divisor of the teacher scores: about 0.05 for cosines."""
    cascade_weight: float = Field(default=1.0, ge=0)
    """Weight of the distillation from the model's own deeper and wider passes."""
    merge_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a merge layer merges in a narrow pass."""
    default_merge_share: float = Field(default=0.0, ge=0, le=1)
    """Share of narrow passes in which only the default merge layer merges, as with a plain keep ratio."""


class DistillConfig(StageConfig):
    """Cascaded self-distillation (arXiv 2501.16302, cascaded self-distillation).

    Example:
        >>> DistillConfig(max_steps=100).ratios
        (1, 2, 4, 8)
    """

    cascade: Cascade = "anchors"
    """Which exit teaches an exit: anchors (the method's own), next, final or none."""
    ratios: tuple[int, ...] = (1, 2, 4, 8)
    """Merge ratios to draw from in each step; 1 means full width only."""
    lora: LoraConfig | None = None
    """Train a LoRA and merge it into the weights; without one, train all weights."""

    @field_validator("ratios")
    @classmethod
    def _check(cls, ratios: tuple[int, ...]) -> tuple[int, ...]:
        return _checked_ratios(ratios)


class CompensationConfig(StageConfig):
    """One stage of factorized compensation: adapters over the frozen model (arXiv 2501.16302, factorized compensation).

    Example:
        >>> CompensationConfig().lora.rank
        32
    """

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    teacher_weight: float = Field(default=0.0, ge=0)
    """Weight of the soft cross-entropy to teacher scores; the paper's stage uses only labels."""
    cascade_weight: float = Field(default=0.0, ge=0)
    """Weight of the distillation from the frozen model's full-size scores; the paper's stage has none."""
    lora: LoraConfig = LoraConfig()
    """Size of the adapter."""


class HorizontalConfig(CompensationConfig):
    """Horizontal compensation: one adapter per merge ratio.

    Example:
        >>> HorizontalConfig(ratios=(2,)).learning_rate
        2e-05
    """

    ratios: tuple[int, ...] = (2, 4, 8)
    """Merge ratios to train an adapter for."""

    @field_validator("ratios")
    @classmethod
    def _check(cls, ratios: tuple[int, ...]) -> tuple[int, ...]:
        if 1 in ratios or len(set(ratios)) < len(ratios):
            raise ValueError("horizontal ratios are different whole numbers above 1")
        return _checked_ratios(ratios)


class RunConfig(BaseModel):
    """What every training run has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    help_last: ClassVar[tuple[str, ...]] = (
        "on_bad_row", "stream", "sample", "length_parts", "query_max_length", "save_steps", "freeze_embeddings",
        "dropout", "trainer",
    )  # fmt: skip
    """Fields that help lists last, among the advanced ones."""
    help_first: ClassVar[tuple[str, ...]] = ("model", "train", "texts", "output", "stages", *STAGES)
    """Fields that help lists first, in this order."""

    model: str
    """Model to start from: a local folder or a hub id."""
    output: Path
    """Folder to write the trained checkpoint to."""
    exits: tuple[Layer, ...] | None = Field(default=None, min_length=1)
    """Layers that get a head; only for a stock model."""
    merge_layer: int | None = Field(default=None, ge=1, le=MAX_LAYERS)
    """Layer after which a plain keep ratio merges; only for a stock model."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a row that cannot be read: stop, or warn and leave it out."""
    stream: bool = False
    """Read the data while training, for data that does not fit in memory; needs max_steps in every stage."""
    sample: float = Field(default=1.0, gt=0, le=1)
    """Share of each source's groups to train on, drawn by the seed."""
    train_group_size: int = Field(default=8, ge=2, le=MANY)
    """Passages per group: one positive, if the row has any, and negatives."""
    groups_per_step: int = Field(default=8, ge=1, le=MANY)
    """Groups per step and process."""
    length_parts: int = Field(default=1, ge=1, le=MANY)
    """Batches per step, each of pairs of similar lengths: more batches need less padding."""
    max_length: int = Field(default=192, ge=8, le=MANY)
    """Tokens per pair, without the prompt."""
    query_max_length: int | None = Field(default=None, ge=1)
    """Tokens per query. By default, three quarters of max_length for decoders; encoders cut the longer text first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights; bfloat16 halves the memory of a large frozen model under a LoRA."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    save_steps: int = Field(default=200, ge=1, le=MANY)
    """Steps between the saves that a run can resume from."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the draws of data, fresh heads and sub-networks."""
    vertical: CompensationConfig = CompensationConfig()
    """Vertical compensation, for depth."""
    horizontal: HorizontalConfig = HorizontalConfig()
    """Horizontal compensation, for width."""
    trainer: dict[str, Any] = {}
    """Any other of transformers' TrainingArguments: gradient_accumulation_steps, fsdp, deepspeed, report_to …"""

    @field_validator("trainer")
    @classmethod
    def _check_trainer(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        stages = [stage for stage in STAGES if stage in cls.model_fields]
        for name in trainer:
            if name in RUN_FLAGS:
                raise ValueError(f"{name} has a flag of its own: --{RUN_FLAGS[name]}")
            if name in STAGE_FLAGS:
                flags = ", ".join(f"--{stage}-{STAGE_FLAGS[name]}" for stage in stages)
                raise ValueError(f"{name} has a flag of its own in each stage: {flags}")
            if name in OWN:
                raise ValueError(f"the recipe sets {name} itself")
            if name in EVALUATION or (name, trainer[name]) == ("save_strategy", "best"):
                raise ValueError(
                    f"{name} needs an evaluation during training, which is not supported; --dev evaluates after it"
                )
        return trainer

    @field_validator("exits")
    @classmethod
    def _check_exits(cls, exits: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if exits is not None and list(exits) != sorted(set(exits)):
            raise ValueError("exits are different layer numbers in ascending order")
        return exits

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.query_max_length is not None and self.query_max_length >= self.max_length:
            raise ValueError(
                f"query_max_length must be below max_length, else no passage is read; got {self.query_max_length} and "
                f"{self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        endless = [stage for stage in self.run_stages if getattr(self, stage).max_steps is None]
        if self.stream and endless:
            raise ValueError(f"a streamed run has no epochs: give max_steps in {', '.join(endless)}")
        return self

    @property
    def run_stages(self) -> tuple[Stage, ...]:
        """The training stages to run, in order."""
        raise NotImplementedError


class FinetuneConfig(RunConfig):
    """Config of `mrr finetune` and `mrr_model.training.recipe.finetune`: its flags, and the keys of a YAML file.

    Example:
        >>> config = FinetuneConfig(model="bert-base-uncased", train=("rows.jsonl",), output="out", stages=("distill",))
        >>> config.run_stages, config.train_group_size
        (('distill',), 8)
    """

    model: str
    """Model to start from: a checkpoint of this project, another re-ranker that opens, or a stock encoder or causal
    model; a local folder or a hub id."""
    train: tuple[str, ...] = Field(min_length=1)
    """Training data: JSON lines, a BEIR or MS MARCO folder, or a Hugging Face dataset; #SPLIT chooses a split."""
    stages: tuple[Stage, ...] = STAGES
    """Training stages to run: distill, vertical, horizontal."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of a stock model's layers."""
    head: Literal["linear", "similarity"] | None = None
    """Kind of fresh heads: linear reads the first or last token; similarity, for encoders, reads the separator after
    the query and adds a cosine of mean states, which suits bi-encoders. By default, exits start from a re-ranker's
    own head, else from fresh linear heads. Only for a stock model."""
    freeze_embeddings: bool = True
    """Keep the word embeddings as they are."""
    distill: DistillConfig = DistillConfig()
    """Cascaded self-distillation."""

    @field_validator("train", mode="before")
    @classmethod
    def _check_train(cls, train: Any) -> Any:
        return tuple(map(str, train)) if isinstance(train, list | tuple) else train

    @property
    def run_stages(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in STAGES if stage in self.stages)


class SelfDistillStageConfig(CompensationConfig):
    """A compensation stage that learns only from the model's own full-size scores.

    Example:
        >>> SelfDistillStageConfig().cascade_weight
        1.0
    """

    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate."""
    label_weight: float = Field(default=0.0, ge=0, le=0)
    """Weight of the labels: none."""
    teacher_weight: float = Field(default=0.0, ge=0, le=0)
    """Weight of teacher scores: none."""
    cascade_weight: float = Field(default=1.0, gt=0)
    """Weight of the distillation from the model's own full-size scores."""
    default_merge_share: float = Field(default=0.5, ge=0, le=1)
    """Share of narrow passes in which only the default merge layer merges, as with a plain keep ratio."""


class HorizontalSelfDistillConfig(SelfDistillStageConfig, HorizontalConfig):
    """Horizontal compensation that learns only from the model's own full-size scores.

    Example:
        >>> HorizontalSelfDistillConfig().ratios
        (2, 4, 8)
    """


class SelfDistillConfig(RunConfig):
    """Config of `mrr self-distill` and `mrr_model.training.self_distill.self_distill`.

    Example:
        >>> config = SelfDistillConfig(model="BAAI/bge-reranker-base", texts=("texts.jsonl",), output="out")
        >>> config.run_stages
        ('vertical', 'horizontal')
    """

    model: Annotated[str, Flag(argument=True, metavar="MODEL")]
    """Re-ranker of any form that opens: a local folder or a hub id."""
    texts: tuple[str, ...] = Field(min_length=1)
    """Unlabelled queries and documents: JSON lines of query and documents, or any source of mrr finetune."""
    template: Template = None
    """Input template of a model whose files hold none: a JSON file, or a published template's name."""
    answers: Answers = None
    """Tokens by which a causal model answers, if its files do not say it."""
    max_length: int = Field(default=512, ge=8, le=MANY)
    """Tokens per pair, without the prompt."""
    vertical: SelfDistillStageConfig = SelfDistillStageConfig()
    """Vertical compensation, for depth."""
    horizontal: HorizontalSelfDistillConfig = HorizontalSelfDistillConfig()
    """Horizontal compensation, for width."""

    @property
    def run_stages(self) -> tuple[Stage, ...]:
        return STAGES[1:]


class MineConfig(Config):
    """The config of `mrr mine`: where rows come from, and how negatives are drawn for them.

    `sources`, `output` and `on_bad_row` matter to the command alone: leave them out to mine rows that are in memory.

    Example:
        >>> MineConfig(negatives=3, top_k=50).encoder is None
        True
    """

    help_first: ClassVar[tuple[str, ...]] = ("sources", "output", "encoder", "negatives", "top_k", "margin", "scores")

    sources: Annotated[tuple[str, ...], Flag(argument=True, required=True, metavar="SOURCE…")] = ()
    """Rows of queries with positives, in any form that mrr finetune reads."""
    output: Annotated[Path | None, Flag(required=True, metavar="FILE")] = None
    """JSON-lines file to write, gzipped if its name ends in .gz."""
    encoder: Annotated[str | None, Flag(default="BM25")] = None
    """Bi-encoder for sentence-transformers: a local folder or a hub id."""
    negatives: int = Field(default=7, ge=1, le=MANY)
    """Negatives per query."""
    top_k: int = Field(default=30, ge=0, le=MANY)
    """Candidates per query to draw negatives from. 0 draws from all passages."""
    margin: float = Field(default=0.95, gt=0, le=1)
    """Leave out passages whose cosine exceeds this share of the positive's."""
    scores: bool = False
    """Write the bi-encoder's cosines as teacher scores."""
    keep_identical: bool = False
    """Let a query's own text, or its own id in a BEIR folder, be its negative."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a row that cannot be read."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random draw."""

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        if self.scores and self.encoder is None:
            raise ValueError("scores are a bi-encoder's cosines: give an encoder too")
        return self


def _checked_ratios(ratios: tuple[int, ...]) -> tuple[int, ...]:
    if not ratios or min(ratios) < 1 or max(ratios) > MAX_DENOMINATOR:
        raise ValueError(f"ratios are whole numbers from 1 to {MAX_DENOMINATOR}, at least one")
    return ratios
