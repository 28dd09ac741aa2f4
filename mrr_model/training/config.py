"""The settings of a training run: one file, or the flags of ``mrr finetune``.

Help is made from them: nothing here needs torch.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from mrr_model.compression import MAX_DENOMINATOR, MAX_LAYERS
from mrr_model.data.groups import OnBadRow

Cascade = Literal["anchors", "next", "final", "none"]
"""Which exits teach the others: ``anchors``, the method's own: the next deeper anchor layer; ``next``: the next deeper
exit; ``final``: the last exit alone; ``none``: nobody.
"""
Stage = Literal["distill", "vertical", "horizontal"]
STAGES: tuple[Stage, ...] = ("distill", "vertical", "horizontal")
MANY = 10_000_000
"""More than any run has of anything that is counted."""
Layer = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
RUN_FLAGS = {
    "output_dir": "output",
    "seed": "seed",
    "per_device_train_batch_size": "groups-per-step",
    "bf16": "bf16",
    "save_steps": "save-steps",
}
"""Training arguments that are settings of a run, and their flags."""
STAGE_FLAGS = {
    "num_train_epochs": "epochs",
    "max_steps": "max-steps",
    "learning_rate": "learning-rate",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "weight_decay": "weight-decay",
}
"""Training arguments that are settings of each stage, and the ends of their flags."""
OWN = (
    "remove_unused_columns",
    "label_names",
    "save_only_model",
    "resume_from_checkpoint",
    "ignore_data_skip",
    "logging_nan_inf_filter",
)
"""Training arguments that the recipe relies on: how rows reach the model, how a run resumes and when it stops."""
EVALUATION = ("do_eval", "eval_strategy", "eval_on_start", "load_best_model_at_end", "metric_for_best_model")
"""Training arguments that need an evaluation during training."""


class LoraConfig(BaseModel):
    """The size of a LoRA. The defaults are the paper's (arXiv 2501.16302, implementation details)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    rank: int = Field(default=32, ge=1, le=65_536)
    """Rank of the LoRA."""
    alpha: float = Field(default=64.0, gt=0)
    """The LoRA's delta counts alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the LoRA."""

    help_last: ClassVar[tuple[str, ...]] = ("alpha", "dropout")


class StageConfig(BaseModel):
    """What every stage has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    help_last: ClassVar[tuple[str, ...]] = (
        "warmup", "weight_decay", "label_weight", "teacher_weight", "teacher_temperature", "cascade_weight",
        "merge_probability", "default_merge_share",
    )  # fmt: skip
    """What help lists last, among the rarely used."""

    epochs: float = Field(default=1.0, gt=0, le=MANY)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1, le=MANY)
    """Optimizer steps, in place of epochs."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """The highest learning rate."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """The part of the steps over which the learning rate rises; then it falls linearly to 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    label_weight: float = Field(default=1.0, ge=0)
    """Weight of the hard labels' cross-entropy."""
    teacher_weight: float = Field(default=1.0, ge=0)
    """Weight of the soft cross-entropy to the rows' teacher scores, where a row has them."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Divides the teacher's scores: about 0.05 for cosines."""
    cascade_weight: float = Field(default=1.0, ge=0)
    """Weight of the distillation from the model's own deeper and wider passes."""
    merge_probability: float = Field(default=0.5, ge=0, le=1)
    """How likely each merge layer is on in a narrow pass."""
    default_merge_share: float = Field(default=0.0, ge=0, le=1)
    """In this part of the narrow passes the default merge layer alone merges, as a plain keep_ratio does."""


class DistillConfig(StageConfig):
    """Cascaded self-distillation (arXiv 2501.16302, cascaded self-distillation)."""

    cascade: Cascade = "anchors"
    """Which exits teach the others: anchors (the method's own), next, final or none."""
    ratios: tuple[int, ...] = (1, 2, 4, 8)
    """A step's merge ratio is drawn from these; 1 means full width alone."""
    lora: LoraConfig | None = None
    """Train a LoRA and merge it; without one all weights are trained."""

    @field_validator("ratios")
    @classmethod
    def _check(cls, ratios: tuple[int, ...]) -> tuple[int, ...]:
        return _checked_ratios(ratios)


class CompensationConfig(StageConfig):
    """One stage of factorized compensation: LoRAs over the frozen model (arXiv 2501.16302, factorized compensation)."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """The highest learning rate."""
    teacher_weight: float = Field(default=0.0, ge=0)
    """Weight of the soft cross-entropy to the rows' teacher scores; the paper's stage uses hard labels alone."""
    cascade_weight: float = Field(default=0.0, ge=0)
    """Weight of the distillation from the frozen model's own full-size scores; the paper's stage has none."""
    lora: LoraConfig = LoraConfig()
    """The size of the adapter."""


class HorizontalConfig(CompensationConfig):
    """Horizontal compensation: one adapter per step ratio."""

    ratios: tuple[int, ...] = (2, 4, 8)
    """An adapter is trained for each of these merge ratios."""

    @field_validator("ratios")
    @classmethod
    def _check(cls, ratios: tuple[int, ...]) -> tuple[int, ...]:
        if 1 in ratios or len(set(ratios)) < len(ratios):
            raise ValueError("horizontal ratios are different whole numbers above 1")
        return _checked_ratios(ratios)


class RunConfig(BaseModel):
    """What every run has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    help_last: ClassVar[tuple[str, ...]] = (
        "on_bad_row", "stream", "sample", "length_parts", "query_max_length", "save_steps", "freeze_embeddings",
        "dropout", "trainer",
    )  # fmt: skip
    """What help lists last, among the rarely used."""
    help_first: ClassVar[tuple[str, ...]] = ("model", "train", "texts", "output", "stages", *STAGES)
    """What help lists first, and in which order."""

    model: str
    """The model to start from: a local folder or a hub id."""
    output: Path
    """Where the trained checkpoint is written."""
    exits: tuple[Layer, ...] | None = Field(default=None, min_length=1)
    """Layers that get a head; only for a stock model."""
    merge_layer: int | None = Field(default=None, ge=1, le=MAX_LAYERS)
    """Where a plain keep ratio merges; only for a stock model."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a row that cannot be read: stop, or warn and go on."""
    stream: bool = False
    """Read the data as it is needed, for data that does not fit in memory; needs max_steps in every stage."""
    sample: float = Field(default=1.0, gt=0, le=1)
    """The part of each source's groups to train on, drawn by the seed."""
    passages: int = Field(default=8, ge=2, le=MANY)
    """Passages per group: one positive, if the row has any, and negatives."""
    groups_per_step: int = Field(default=8, ge=1, le=MANY)
    """Groups in one step of one process."""
    length_parts: int = Field(default=1, ge=1, le=MANY)
    """Run a step's pairs in this many batches of like lengths: less padding."""
    max_length: int = Field(default=192, ge=8, le=MANY)
    """Tokens of a pair (as in inference, a prompt comes on top)."""
    query_max_length: int | None = Field(default=None, ge=1)
    """Tokens of a query; without it, three quarters of max_length for decoders. Encoders cut the longer text first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights; bfloat16 halves the memory of a frozen large model under a LoRA."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    save_steps: int = Field(default=200, ge=1, le=MANY)
    """Steps between two saves that a run can resume from."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides the draws of data, fresh heads and sub-networks."""
    dev: tuple[str, ...] = ()
    """Print nDCG@10 on this collection after training, at full size and at smaller sizes; in any form that mrr evaluate
    takes. Repeatable."""
    dev_queries: int | None = Field(default=None, ge=1)
    """Measure on at most this many queries of each such collection, drawn by the seed."""
    vertical: CompensationConfig = CompensationConfig()
    """Vertical compensation, for depth."""
    horizontal: HorizontalConfig = HorizontalConfig()
    """Horizontal compensation, for width."""
    trainer: dict[str, Any] = {}
    """Set any other of transformers' TrainingArguments: gradient_accumulation_steps, fsdp, deepspeed, report_to …"""

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
                    f"{name} needs an evaluation during training, which there is not; --dev measures after it"
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
                f"query_max_length must lie below max_length, else no passage is read; got {self.query_max_length} and "
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
        """The stages to run, in order."""
        raise NotImplementedError


class FinetuneConfig(RunConfig):
    """The settings of a training run. Each is a flag of ``mrr finetune``, and a key of its YAML file."""

    model: str
    """Start from a checkpoint of this project, a trained cross-encoder with one label, or a stock encoder or causal
    model: a local folder or a hub id."""
    train: tuple[str, ...] = Field(min_length=1)
    """Training data: JSON lines, a BEIR or MS MARCO folder, or a Hugging Face dataset; #SPLIT chooses a split."""
    stages: tuple[Stage, ...] = STAGES
    """Which stages to run: distill, vertical, horizontal."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of a stock model's layers."""
    head: Literal["linear", "similarity"] | None = None
    """Start fresh heads of this kind: linear reads the first or last token; similarity, for encoders, reads the
    separator after the query and adds a cosine of mean states, which suits bi-encoders. Without it, exits start from a
    cross-encoder's own classifier, else from fresh linear heads. Only for a stock model."""
    freeze_embeddings: bool = True
    """Leave the word embeddings as they are."""
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
    """A compensation stage that learns from the model's own full-size scores alone."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """The highest learning rate."""
    label_weight: float = Field(default=0.0, ge=0, le=0)
    """Labels do not count."""
    teacher_weight: float = Field(default=0.0, ge=0, le=0)
    """Scores in the rows do not count."""
    cascade_weight: float = Field(default=1.0, gt=0)
    """Weight of the distillation from the model's own full-size scores."""
    default_merge_share: float = Field(default=0.5, ge=0, le=1)
    """In this part of the narrow passes the default merge layer alone merges, as a plain keep_ratio does."""


class HorizontalSelfDistillConfig(SelfDistillStageConfig, HorizontalConfig):
    """The same for each step ratio."""


class SelfDistillConfig(RunConfig):
    """The settings of ``mrr self-distill``."""

    model: str
    """A sequence-classification cross-encoder or a yes/no causal re-ranker: a local folder or a hub id."""
    texts: tuple[str, ...] = Field(min_length=1)
    """Unlabelled queries and documents: JSON lines of query and documents, or any source of mrr finetune."""
    template: Path | None = None
    """JSON file of the template that the model reads, where its family has none of its own."""
    yes: str = "yes"
    """The token by which a causal model says yes."""
    no: str | None = "no"
    """The token by which it says no; empty or null where its score is the yes token's logit alone."""
    max_length: int = Field(default=512, ge=8, le=MANY)
    """Tokens of a pair (as in inference, a prompt comes on top)."""
    vertical: SelfDistillStageConfig = SelfDistillStageConfig()
    """Vertical compensation, for depth."""
    horizontal: HorizontalSelfDistillConfig = HorizontalSelfDistillConfig()
    """Horizontal compensation, for width."""

    @property
    def run_stages(self) -> tuple[Stage, ...]:
        return STAGES[1:]


def _checked_ratios(ratios: tuple[int, ...]) -> tuple[int, ...]:
    if not ratios or min(ratios) < 1 or max(ratios) > MAX_DENOMINATOR:
        raise ValueError(f"ratios are whole numbers from 1 to {MAX_DENOMINATOR}, at least one")
    return ratios
