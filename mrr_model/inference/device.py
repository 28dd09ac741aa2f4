"""Where and in which number format a model runs when the user says "auto"."""

import platform
import re
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CUDA_BATCH_TOKENS = 65536
"""Tokens of a batch on an NVIDIA GPU, where large ones fill the chip. Not measured."""

BATCH_TOKENS, BATCH_BYTES = 1024, 3072 * 384 * 2
"""Elsewhere: as many tokens as make up that many bytes of hidden states, and at least so many tokens. On a CPU small
batches stay in cache.

Measured on two cores with AMX in bfloat16, for 60 and 200 words, full size and small settings, budgets of 512 to 8192
tokens: with 384 dimensions (22M parameters) 3072 was within 5 % of the quickest at 60 words and at full size, and
within 16 % at 200 words (there small settings, whose merged batches were not joined then, gained from 6144, which at
60 cost them up to half as much again); with 768 dimensions (108M) 1024 and 1536 were alike and 2048 slower. In float32
2048 was the quickest there, 1024 and 4096 up to 30 % slower. On two cores with AVX2 alone, in float32 with 384
dimensions, full size and four merging settings at both lengths took 5 to 17 % less time with 1536 than with 3072, and 2
to 18 % less with 768; with 768 dimensions (108M, full size, 60 words) 768 and 1024 were alike, 512 and 1536 took 4 to
7 % more.
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
"""What allocators and libraries say, in a plain RuntimeError, when memory runs out."""


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"``: CUDA, else Apple's MPS, else the CPU. Raises ``ValueError`` for one that is not here."""
    if str(device) != "auto":
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the device
            raise ValueError(
                f"device must be 'auto' or a torch device that is here, such as 'cpu' or 'cuda:0', "
                f"got {device!r}: {error}"
            ) from None
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``"auto"``: bfloat16 where the processor computes it natively, else float32. Raises ``ValueError`` for other
    formats.
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
    """Whether ``device`` multiplies bfloat16 matrices natively: x86 with AMX or AVX512-BF16, NVIDIA from Ampere on."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def device_name(device: torch.device) -> str:
    """A device by its maker's name, as far as the system tells it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor()
    if device.type == "cpu" and CPU_FACTS.is_file():
        models = [line for line in CPU_FACTS.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return name or platform.machine() or device.type


def default_batch_tokens(device: torch.device, hidden_size: int, dtype: torch.dtype) -> int:
    """The token budget of a batch on ``device``, for hidden states of that size and format.

    >>> [default_batch_tokens(torch.device("cpu"), size, torch.bfloat16) for size in (384, 768, 4096)]
    [3072, 1536, 1024]
    >>> [default_batch_tokens(torch.device(name), 384, torch.float32) for name in ("cpu", "mps", "cuda")]
    [1536, 1536, 65536]
    """
    if device.type == "cuda":
        return CUDA_BATCH_TOKENS
    return max(BATCH_TOKENS, BATCH_BYTES // (hidden_size * dtype.itemsize))


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU, and nothing else."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None
