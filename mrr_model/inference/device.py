"""The device, dtype and batch budget that `"auto"` stands for."""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

TABLE = Path(__file__).with_name("batch_tokens.json")
"""Device class -> `MeasuredBudget`s, measured with `benchmarks/gpu.py`."""

CUDA_BATCH_TOKENS = 65536
"""Tokens of a batch on an NVIDIA GPU that `TABLE` lacks. Large batches fill the chip. Not measured."""

BATCH_TOKENS, BATCH_BYTES = 1024, 3072 * 384 * 2
"""On other devices: the fewest tokens of a batch, and the bytes of hidden states that a larger batch may take.

Small batches stay in a CPU's cache. The numbers were chosen by timing budgets of 512 to 8192 tokens on two cores, with
AMX and with AVX2 alone, in bfloat16 and float32, for models of 384 and 768 dimensions.
"""

CPU_FACTS = Path("/proc/cpuinfo")
"""Where Linux names the processor."""

OUT_OF_MEMORY = re.compile(
    r"""DefaultCPUAllocator:\ (can't\ allocate|not\ enough)\ memory
    | std::bad_alloc
    | (CUDA|HIP|XPU|MPS\ backend)(\ error:)?\ out\ of\ memory
    | CU[A-Z]+_STATUS_[A-Z_]*ALLOC[A-Z_]*FAILED   # cuBLAS, cuDNN, cuSOLVER
    | could\ not\ create\ a\ memory\ object      # oneDNN
    | ^could\ not\ (create|execute)\ a\ primitive$  # the same; a "primitive descriptor" is something else
    """,
    re.VERBOSE,
)
"""Messages of the plain `RuntimeError` that allocators and libraries raise when memory runs out."""


class MeasuredBudget(TypedDict):
    """The best batch budget of one model: the smallest that is about as fast as any."""

    hidden_size: int
    dtype: str
    batch_tokens: int


BatchTable = Mapping[str, Sequence[MeasuredBudget]]


def resolve_device(device: str | torch.device) -> torch.device:
    """The device to run on; `"auto"` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: If the device does not exist here.
    """
    if str(device) != "auto":
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:  # torch asserts if it was built without the device
            raise ValueError(
                f"device must be 'auto' or a torch device of this machine, such as 'cpu' or 'cuda:0', "
                f"got {device!r}: {error}"
            ) from None
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to load in; `"auto"` is bfloat16 if the processor computes it natively, else float32.

    Raises:
        ValueError: If it is not one of `DTYPES`.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    if str(dtype) not in DTYPES:
        raise ValueError(
            f"dtype must be 'auto', {', '.join(map(repr, DTYPES))} or one of these torch dtypes, got {dtype!r}."
        )
    return DTYPES[str(dtype)]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices natively: x86 with AMX or AVX512-BF16, NVIDIA since Ampere."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def device_name(device: torch.device) -> str:
    """A device's product name, if the system knows it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor()
    if device.type == "cpu" and CPU_FACTS.is_file():
        models = [line for line in CPU_FACTS.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return name or platform.machine() or device.type


def default_batch_tokens(device: torch.device, hidden_size: int, dtype: torch.dtype) -> int:
    """Tokens of a batch on a device, padding included.

    Args:
        device: Where the model runs.
        hidden_size: The model's hidden size.
        dtype: The dtype of its hidden states.

    Example:
        >>> [default_batch_tokens(torch.device("cpu"), size, torch.bfloat16) for size in (384, 768, 4096)]
        [3072, 1536, 1024]
        >>> [default_batch_tokens(torch.device(name), 384, torch.float32) for name in ("cpu", "mps")]
        [1536, 1536]
    """
    if device.type == "cuda":
        return measured_batch_tokens(read_batch_table(), device_class(device), hidden_size, dtype) or CUDA_BATCH_TOKENS
    return max(BATCH_TOKENS, BATCH_BYTES // (hidden_size * dtype.itemsize))


def measured_batch_tokens(table: BatchTable, device: str, hidden_size: int, dtype: torch.dtype) -> int | None:
    """The budget of the model nearest in hidden size among those measured on a class of devices.

    Args:
        table: The measurements.
        device: The class, as `device_class` names it.
        hidden_size: The model's hidden size.
        dtype: The dtype of its hidden states.

    Returns:
        Tokens; None if nothing was measured on that class in that dtype.

    Example:
        >>> rows = [MeasuredBudget(hidden_size=size, dtype="bfloat16", batch_tokens=64 * size) for size in (384, 1024)]
        >>> measured_batch_tokens({"sm_90": rows}, "sm_90", 768, torch.bfloat16)
        65536
        >>> measured_batch_tokens({"sm_90": rows}, "sm_80", 768, torch.bfloat16) is None
        True
    """
    rows = [row for row in table.get(device, ()) if getattr(torch, row["dtype"]) == dtype]
    nearest = min(rows, key=lambda row: abs(math.log(row["hidden_size"] / hidden_size)), default=None)
    return None if nearest is None else nearest["batch_tokens"]


def device_class(device: torch.device) -> str:
    """What devices with like batch budgets have in common: the compute capability, or the type of other devices.

    Example:
        >>> device_class(torch.device("cpu"))
        'cpu'
    """
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@lru_cache
def read_batch_table(file: Path = TABLE) -> BatchTable:
    """The batch budgets that come with the package."""
    table: BatchTable = json.loads(file.read_text(encoding="utf-8"))
    return table


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None
