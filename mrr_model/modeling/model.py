"""MatryoshkaModel: a stock transformers model that runs at any depth and width.

Letters: B pairs, T tokens, D hidden size, E exits. Layers, exits and merges are counted from 1.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from mrr_model.compression import Compression, Plan, resolve
from mrr_model.modeling import attention
from mrr_model.modeling.attention import ReadingRow
from mrr_model.modeling.backbone import Backbone, Reading, Stage
from mrr_model.modeling.batch import Batch
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.construction import NamedTensors
from mrr_model.modeling.families import is_decoder, walk
from mrr_model.modeling.heads import ScoreHead, soft_cap
from mrr_model.modeling.merging import Spans, destinations, merge_tokens, padded_length, span_means
from mrr_model.modeling.prefix import Prefix


def pooler_off(model_type: str) -> dict[str, bool]:
    """What a stock base model is told so that it has no pooler: encoders have the switch, decoders have no pooler."""
    return {} if is_decoder(model_type) else {"add_pooling_layer": False}


@dataclass(frozen=True)
class BatchState:
    """A batch on its way: ``hidden`` (B, T, D) after ``layer`` layers, the tokens that ``spans`` counts and then
    padding, and the logits of the exits so far, each float32 (B,). ``rounded`` and ``prefix`` are its Batch's.
    """

    layer: int
    hidden: Tensor
    spans: Spans
    logits: list[Tensor]
    rounded: bool = False
    prefix: Prefix | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def width(self) -> int:
        """T."""
        return self.hidden.shape[1]

    def part(self, pairs: slice) -> "BatchState":
        """The same for some of the pairs."""
        spans = Spans(self.spans.query[pairs], self.spans.passage[pairs], self.spans.prompt[pairs])
        return replace(self, hidden=self.hidden[pairs], spans=spans, logits=[column[pairs] for column in self.logits])

    @classmethod
    def joined(cls, states: "Sequence[BatchState]") -> "BatchState":
        """One batch after the other, of states after the same layer that share one prefix or none."""
        if len(states) == 1:
            return states[0]
        width = max(state.width for state in states)
        spans = [state.spans for state in states]
        return replace(
            states[0],
            hidden=torch.cat([pad(state.hidden, (0, 0, 0, width - state.width)) for state in states]),
            spans=Spans(
                torch.cat([each.query for each in spans]),
                torch.cat([each.passage for each in spans]),
                torch.cat([each.prompt for each in spans]),
            ),
            logits=[torch.cat(columns) for columns in zip(*(state.logits for state in states), strict=True)],
        )


@dataclass(frozen=True)
class BatchReading:
    """A batch whose tokens are done: the logits of the exits before the plan's last, each float32 (B,), and what the
    last one still needs.
    """

    logits: list[Tensor]
    reading: Reading
    means: Tensor | None = None
    """What a similarity head compares, (B, 2, D)."""

    def __len__(self) -> int:
        return len(self.reading.states)

    def part(self, pairs: slice) -> "BatchReading":
        """The same for some of the pairs: views."""
        return self._each(lambda values: values[pairs])

    def room(self, pairs: int) -> "BatchReading":
        """Memory for what is known of so many pairs like these, with nothing in it yet."""
        return self._each(lambda values: values.new_empty(pairs, *values.shape[1:]))

    def copy_(self, other: "BatchReading") -> None:
        """Take over what ``other``, of as many pairs and the same plan, holds."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(theirs)

    def _tensors(self) -> list[Tensor]:
        means = [] if self.means is None else [self.means]
        return [*self.logits, self.reading.attended, self.reading.states, *means]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "BatchReading":
        reading = Reading(change(self.reading.attended), change(self.reading.states))
        means = None if self.means is None else change(self.means)
        return BatchReading([change(column) for column in self.logits], reading, means)


class MatryoshkaModel(nn.Module):
    """A stock base model (``model``) with one score head per exit (``heads``), run at the depth and width that a Plan
    says.

    The published method (arXiv 2501.16302, width compression): hidden states are scored at exits and passage tokens
    merged in between.
    """

    def __init__(self, model: PreTrainedModel, config: MatryoshkaConfig) -> None:
        super().__init__()
        attention.register()
        model.config._attn_implementation = attention.NAME
        self.model = model
        self.matryoshka = config
        self._backbone = walk(model, reads_separator=config.head == "similarity")
        config.check_layers(self.num_layers)
        if config.head == "similarity" and self._backbone.causal:
            raise ValueError("similarity heads compare states of an encoder; a causal model takes linear or yes_no")
        hidden_size = model.config.hidden_size
        self.heads = nn.ModuleDict(
            {str(n): ScoreHead(hidden_size, config.head, config.head_bias) for n in config.exits}
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        attention.register()  # a process that unpickles a model has not built one

    @classmethod
    def from_config(
        cls, backbone: PreTrainedConfig, config: MatryoshkaConfig, *, weights: str | torch.device = "cpu"
    ) -> "MatryoshkaModel":
        """A model with random weights in the backbone's number format, else float32; score heads are float32.

        ``weights="meta"`` makes no weights, for a checkpoint to set; all that is no weight is there. The process's
        default number format and device are neither read nor set, as transformers' own constructors do: other threads
        would see it. Raises ``ValueError`` for a backbone family that is not known.
        """
        options = pooler_off(backbone.model_type)
        dtype = backbone.dtype if isinstance(backbone.dtype, torch.dtype) else torch.float32
        with NamedTensors(dtype, weights):
            stock = cast(Any, MODEL_MAPPING[type(backbone)])(backbone, **options)
        with NamedTensors(torch.float32, weights):
            return cls(stock, config)

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's own configuration."""
        return self.model.config

    @property
    def num_layers(self) -> int:
        """The backbone's layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def backbone(self) -> Backbone:
        """The walker over the stock model's layers."""
        return self._backbone

    def plan(self, compression: Compression, *, vertical: bool = False, horizontal: Iterable[Fraction] = ()) -> Plan:
        """Resolve a Compression for this model; the adapters that exist are named by the caller."""
        return resolve(
            compression,
            num_layers=self.num_layers,
            exits=self.matryoshka.exits,
            merge_layers=self.matryoshka.merge_layers,
            default_merge_layer=self.matryoshka.default_merge_layer,
            vertical=vertical,
            horizontal=tuple(horizontal),
        )

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Pass the switch on to the stock model; what the transformers Trainer calls."""
        self.model.gradient_checkpointing_enable(*args, **kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under its name from transformers 5.23 on."""
        self.model.activation_checkpointing_enable(**kwargs)

    @property
    def _no_split_modules(self) -> Any:
        """What the Trainer wraps one by one under FSDP: the stock model's blocks."""
        return self.model._no_split_modules

    def forward(self, batch: Batch, plan: Plan) -> Tensor:
        """Logits of every exit of ``plan`` in ascending order, float32 (B, E).

        In evaluation mode the last block runs for the reading tokens alone; in training every block runs whole, so
        that the hooks of FSDP and gradient checkpointing fire. Both give the same logits.
        """
        state: BatchState | BatchReading = self.start(batch)
        while isinstance(state, BatchState) and state.layer < plan.last_layer:
            state = self.advance(state, plan)
        return self.finish(state, plan) if isinstance(state, BatchReading) else torch.stack(state.logits, 1)

    def start(self, batch: Batch) -> BatchState:
        """A batch before the first layer."""
        hidden = self._backbone.embed(batch.input_ids, batch.spans)  # (B, T, D)
        return BatchState(0, hidden, batch.spans, [], batch.rounded, batch.prefix)

    def advance(self, state: BatchState, plan: Plan) -> BatchState | BatchReading:
        """Go on to behind the next merge, or where none is left to the end of what is computed for every token (in
        training: of all layers).

        Merged batches are small, and slow for that, so several can be joined before they go on.
        """
        backbone, spans = self._backbone, state.spans
        merge = min((layer for layer in plan.merges if layer > state.layer), default=None)
        last = plan.last_layer - (0 if self.training else 1) if merge is None else merge
        stage = backbone.stage(state.hidden, spans, state.prefix)
        row = None
        for layer in range(state.layer + 1, last + 1):
            row = self._reading_row(stage) if layer == merge else None
            means = self._means(state) if layer in plan.exits else None
            state = replace(state, layer=layer, hidden=backbone.block(layer, state.hidden, stage, row))
            if layer in plan.exits:
                logits = self._score(layer, stage.take(state.hidden), means)
                state = replace(state, logits=[*state.logits, logits])
        if merge is not None:
            return _merged(state, plan.merges[merge], None if row is None else row.weights)
        if self.training:
            return state
        return BatchReading(state.logits, backbone.read(plan.last_layer, state.hidden, stage), self._means(state))

    def finish(self, reading: BatchReading, plan: Plan) -> Tensor:
        """The second part: logits of every exit, float32 (B, E).

        What is computed for one token of a pair is slow for the few pairs of a batch, so readings of several can be
        copied to one and finished at once.
        """
        states = self._backbone.finish(plan.last_layer, reading.reading)  # (B, D)
        last = self._score(plan.last_layer, states, reading.means)
        return torch.stack([*reading.logits, last], 1)

    def _score(self, layer: int, read: Tensor, means: Tensor | None) -> Tensor:
        """States of the reading tokens after ``layer`` (B, D), and mean states before it, to logits (B,), by that
        exit's own head.
        """
        logits = self.heads[str(layer)](self._backbone.final_norm(read.float()), means)
        return soft_cap(logits, self.matryoshka.logit_softcap)

    def _means(self, state: BatchState) -> Tensor | None:
        """What a similarity head compares, (B, 2, D): states before the exit's layer, since that layer itself runs for
        the reading token alone where it is the last.
        """
        return span_means(state.hidden, state.spans) if self.matryoshka.head == "similarity" else None

    def _reading_row(self, stage: Stage) -> ReadingRow | None:
        return stage.row() if self.matryoshka.merge_weights == "attention" else None


def _merged(state: BatchState, step: Fraction, weights: Tensor | None) -> BatchState:
    """The batch after one merge, by the reading tokens' attention (B, T) where it is given."""
    target = destinations(state.spans, step, state.width).to(state.hidden.device, non_blocking=True)
    spans = state.spans.merged(step)
    longest = int(spans.total.max())
    size = min(state.width, padded_length(longest)) if state.rounded else longest
    return replace(state, hidden=merge_tokens(state.hidden, target, size, weights), spans=spans)  # (B, T', D)
