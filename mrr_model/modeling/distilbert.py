"""DistilBERT: BERT without token types, its block's modules under other names.

Positions are added at the embeddings, as BERT's are.

Shapes: B pairs, T tokens, D hidden size, H heads, d head size.
"""

from typing import Any, cast

from torch import Tensor, nn

from mrr_model.modeling.backbone import PooledState
from mrr_model.modeling.encoder import Encoder
from mrr_model.modeling.merging import Spans


class DistilBert(Encoder):
    """Runs a stock DistilBERT layer by layer."""

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, cast(Any, self.model.transformer).layer)

    @property
    def can_unpad(self) -> bool:
        return False

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        return cast(Tensor, cast(nn.Module, self.model.embeddings)(input_ids=input_ids))

    def self_attention(self, layer: int) -> nn.Module:
        return cast(nn.Module, cast(Any, self.layers[layer - 1]).attention)

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        own = cast(Any, self.self_attention(layer))
        return own.q_lin, own.k_lin, own.v_lin

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        hidden = block.sa_layer_norm(block.attention.out_lin(pooled.attended) + pooled.residual)
        return cast(Tensor, block.output_layer_norm(block.ffn.ff_chunk(hidden) + hidden))
