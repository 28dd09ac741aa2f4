"""MatryoshkaModel: a stock transformers model that runs at any depth and width.

Shapes: B pairs, T tokens, D hidden size, E exits. Layers, exits and merges are counted from 1.
"""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mrr_model.compression import Compression, Plan, resolve
from mrr_model.modeling import attention
from mrr_model.modeling.attention import AttentionRow
from mrr_model.modeling.backbone import Backbone, LayerInputs
from mrr_model.modeling.batch import Batch
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.construction import NamedTensors
from mrr_model.modeling.families import backbone_of, default_pooling, model_class, without_pooler
from mrr_model.modeling.heads import ScoreHead
from mrr_model.modeling.merging import (
    destinations,
    merge_tokens,
    merged_counts,
    middle_positions,
    padded_length,
    span_means,
    token_mean,
)
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.states import HiddenBatch, PooledBatch
from mrr_model.modeling.unpadded import Layout


class MatryoshkaModel(nn.Module):
    """A stock base model with one score head per exit, run at the depth and width that a Plan says.

    The published method (arXiv 2501.16302, width compression): the hidden states are scored at exits, and passage
    tokens are merged in between.

    Args:
        model: A stock transformers base model of a known family. Its attention function is replaced.
        config: Exits, merges, heads and the input template.

    Attributes:
        model: The stock model.
        heads: One `ScoreHead` per exit, by the exit's number as text.
        matryoshka: The config.

    Raises:
        ValueError: If the family is unknown, if an exit or a merge lies beyond its layers, or if the head or the
            pooling does not fit the family.

    Example:
        >>> from transformers import BertConfig
        >>> from mrr_model.modeling.batch import EncodedPair, collate
        >>> from mrr_model.template import BERT_TEMPLATE
        >>> small = BertConfig(num_hidden_layers=4, hidden_size=16, num_attention_heads=2, intermediate_size=32)
        >>> own = MatryoshkaConfig(exits=(2, 4), merge_layers=(1, 2, 3), default_merge_layer=1, template=BERT_TEMPLATE)
        >>> model = MatryoshkaModel.from_config(small, own).eval()
        >>> plan = model.plan(Compression(depth=2, keep_ratio=0.5))
        >>> model(collate([EncodedPair([101, 7, 102, 8, 9, 102], 3, 2, 1)], pad_id=0), plan).shape
        torch.Size([1, 1])
    """

    def __init__(self, model: PreTrainedModel, config: MatryoshkaConfig) -> None:
        super().__init__()
        attention.register()
        model.config._attn_implementation = attention.NAME
        self.model = model
        self.matryoshka = config
        pooling = config.pooling or default_pooling(model.config.model_type, config.head)
        self._backbone = backbone_of(model, pooling, config.template.token_types)
        if config.merged_positions is not None:
            self._backbone.keeps_positions = config.merged_positions == "middle"
        config.check_layers(self.num_layers)
        if config.head == "similarity" and self._backbone.causal:
            raise ValueError("similarity heads compare states of an encoder; a causal model takes linear or yes_no")
        if self._backbone.causal and pooling in ("first", "separator"):
            raise ValueError(
                f"pooling {pooling!r} reads a token that sees no passage in a causal model: choose last or mean"
            )
        hidden_size = model.config.hidden_size
        self.heads = nn.ModuleDict(
            {
                str(exit_layer): ScoreHead(
                    hidden_size, config.head, config.head_bias, config.head_layers, config.logit_softcap
                )
                for exit_layer in config.exits
            }
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        attention.register()  # a process that unpickles a model has not built one

    @classmethod
    def from_config(
        cls, backbone: PreTrainedConfig, config: MatryoshkaConfig, *, weights: str | torch.device = "cpu"
    ) -> "MatryoshkaModel":
        """A model with random weights.

        The process's default dtype and device are neither read nor set, as transformers' own constructors do: other
        threads would see it.

        Args:
            backbone: The stock model's configuration. Its dtype is the model's, float32 if it names none; score heads
                are float32.
            config: Exits, merges, heads and the input template.
            weights: Where the weights are made. `"meta"` makes none, for a checkpoint to set; buffers are made.

        Raises:
            ValueError: See the class.
        """
        stock_class = model_class(backbone.model_type)
        dtype = backbone.dtype if isinstance(backbone.dtype, torch.dtype) else torch.float32
        with NamedTensors(dtype, weights):
            stock = cast(Any, stock_class)(backbone, **without_pooler(stock_class))
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
        """The stock model, layer by layer."""
        return self._backbone

    def plan(self, compression: Compression, *, vertical: bool = False, horizontal: Iterable[Fraction] = ()) -> Plan:
        """Resolve a Compression for this model.

        Args:
            compression: The setting.
            vertical: Whether there is a vertical adapter.
            horizontal: The step ratios that there are horizontal adapters for.

        Raises:
            ValueError: If the depth is below the first exit, or if the model cannot merge after a layer.
        """
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
        """Enable gradient checkpointing in the stock model; the transformers Trainer calls this."""
        self.model.gradient_checkpointing_enable(*args, **kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under its name from transformers 5.23 on."""
        self.model.activation_checkpointing_enable(**kwargs)

    @property
    def _no_split_modules(self) -> Any:
        """The stock model's blocks, which the Trainer wraps one by one under FSDP."""
        return self.model._no_split_modules

    def forward(self, batch: Batch, plan: Plan, prefix: SharedPrefix | None = None) -> Tensor:
        """Logits of every exit of a plan.

        In evaluation mode the last block runs for the pooled tokens alone, unless the mean over tokens is pooled. In
        training every block runs whole, so that the hooks of FSDP and gradient checkpointing fire. Both give the same
        logits.

        Args:
            batch: Pairs, on the model's device.
            plan: What to run.
            prefix: The query span that all pairs share and that `batch` leaves out; for models that share one.

        Returns:
            Float32 (B, E), exits in ascending order.

        Raises:
            ValueError: If there is a prefix that the model cannot share.
        """
        hidden = self.embed(batch, prefix)
        last = plan.last_layer - (0 if self.training else 1)
        while hidden.layer < last:  # once per width
            hidden = self.run_layers(hidden, plan, last)
        if self.training:
            return torch.stack(hidden.logits, 1)
        return self.score_pooled(self.pool_last_exit(hidden, plan), plan.last_layer)

    def embed(self, batch: Batch, prefix: SharedPrefix | None = None) -> HiddenBatch:
        """The batch before the first layer."""
        if prefix is not None and not self._backbone.shares_prefix:
            raise ValueError("pairs share a prefix only if the model is causal and pools the last token")
        if batch.unpadded:
            layout = Layout.of(batch.spans, batch.input_ids.device)
            states = self._backbone.embed_unpadded(batch.input_ids, batch.spans, layout)  # (1, N, D)
        else:
            states = self._backbone.embed(batch.input_ids, batch.spans)  # (B, T, D)
        return HiddenBatch(0, states, batch.spans, [], batch.rounded, prefix, unpadded=batch.unpadded)

    @property
    def can_unpad(self) -> bool:
        """Whether it runs unpadded batches, in evaluation mode: if its backbone and its heads do, on one device."""
        devices = getattr(self.model, "hf_device_map", {}).values()
        return self._backbone.can_unpad and self.matryoshka.head != "similarity" and len(set(devices)) < 2

    def run_layers(self, hidden: HiddenBatch, plan: Plan, last: int) -> HiddenBatch:
        """Run layers up to and including the next merge, or layer `last` if that comes first.

        The plan's exits among them are scored. If an exit has been read from `hidden`, the first layer continues from
        its keys and values.

        Args:
            hidden: A batch after some of the layers.
            plan: What to run.
            last: The layer to stop after. It is the one before the last exit's, which `pool_last_exit` runs, or before
                that of an exit to read; in training, the last exit's own.
        """
        inputs = self._layer_inputs(hidden)
        while hidden.layer < last:
            means = self._means(hidden) if hidden.layer + 1 in plan.exits else None
            hidden, row = self._run_layer(hidden, plan, inputs)
            if hidden.layer in plan.exits:
                logits = self.heads[str(hidden.layer)](self._pooled(hidden, inputs), means)
                hidden = replace(hidden, logits=[*hidden.logits, logits])
            if hidden.layer in plan.merges:
                return self._merged(hidden, plan.merges[hidden.layer], row, inputs)
        return replace(hidden, inputs=inputs)

    def read_exit(self, hidden: HiddenBatch, plan: Plan, exit_layer: int) -> tuple[PooledBatch, HiddenBatch]:
        """Run an exit's layer until one state of each pair is left, in a way that lets the layer continue.

        That is its attention, for the pooled tokens alone; the rest of the layer then continues from the same keys and
        values. If the mean over tokens is pooled, it is the whole layer, with the merge after it.

        Args:
            hidden: A batch that has run through all layers before the exit's.
            plan: What to run. If the exit is one of its own and not the last, `run_layers` scores it.
            exit_layer: The exit's layer.

        Returns:
            What the exit reads, for `score_pooled`, without the logits of other exits; and the batch to continue from.
            Its pairs can be selected, and joined with those of other batches that the exit has been read from.
        """
        inputs = self._layer_inputs(hidden)
        if self._backbone.pooling == "mean":
            after, row = self._run_layer(hidden, plan, inputs)
            pooled = PooledBatch([], self._pooled(after, inputs))
            step = plan.merges.get(exit_layer)
            return pooled, replace(after, inputs=inputs) if step is None else self._merged(after, step, row, inputs)
        keys_values = hidden.keys_values or self._backbone.keys_values(exit_layer, hidden.states, inputs)
        state = self._backbone.pooled_attention(exit_layer, hidden.states, inputs, keys_values)
        return PooledBatch([], state, self._means(hidden)), replace(hidden, inputs=inputs, keys_values=keys_values)

    def pool_last_exit(self, hidden: HiddenBatch, plan: Plan) -> PooledBatch:
        """Run the last exit's layer until one state of each pair is left: nothing continues after it.

        `hidden` has run through all layers before it.
        """
        pooled, _ = self.read_exit(hidden, plan, plan.last_layer)
        return replace(pooled, logits=hidden.logits)

    def score_pooled(self, pooled: PooledBatch, exit_layer: int) -> Tensor:
        """Logits of the pairs' exits, float32 (B, E), from the rest of the exit's layer and its head.

        The pooled tokens of one batch are few, and small products are slow: copy those of several batches into one
        `PooledBatch` and score them together.

        Args:
            pooled: What the exit reads.
            exit_layer: The exit's layer.

        Returns:
            The logits in `pooled`, then the exit's own.
        """
        normed = pooled.state
        if not isinstance(normed, Tensor):
            normed = self._normed(self._backbone.pooled_output(exit_layer, normed))  # (B, D)
        return torch.stack([*pooled.logits, self.heads[str(exit_layer)](normed, pooled.means)], 1)

    def _run_layer(
        self, hidden: HiddenBatch, plan: Plan, inputs: LayerInputs
    ) -> tuple[HiddenBatch, AttentionRow | None]:
        """The batch after the next layer, and the weights of the merge after that if attention weighs it."""
        layer, row = hidden.layer + 1, None
        if layer in plan.merges and self.matryoshka.merge_weights == "attention":
            row = inputs.attention_row(hidden.counts)
        if hidden.keys_values is None:
            states = self._backbone.block(layer, hidden.states, inputs, row)
        else:
            states = self._backbone.finish_block(layer, hidden.states, inputs, hidden.keys_values, row)
        return replace(hidden, layer=layer, states=states, keys_values=None), row

    def _layer_inputs(self, hidden: HiddenBatch) -> LayerInputs:
        if hidden.inputs is not None:
            return hidden.inputs
        if hidden.unpadded:
            layout = Layout.of(hidden.spans, hidden.states.device)
            return self._backbone.unpadded_inputs(hidden.states, hidden.spans, layout)
        positions = None
        if self._backbone.keeps_positions and hidden.counts is not None:
            positions = middle_positions(hidden.counts)
        return self._backbone.layer_inputs(hidden.states, hidden.spans, hidden.prefix, positions)

    def _pooled(self, hidden: HiddenBatch, inputs: LayerInputs) -> Tensor:
        """What an exit reads of the states after its layer: normed, float32 (B, D)."""
        if self._backbone.pooling == "mean":
            return token_mean(self._normed(hidden.states), self._counts(hidden))
        return self._normed(inputs.pooled(hidden.states))

    def _normed(self, states: Tensor) -> Tensor:
        """States (…, D) after the last norm, float32."""
        return self._backbone.final_norm(states.float())

    def _counts(self, hidden: HiddenBatch) -> Tensor:
        """How many tokens each state stands for, int64 (B, T); 0 for padding."""
        if hidden.counts is not None:
            return hidden.counts
        position = torch.arange(hidden.width, device=hidden.states.device)[None]
        return (position < hidden.spans.on(hidden.states.device).total[:, None]).long()

    def _means(self, hidden: HiddenBatch) -> Tensor | None:
        """The mean states that a similarity head compares, (B, 2, D).

        They are taken before the exit's layer: at the last exit that layer runs for the pooled tokens alone.
        """
        return span_means(hidden.states, hidden.spans) if self.matryoshka.head == "similarity" else None

    def _merged(
        self, hidden: HiddenBatch, step: Fraction, row: AttentionRow | None, inputs: LayerInputs
    ) -> HiddenBatch:
        """The batch after one merge, weighted by attention if given; `inputs`: those of the layer before it."""
        weights = None if row is None else row.weights  # (B, T)
        if inputs.layout is not None:
            own, spans = hidden.spans.on(hidden.states.device), hidden.spans.merged(step)
            target = inputs.layout.tokens(destinations(own, step, inputs.layout.longest))  # (1, N)
            start = spans.on(hidden.states.device).total.cumsum(0) - spans.on(hidden.states.device).total
            target = target + start[inputs.layout.rows]
            states = merge_tokens(hidden.states, target, int(spans.total.sum()), weights)  # (1, N', D)
            return replace(hidden, states=states, spans=spans, inputs=None)
        target = destinations(hidden.spans.on(hidden.states.device), step, hidden.width)
        spans = hidden.spans.merged(step)
        longest = int(spans.total.max())
        size = min(hidden.width, padded_length(longest)) if hidden.rounded else longest
        mean = self._backbone.pooling == "mean"
        counts = self._counts(hidden) if mean or self._backbone.keeps_positions else None
        if mean and counts is not None:
            # A state counts as often as the tokens that it stands for: equal weights then leave their mean as it is.
            weights = counts if weights is None else weights * counts
        states = merge_tokens(hidden.states, target, size, weights)  # (B, T', D)
        if counts is not None:
            counts = merged_counts(counts, target, size)
        return replace(hidden, states=states, spans=spans, counts=counts, inputs=None)
