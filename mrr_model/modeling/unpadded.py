"""Unpadded batches: the tokens of all pairs in one row, one pair after the other, and attention within each pair.

A fused kernel for variable lengths computes it on CUDA in 16 bits: torch's own from 2.10 on, else the flash-attn
package's, if it is installed. Anywhere else a loop over the pairs gives the same result, but padding is faster there.

Shapes: B pairs, N tokens of all pairs, T tokens of the longest, H heads, K key/value heads (H is a multiple of K), d
head size.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from inspect import signature
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from mrr_model.modeling.merging import Spans

logger = logging.getLogger(__name__)

LARGEST_HEAD, HEAD_MULTIPLE = 256, 8
"""The head sizes that the fused kernels take."""

FIRST_CAPABILITY = (8, 0)
"""The oldest NVIDIA architecture that they run on."""

Kernel = Callable[[Tensor, Tensor, Tensor, "Layout", bool, float, int | None], Tensor]
"""Attention of queries (N, H, d), keys and values (N, K, d), causal or not, with the factor of its products, and how
many tokens back a causal one sees, itself included; None for all.
"""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each pair's tokens lie in an unpadded batch.

    Attributes:
        lengths: Tokens of each pair, int64 (B,), on the CPU: sizes are read from them.
        starts: Each pair's first token, and N: int64 (B + 1,), on the device, as the rest.
        rows: The pair of each token, int64 (N,).
        positions: Each token's position in its pair, int64 (N,).

    Example:
        >>> one = torch.tensor
        >>> layout = Layout.of(Spans(one([1, 1]), one([2, 0]), one([0, 1])), torch.device("cpu"))
        >>> layout.starts.tolist(), layout.rows.tolist(), layout.positions.tolist()
        ([0, 3, 5], [0, 0, 0, 1, 1], [0, 1, 2, 0, 1])
    """

    lengths: Tensor
    starts: Tensor
    rows: Tensor
    positions: Tensor

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> "Layout":
        """The layout of pairs of these spans. The host does not wait for the device."""
        size, lengths = int(spans.total.sum()), spans.on(device).total
        starts = pad(lengths.cumsum(0), (1, 0))
        index = torch.arange(len(lengths), device=device)
        rows = index.repeat_interleave(lengths, output_size=size)
        return cls(spans.total, starts, rows, torch.arange(size, device=device) - starts[rows])

    @cached_property
    def longest(self) -> int:
        """T."""
        return int(self.lengths.max())

    @cached_property
    def bounds(self) -> Tensor:
        """`starts` as the kernels take them, int32."""
        return self.starts.int()

    @cached_property
    def valid(self) -> Tensor | None:
        """Which positions of a padded batch hold tokens, bool (B, T); None if all do."""
        if int(self.lengths.min()) == self.longest:
            return None
        position = torch.arange(self.longest, device=self.starts.device)
        return position < self.starts.diff()[:, None]

    def padded(self, heads: Tensor) -> Tensor:
        """Keys or values padded, (1, K, N, d) to (B, K, T, d): padding holds tokens of other pairs."""
        position = torch.arange(self.longest, device=heads.device)
        index = (self.starts[:-1, None] + position).clamp(max=len(self.rows) - 1)  # (B, T)
        by_token = heads[0].transpose(0, 1).index_select(0, index.flatten())  # (B · T, K, d)
        return by_token.view(*index.shape, *by_token.shape[1:]).transpose(1, 2)

    def tokens(self, values: Tensor) -> Tensor:
        """The values of all tokens, of a padded (B, T): (1, N)."""
        return values.flatten().index_select(0, self.rows * values.shape[1] + self.positions)[None]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    causal: bool,
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """Attention within each pair.

    Args:
        query: (1, H, N, d).
        key: (1, K, N, d).
        value: (1, K, N, d).
        layout: Where the pairs lie.
        causal: Whether a token sees only those before it.
        scaling: Factor of the products; None for 1 / √d.
        window: How many tokens back a causal token sees, itself included; None for all.

    Returns:
        (1, N, H, d).
    """
    if window is not None and layout.longest <= window:
        window = None
    size = query.shape[3]
    kernel = _kernel() if has_kernel(query.device, query.dtype, size) else None
    query, key, value = (heads[0].transpose(0, 1) for heads in (query, key, value))  # (N, H or K, d)
    return (kernel or by_pair)(query, key, value, layout, causal, scaling or size**-0.5, window)[None]


def by_pair(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, causal: bool, scaling: float, window: int | None
) -> Tensor:
    """What a kernel computes, one pair after the other."""
    groups = query.shape[1] // key.shape[1]
    heads = query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for start, stop in pairwise(accumulate(layout.lengths.tolist(), initial=0)):
        own_query, own_key, own_value = (each[None, start:stop].transpose(1, 2) for each in heads)  # (1, H, t, d)
        position = torch.arange(stop - start, device=query.device)
        band = None if window is None else position > position[:, None] - window
        if causal and band is not None:
            band = band & (position <= position[:, None])
        own = scaled_dot_product_attention(
            own_query, own_key, own_value, attn_mask=band, is_causal=causal and band is None, scale=scaling
        )
        outputs.append(own[0].transpose(0, 1))
    return torch.cat(outputs)  # (N, H, d)


def has_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether a fused kernel computes attention of variable lengths.

    Example:
        >>> has_kernel(torch.device("cpu"), torch.bfloat16, 64)
        False
    """
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_size <= LARGEST_HEAD
        and head_size % HEAD_MULTIPLE == 0
        and _runs(device, dtype, head_size)
    )


@cache
def _runs(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether the kernel runs at all: torch may be built without it, or not for this device."""
    kernel = _kernel()
    if kernel is None or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return False
    length = torch.ones(1, dtype=torch.int64, device="cpu")
    heads = torch.zeros(3, 1, head_size, dtype=dtype, device=device)
    try:
        kernel(heads, heads, heads, Layout.of(Spans(length, length, length), device), False, 1.0, None)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        logger.info("No unpadded batches on %s: %s", device, error)
        return False
    return True


@cache
def _kernel() -> Kernel | None:
    """The installed libraries' kernel; None if they have none."""
    for module, name, wrapped in (
        ("torch.nn.attention.varlen", "varlen_attn", torch_kernel),
        ("flash_attn", "flash_attn_varlen_func", flash_kernel),
    ):
        try:
            return wrapped(getattr(import_module(module), name))
        except (ImportError, AttributeError):
            continue
    return None


def torch_kernel(varlen_attn: Any) -> Kernel:
    """The kernel in torch. Its versions differ in how they take causality, the factor, and fewer key/value heads."""
    known = signature(varlen_attn).parameters

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, layout: Layout, causal: bool, scaling: float, window: int | None
    ) -> Tensor:
        options: dict[str, Any] = {}
        if window is not None and "window_size" not in known:
            return by_pair(query, key, value, layout, causal, scaling, window)
        if causal:
            back = -1 if window is None else window - 1
            options |= {"window_size": (back, 0)} if "window_size" in known else {"is_causal": True}
        if "scale" in known:
            options["scale"] = scaling
        else:
            query = query * (scaling * query.shape[2] ** 0.5)  # it scales by 1 / √d
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and "enable_gqa" in known:
            options["enable_gqa"] = True
        elif groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        bounds, longest = layout.bounds, layout.longest
        return cast(Tensor, varlen_attn(query, key, value, bounds, bounds, longest, longest, **options))

    return kernel


def flash_kernel(flash_attn_varlen_func: Any) -> Kernel:
    """The flash-attn package's kernel."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, layout: Layout, causal: bool, scaling: float, window: int | None
    ) -> Tensor:
        bounds, longest = layout.bounds, layout.longest
        options: dict[str, Any] = {"softmax_scale": scaling, "causal": causal}
        if window is not None:
            options["window_size"] = (window - 1, 0)
        return cast(Tensor, flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, **options))

    return kernel
