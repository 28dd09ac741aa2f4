"""Rows of several batches copied into one, in a single pass over their memory.

Shapes: N rows in all, B rows of one tensor, T tokens, T' tokens of the result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def gathered_rows(tensors: Sequence[Tensor], rows: Sequence[Tensor], size: int) -> Tensor:
    """Some rows of each tensor, in order, cut or padded to one number of tokens.

    Args:
        tensors: (B, T, …) each; B and T may differ.
        rows: Which rows of each, int64, on the tensors' device.
        size: T'. Padding repeats a row's last token.

    Returns:
        Contiguous (N, T', …).

    Example:
        >>> one, two = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 8]])
        >>> gathered_rows([one, two], [torch.tensor([1]), torch.tensor([0])], 3).tolist()
        [[4, 5, 6], [7, 8, 8]]
    """
    first = tensors[0]
    features = first.shape[2:]
    out = first.new_empty(sum(map(len, rows)), size, *features)
    start = 0
    for tensor, chosen in zip(tensors, rows, strict=True):
        tokens = torch.arange(size, device=tensor.device).clamp(max=tensor.shape[1] - 1)
        index = (chosen[:, None] * tensor.shape[1] + tokens).flatten()
        source = tensor.reshape(tensor.shape[0] * tensor.shape[1], *features)
        torch.index_select(source, 0, index, out=out[start : start + len(chosen)].view(-1, *features))
        start += len(chosen)
    return out


def gathered_heads(tensors: Sequence[Tensor], rows: Sequence[Tensor], size: int) -> Tensor:
    """The same for tensors with heads, (B, K, T, d) each, to (N, K, T', d).

    They lie in memory token by token, all heads of a token together, or head by head; the result lies as they do.
    """
    if all(each.transpose(1, 2).is_contiguous() for each in tensors):
        return gathered_rows([each.transpose(1, 2) for each in tensors], rows, size).transpose(1, 2)
    heads = tensors[0].shape[1]
    by_head = [(chosen[:, None] * heads + torch.arange(heads, device=chosen.device)).flatten() for chosen in rows]
    rows_of_heads = gathered_rows([each.flatten(0, 1) for each in tensors], by_head, size)
    return rows_of_heads.view(-1, heads, *rows_of_heads.shape[1:])
