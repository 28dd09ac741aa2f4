"""The tables of a run of the GPU kit, from its result file."""

from collections.abc import Mapping, Sequence
from typing import Any

from result_files import BenchmarkResult

Row = Mapping[str, Any]


def summary(result: BenchmarkResult) -> str:
    """All tables, what was left out and what failed."""
    found = result.results
    parts = [f"{found['device']['name']}, bfloat16 matrix product {found['matrix_rate'] / 1e12:.0f} TFLOP/s"]
    parts += [checks(result), budgets(result), speed(result), idle(result), memory(result)]
    for kind, key in (("skipped", "why"), ("failed", "error")):
        parts.append("\n".join(f"{kind}: {row['step']}, {row['name']}: {row[key][:200]}" for row in found[kind]))
    parts.append("seconds: " + ", ".join(f"{step} {seconds:.0f}" for step, seconds in found["seconds"].items()))
    return "\n\n".join(part for part in parts if part)


def checks(result: BenchmarkResult) -> str:
    """Every check with what it found."""
    rows = [
        [row["name"], "passed" if row["passed"] else "FAILED", f"{row['worst']:.2g}", f"{row['tolerance']:g}"]
        for row in result.results["correctness"]
    ]
    return table(["check", "", "worst", "allowed"], rows)


def budgets(result: BenchmarkResult) -> str:
    """Pairs per second by tokens of a batch."""
    rows = [
        [
            row["name"],
            f"{row['best'] or 0:,}",
            " ".join(f"{each['batch_tokens'] >> 10}k:{each['pairs_per_second']:,.0f}" for each in row["budgets"]),
            f"{row['with_padding']['pairs_per_second']:,.0f}" if row["with_padding"] else "as above",
        ]
        for row in result.results["budget"]
    ]
    return table(["shape", "best budget", "pairs/s by budget", "the best with padding"], rows)


def idle(result: BenchmarkResult) -> str:
    """How much of a call the device does nothing."""
    rows = [
        [row["name"], f"{row['pairs'] / row['seconds']:,.0f}", f"{row['idle']:.0%}",
         f"{row['tokenizing_seconds'] / row['seconds']:.0%}"]
        for row in result.results["profile"]
    ]  # fmt: skip
    return table(["call", "pairs/s", "device idle", "tokenizing alone, of the call"], rows)


def speed(result: BenchmarkResult) -> str:
    """Every size beside CrossEncoder."""
    rows = []
    for workload in result.results["speed"]:
        for setting in workload["settings"]:
            full = setting is workload["settings"][0]
            peers = ", ".join(f"{peer['pairs_per_second']:,.0f} ({peer['batch_size']})" for peer in workload["peers"])
            rows.append(
                [
                    workload["name"],
                    "full size" if full else f"`depth={setting['depth']}, keep_ratio={setting['keep_ratio']:g}`",
                    f"{setting['pairs_per_second']:,.0f}",
                    peers if full else "",
                    f"{setting['time']:.0%}",
                    f"{setting['flops']:.0%}",
                    f"{setting['share_of_matmul']:.0%}",
                    f"{workload['one_batch']['pairs_per_second']:,.0f}" if full else "",
                ]
            )
    header = [
        "shape",
        "size",
        "pairs/s",
        "CrossEncoder's best",
        "time",
        "FLOPs",
        "of matrix rate",
        "one batch, pairs/s",
    ]
    return table(header, rows)


def memory(result: BenchmarkResult) -> str:
    """Peak memory at full and half width."""
    rows = [
        [row["name"], f"{row['passages']:,}", f"{row['loaded_mib']:,} MiB", f"{row['peak_mib']:,} MiB"]
        for row in result.results["memory"]
    ]
    return table(["call", "passages of 512 tokens", "loaded", "peak"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, or nothing without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
