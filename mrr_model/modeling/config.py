"""What this project adds to a stock model's configuration: exits, merges, heads and the input template."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from mrr_model.modeling.heads import HeadKind, HeadLayer
from mrr_model.template import InputTemplate

Pooling = Literal["first", "last", "separator", "mean"]
"""What an exit reads: the state of the first token ([CLS]), of the last, or of the separator after the query; or the
mean of all tokens' states, in which a merged token counts as often as the tokens that it stands for.
"""

Layer = Annotated[int, Field(strict=True)]


class MatryoshkaConfig(BaseModel):
    """What this project adds to a backbone's own configuration.

    Example:
        >>> from mrr_model.template import BERT_TEMPLATE
        >>> config = MatryoshkaConfig(exits=(3, 6), merge_layers=(1, 2), default_merge_layer=1, template=BERT_TEMPLATE)
        >>> config.exits
        (3, 6)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exits: tuple[Layer, ...]
    """Layers after which a score can be read, ascending, from 1."""
    merge_layers: tuple[Layer, ...]
    """Layers after which tokens may merge, ascending, from 1; empty for a model compressed by depth only."""
    default_merge_layer: Layer
    """The layer after which a plain `keep_ratio` number merges; one of `merge_layers`, unless those are empty."""
    merge_weights: Literal["attention", "mean"] = "attention"
    """Weights of merged states: `attention`, the pooled token's, or equal ones. With mean pooling `attention` is what a
    token receives from all tokens on average, and a state counts as often as the tokens that it stands for. Cosines of
    all-MiniLM-L6-v2's embeddings with and without merging after layer 1, 480 passages: 0.849 by attention and 0.813 by
    equal weights at keep ratio 0.5, 0.720 and 0.684 at 0.25.
    """
    merged_positions: Literal["renumbered", "middle"] | None = None
    """The position of a merged token. `renumbered`: tokens count 0 … T'−1 at every width, as the published decoders are
    trained. `middle`: the middle of its tokens' positions, for rotary positions of models that know no merging. None:
    the family's own.
    """
    pooling: Pooling | None = None
    """What an exit reads; None: the separator for similarity heads, else a causal model's last and any other model's
    first token.
    """
    head: HeadKind = "linear"
    """The kind of score head."""
    head_layers: tuple[HeadLayer, ...] = ()
    """The layers of a score head before its last."""
    head_bias: bool = False
    """Whether the score heads have a bias."""
    logit_softcap: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Bound c of the logits, c · tanh(z / c), in yes_no heads of each of the two; None for no bound."""
    template: InputTemplate
    """How a pair becomes tokens."""

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if not self.exits or not _ascends(self.exits):
            raise ValueError(f"exits must be ascending layer numbers from 1, got {self.exits}")
        if not _ascends(self.merge_layers):
            raise ValueError(f"merge_layers must be ascending layer numbers from 1, got {self.merge_layers}")
        if self.merge_layers and self.default_merge_layer not in self.merge_layers:
            raise ValueError(
                f"default_merge_layer must be one of merge_layers, {', '.join(map(str, self.merge_layers))}; got "
                f"{self.default_merge_layer}"
            )
        if self.default_merge_layer < 1:
            raise ValueError(f"default_merge_layer must be a layer number from 1, got {self.default_merge_layer}")
        return self

    @model_validator(mode="after")
    def _check_head(self) -> Self:
        if self.head == "similarity":
            if self.pooling not in (None, "separator"):
                raise ValueError(f"pooling must be separator for similarity heads, got {self.pooling!r}")
            if self.head_layers:
                raise ValueError(f"head_layers must be empty for similarity heads, got {len(self.head_layers)}")
            if not any("{query}" in piece for piece in self.template.query):
                raise ValueError("a template with the document first has no similarity heads: choose linear or yes_no")
        return self

    def check_layers(self, num_layers: int) -> None:
        """Check that a model has the layers that exits and merges name.

        Args:
            num_layers: The model's layers.

        Raises:
            ValueError: If an exit lies beyond the last layer, or a merge layer is not below it.
        """
        if self.exits[-1] > num_layers:
            raise ValueError(f"exit {self.exits[-1]} lies beyond the backbone's {num_layers} layers")
        if self.merge_layers and self.merge_layers[-1] >= num_layers:
            raise ValueError(
                f"merge layer {self.merge_layers[-1]} is not below the backbone's last layer, {num_layers}: nothing "
                "runs on what is merged there"
            )


def _ascends(layers: tuple[int, ...]) -> bool:
    return list(layers) == sorted(set(layers)) and min(layers, default=1) >= 1


def default_merge_layer(num_layers: int, layer_types: Sequence[str] = ()) -> int:
    """The merge layer of models that name none: a quarter of the layers, rounded up.

    Of a model with local layers, the last global one up to there, or the first: a local layer's pooled token has no
    attention to weigh far tokens by.

    Args:
        num_layers: The model's layers.
        layer_types: Each layer's kind of attention, by transformers' names; empty if all are alike.

    Example:
        >>> default_merge_layer(6), default_merge_layer(6, ["full_attention", *["sliding_attention"] * 2] * 2)
        (2, 1)
    """
    quarter = min(-(-num_layers // 4), max(1, num_layers - 1))
    globals_ = [layer for layer, kind in enumerate(layer_types, 1) if kind == "full_attention" and layer < num_layers]
    return max((layer for layer in globals_ if layer <= quarter), default=min(globals_, default=quarter))
