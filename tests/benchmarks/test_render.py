"""Pages show what the result files hold: the project's own pages, and pages and figures that the tests invent."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from render import PICTURE, render, render_page
from result_files import RESULTS, ROOT, BenchmarkResult, Machine, RenderError, ResultFiles, command_of, read_result
from result_tables import QUANTIZED, TABLES, Table

SETTINGS = [(6, 1.0), (4, 1.0), (4, 0.5), (3, 0.5), (2, 0.25)]
WORKLOAD = {"model": "mini", "words": 60, "passages": 100, "tokens": 80.5, "dtype": "bfloat16", "share_of_matmul": 0.35}
INVENTED: dict[str, dict[str, Any]] = {
    "quality": {
        "metric": "nDCG@10",
        "significance": 0.05,
        "collections": {"birds": {"queries": 7, "pairs": 70}, "trees": {"queries": 3, "pairs": 30}},
        "baselines": [{"name": "BM25", "values": {"birds": 0.5, "trees": 0.6}, "mean": 0.55}],
        "settings": [
            {
                "depth": depth,
                "keep_ratio": keep_ratio,
                "values": {"birds": 0.8 - 0.01 * index, "trees": 0.7},
                "differs": ["birds"] if index > 2 else [],
                "mean": 0.75 - 0.005 * index,
                "kept": 1 - 0.0066 * index,
            }
            for index, (depth, keep_ratio) in enumerate(SETTINGS)
        ],
    },
    "time-share": {
        "workloads": [
            {
                **WORKLOAD,
                "settings": [
                    {
                        "depth": depth,
                        "keep_ratio": keep_ratio,
                        "pairs_per_second": 100.0 * (1 + index),
                        "time": 1 / (1 + index),
                        "model_time": 0.9 / (1 + index),
                        "flops": 0.8 / (1 + index) if index else 1.0,
                    }
                    for index, (depth, keep_ratio) in enumerate(SETTINGS)
                ],
            }
        ]
    },
    "speed": {
        "workloads": [
            {
                **WORKLOAD,
                "contenders": [
                    {
                        "name": "this package",
                        "dtype": "bfloat16",
                        "batch_size": None,
                        "pairs_per_second": 200.4,
                        "ours_same_dtype": 1.0,
                        "ours_default": 1.0,
                    },
                    {
                        "name": "CrossEncoder",
                        "dtype": "float32",
                        "batch_size": 32,
                        "pairs_per_second": 50.0,
                        "ours_same_dtype": 2.0,
                        "ours_default": 4.0,
                    },
                    {
                        "name": "this package",
                        "dtype": "float32",
                        "batch_size": None,
                        "pairs_per_second": 80.2,
                        "ours_same_dtype": 1.0,
                        "ours_default": 2.5,
                    },
                    {
                        "name": QUANTIZED,
                        "dtype": "int8",
                        "batch_size": None,
                        "pairs_per_second": 160.3,
                        "ours_default": 1.25,
                    },
                ],
                "left_out": {"onnx": "not installed"},
            }
        ],
        "default_dtype": "bfloat16",
        "peer_versions": {"openvino": {"nncf": "3.4.0", "openvino": "2026.4.1"}},
    },
    "speed-models": {
        "passages": 40,
        "words": [12, 208],
        "mean_words": 58.6,
        "keep_ratio": 0.5,
        "batch_sizes": [8, 32],
        "default_batch_size": 32,
        "models": [
            {
                "name": "bert",
                "like": "BERT base",
                "parameters": 86_042_113,
                "dtypes": [
                    {
                        "dtype": "float32",
                        "against_best": 1.253,
                        "against_default": 1.5,
                        "narrow_against_best": 2.0,
                        "best_batch_size": 8,
                        "pairs_per_second": {"full": 12.53, "narrow": 20.0, "best": 10.0, "default": 8.3},
                        "peers": [
                            {
                                "name": "CrossEncoder, ONNX",
                                "dtype": "int8",
                                "batch_size": 8,
                                "pairs_per_second": 11.11,
                                "against": 1.125,
                                "narrow_against": 1.8,
                            }
                        ],
                    }
                ],
                "left_out": {"openvino": "not installed"},
            }
        ],
    },
    "elastic": {
        "metric": "nDCG@10",
        "collections": {"birds": {"queries": 7}},
        "full": {
            "queries": 3,
            "largest_difference": 6e-06,
            "cross_encoder": {"birds": 0.8},
            "this_package": {"birds": 0.8},
        },
        "widths": [
            {"keep_ratio": "1", "quality": 0.8, "kept": 1.0, "flops": 1.0},
            {"keep_ratio": "3:0.5", "quality": 0.72, "kept": 0.9, "flops": 0.75},
        ],
        "training": {"rows": 1600, "vertical_steps": 2, "horizontal_steps": 1, "rank": 32, "seconds": 600},
        "settings": [
            {"depth": 6, "keep_ratio": 1.0, "quality": 0.8, "kept": 1.0, "without": 0.8, "kept_without": 1.0},
            {"depth": 4, "keep_ratio": 0.5, "quality": 0.76, "kept": 0.95, "without": 0.4, "kept_without": 0.5},
        ],
        "targets": [{"depth": 4, "keep_ratio": 0.5, "least": 0.97, "kept": 0.95}],
        "shallow": {"depth": 2, "variants": [{"exits": "all", "rank": 32, "kept": 0.456}]},
    },
    "calibration": {
        "fitted_on": {"collection": "birds", "queries": 7, "pairs": 7000, "relevant": 0.01},
        "collections": ["birds"],
        "settings": [
            {"depth": 6, "keep_ratio": 1.0, "error": {"birds": {"plain": 0.9, "shared": 0.02, "own": 0.01}}},
            {"depth": 3, "keep_ratio": 0.5, "error": {"birds": {"plain": 0.5, "shared": 0.04, "own": 0.03}}},
        ],
        "thresholds": [{"threshold": 0.2, "spread": {"birds": {"plain": 0.01, "shared": 0.45, "own": 0.12}}}],
    },
    "ablation": {
        "metric": "nDCG@10",
        "steps": 5,
        "queries": 4,
        "settings": [{"depth": 2, "keep_ratio": 1.0}, {"depth": 3, "keep_ratio": 0.5}],
        "variants": [
            {"name": "full recipe", "values": [0.616, 0.624], "mean": 0.62, "spread": 0.001},
            {"name": "one model for each", "values": [None, 0.63], "mean": None, "spread": None},
        ],
    },
    "adapters": {
        "metric": "nDCG@10",
        "full": {"depth": 6},
        "settings": [
            {"depth": 4, "keep_ratio": 1.0, "with": None, "without": None, "difference": -0.007},
            {"depth": 4, "keep_ratio": 0.5, "with": 0.794, "without": 0.785, "difference": 0.009},
        ],
        "mean": {"settings": 2, "with": 0.77, "without": 0.765},
    },
    "targets": {
        "summary": [
            {
                "target": "keep_quality",
                "values": [0.98, 0.9],
                "choices": 4,
                "met": 3,
                "missed": [{"collection": "trees", "value": 0.98, "got": 0.951}],
            },
        ]
    },
    "cascade": {
        "metric": "nDCG@10",
        "dtype": "bfloat16",
        "cascade": {"text": "margins 2:3,4:1", "lost": 0.1, "held_out": 0.07, "top_n": 10},
        "collections": {"birds": 7, "trees": 3},
        "quality": [
            {
                "depth": 6,
                "keep_ratio": 1.0,
                "cascade": cascade,
                "values": {"birds": 0.8 * kept, "trees": 0.7 * kept},
                "mean": 0.75 * kept,
                "kept": kept,
                "min_kept": kept,
            }
            for cascade, kept in ((False, 1.0), (True, 0.999))
        ],
        "time": [
            {
                "collection": "birds",
                "queries": 5,
                "candidates": 100,
                "full_ms_per_query": 300.0,
                "cascade": {"share": 0.52, "median": 0.51, "p10": 0.4, "p90": 0.6, "flops": 0.46},
                "fixed": [
                    {"depth": 4, "keep_ratio": 0.5, "share": 0.48, "median": 0.48, "p10": 0.47, "p90": 0.5},
                ],
                "overhead_of_dropping_nothing": 0.021,
            }
        ],
        "transfer": [{"held_out": "birds", "stages": "2:3.1,4:1", "lost": 0.06, "kept": 0.998, "flops": 0.47}],
    },
    "memory": {
        "passages": 10,
        "tokens": 512,
        "runs": 3,
        "settings": [{"depth": 6, "keep_ratio": 1.0, "dtype": "float32", "loaded_mib": 500, "peak_mib": 570}],
    },
    "batch": {
        "rows": 2000,
        "partition_rows": 100,
        "document_words": [20, 100],
        "mean_document_words": 60.4,
        "dtype": "float32",
        "layers": 1,
        "hidden_size": 16,
        "formats": [
            {
                "format": "jsonl",
                "input_mib": 1,
                "rows_per_second": 1234.5,
                "machinery_rows_per_second": 56789.0,
                "rss_mib": [500, 512, 511],
                "peak_mib": 512,
            }
        ],
        "resume": {"rows": 400, "parts": 4, "parts_at_kill": 2, "parts_kept": 2, "identical_parts": 4},
        "ray": {
            "model": "mini",
            "depth": 2,
            "keep_ratio": 0.25,
            "actors": 2,
            "rows": 100,
            "engines": [{"engine": "ray", "pairs_per_second": 321.4, "seconds": 12.3}],
            "largest_difference": 2e-07,
        },
    },
    "gpu": {
        "device": {"name": "Abacus 9000"},
        "speed": [
            {
                "name": "small, 60 words",
                "like": "small",
                "words": 60,
                "dtype": "bfloat16",
                "settings": [
                    {
                        "depth": 6,
                        "keep_ratio": 1.0,
                        "pairs_per_second": 20000.0,
                        "time": 1.0,
                        "flops": 1.0,
                        "share_of_matmul": 0.1,
                    },
                    {
                        "depth": 4,
                        "keep_ratio": 0.5,
                        "pairs_per_second": 30000.0,
                        "time": 0.67,
                        "flops": 0.5,
                        "share_of_matmul": 0.05,
                    },
                    {
                        "depth": 2,
                        "keep_ratio": 0.25,
                        "pairs_per_second": 40000.0,
                        "time": 0.5,
                        "flops": 0.25,
                        "share_of_matmul": 0.05,
                    },
                ],
                "peers": [{"name": "CrossEncoder, sdpa", "batch_size": 512, "pairs_per_second": 5000.0}],
                "one_batch": {"pairs_per_second": 40000.0},
            }
        ],
        "budget": [
            {
                "name": "small",
                "best": 32768,
                "budgets": [{"batch_tokens": 32768, "pairs_per_second": 16000.0}],
                "with_padding": {"pairs_per_second": 9000.0},
            }
        ],
        "memory": [{"name": "small, keep ratio 1", "passages": 1000, "loaded_mib": 400, "peak_mib": 1500}],
    },
    "cold-start": {"runs": 5, "seconds": 4.9, "parts": [{"name": "import torch", "seconds": 2.5}]},
    "training": {
        "pairs_per_step": 64,
        "stages": [{"stage": "distill", "pairs_per_second": 37.0, "step_seconds": 1.73, "peak_mib": 4096}],
    },
    "precision": {
        "metric": "nDCG@10",
        "rows": [
            {
                "collection": "birds",
                "depth": 6,
                "keep_ratio": 1.0,
                "float32": 0.8,
                "bfloat16": 0.7982,
                "tau": 0.9951,
            }
        ],
    },
    "long-documents": {
        "metric": "nDCG@10",
        "model": "mini",
        "dtype": "float32",
        "max_length": 512,
        "collection": {
            "queries": 7,
            "documents": 9,
            "candidates": 3.5,
            "with_relevant_candidate": 0.96,
            "tokens": {"mean": 1300, "least": 600, "most": 2000},
            "over_512_tokens": 1.0,
        },
        "cascade": "auto",
        "ways": [
            {"name": "cut", "quality": 0.5, "ms_per_query": 100.4},
            {"name": "split", "quality": 0.75, "ms_per_query": 400.0},
        ],
        "sample": 10,
        "windows": [
            {"window": None, "stride": 0.5, "windows_per_document": 4.5, "quality": 0.75, "ms_per_query": 400.0},
            {"window": 128, "stride": 1.0, "windows_per_document": 12.0, "quality": 0.7, "ms_per_query": 200.0},
        ],
    },
    "deadlines": {
        "metric": "nDCG@10",
        "model": "mini",
        "dtype": "float32",
        "collection": "birds",
        "queries": 7,
        "candidates": 100.0,
        "first_stage": 0.5,
        "deadlines": [
            {
                "deadline_ms": 10.0,
                "ms": {"p50": 12.0, "p95": 13.0, "p99": 14.0},
                "overshoot_ms": {"p50": 2.0, "p95": 3.0, "p99": 4.0},
                "complete": 0.0,
                "shares": {"2": 0.25, "0": 0.75},
                "quality": 0.6,
            },
            {
                "deadline_ms": None,
                "ms": {"p50": 300.0, "p95": 310.0, "p99": 320.0},
                "complete": 1.0,
                "shares": {"6": 1.0},
                "quality": 0.8,
            },
        ],
    },
    "serving": {
        "model": "mini",
        "dtype": "float32",
        "clients": 64,
        "documents": [10, 200],
        "mean_documents": 63.4,
        "seconds": 121.5,
        "turns": 3,
        "contenders": [
            {
                "name": "mrr serve",
                "ours": 1.0,
                "pairs_per_second": 500.4,
                "ms": {"p50": 7000.0, "p99": 21_000.4},
                "answers": {"200": 1000},
            },
            {
                "name": "FastAPI and CrossEncoder, 1 thread",
                "ours": 2.345,
                "pairs_per_second": 213.0,
                "ms": {"p50": 18_000.0, "p99": 19_000.0},
                "answers": {"200": 420, "500": 3},
            },
        ],
        "checked": {"answers": 1000, "lost": 0, "doubled": 0, "mixed_up": 0, "largest_difference": 3e-07},
        "rss_mib": {"after_seconds": 10, "first": 700.0, "last": 702.0},
        "client_cpu": 0.0123,
        "shedding": {
            "load": 1.3,
            "seconds": 60.0,
            "requests_per_second": 10.25,
            "servers": [
                {
                    "name": "mrr serve --shed auto",
                    "against_idle": {"p50": 1.54, "p99": 2.5},
                    "slowdown": {"p50": 1.5, "p99": 4.0},
                    "ms": {"p50": 154.0, "p99": 1250.0},
                    "idle_ms": {"p50": 100.0, "p99": 500.0},
                    "settings": {"6@1": 0.75, "4@0.5": 0.25},
                    "answers": {"200": 600},
                    "lost": 0,
                    "drained_after_seconds": 0.4,
                }
            ],
        },
    },
}
EXPECTED = {
    "sizes": [
        "| size | nDCG@10 | of full size | time | FLOPs |",
        "| `depth=4, keep_ratio=0.5` | 0.740 | 98.7% | 33% | 27% |",
        '| `cascade="auto"` | 0.749 | 99.9% | 52% | 46% |',
    ],
    "quality": [
        "| BM25 | 0.500 | 0.600 | 0.550 |  |",
        "| `depth=3, keep_ratio=0.5` | 0.770* | 0.700 | 0.735 | 98.0% |",
    ],
    "calibration": ["| full size | 0.900 → 0.010 |", "| full size's map for all | 0.45 |"],
    "ablation": ["| full recipe | 61.6 | 62.4 | 62.0 ± 0.1 |", "| one model for each |  | 63.0 |  |"],
    "adapters": ["| `depth=4` |  |  | -0.007 |", "| mean of 2 compressed settings | 0.770 | 0.765 | +0.005 |"],
    "targets": ["| `keep_quality` = 0.98, 0.9 | 4 | 3 | trees: 0.98 asked, 0.95 got |"],
    "cascade": [
        '| `cascade="auto"` | 0.799 | 0.699 | 0.749 | 99.9% | 99.9% |',
        '| `cascade="auto"`, birds | 52% | 51% | 40% to 60% | 46% | 99.9% |',
        "| `depth=4, keep_ratio=0.5`, birds | 48% | 48% | 47% to 50% |  | 98.7% |",
        "| birds | 2:3.1,4:1 | 6.0% | 99.8% | 47% |",
    ],
    "speed": [
        "| CrossEncoder | float32 | 32 | 50 | 2.00 × | 4.00 × |",
        "Linear layers that torch quantizes dynamically, at full size: 0.80 to 0.80 times as many pairs a second as in "
        "bfloat16, 2.00 to 2.00 times as many as in float32.",
        "Left out, onnx: not installed",
        "Backends: nncf 3.4.0, openvino 2026.4.1.",
    ],
    "speed-models": [
        "| bert (86M) | float32 | 1.25 × | 1.50 × | 2.00 × | 12.5 | 10.0 (8) |",
        "| bert | CrossEncoder, ONNX, int8 | 11.1 (8) | float32 | 1.12 × | 1.80 × |",
        "bert, left out, openvino: not installed",
    ],
    "elastic": [
        "| this package, full size | 0.8000 |",
        "| keep ratio 3:0.5 | 0.720 | 90.0% | 75% |",
        "| `depth=4, keep_ratio=0.5` | 0.760 | 0.400 | 95.0% | 50.0% |",
        "| all | 32 | 45.6% |",
        "`depth=4, keep_ratio=0.5` was to keep 97% and keeps 95.0%.",
    ],
    "time-share": ["| `depth=4, keep_ratio=0.5` | 300 | 33% | 30% | 27% | 1.12 |"],
    "memory": ["| full size | float32 | 500 MiB | 570 MiB |"],
    "gpu": [
        "| small, 60 words | full size | 20,000 | 5,000 (512) | 100% | 100% | 10% | 40,000 |",
        "| small, 60 words | `depth=4, keep_ratio=0.5` | 30,000 |  | 67% | 50% | 5% |  |",
    ],
    "batch": [
        "| JSON lines | 1 MiB | 1,234 | 56,789 | 500 MiB | 511 MiB | 512 MiB |",
        "| ray | 321 | 12 |",
    ],
    "sizing": [
        "| mini | 60 | bfloat16 | 180 |  | 540 | 900 |",
        "| BERT base | 59 (mean) | float32 | 22.6 | 36 |  |  |",
        "| small | 60 | bfloat16 | 72,000 | 108,000 | 144,000 |",
    ],
    "gpu-budgets": ["| small | 32,768 | 32k:16,000 | 9,000 |"],
    "gpu-memory": ["| small, keep ratio 1 | 1,000 | 400 MiB | 1,500 MiB |"],
    "cold-start": ["| import torch | 2.50 |", "| from the start to the ranking | 4.90 |"],
    "training": ["| distill | 37 | 1.73 | 4.0 GiB |"],
    "long-documents": [
        "| cut | 0.500 | 100 | 25% |",
        "| as many as fit | 0.5 | 4.5 | 0.750 | 400 |",
        "| 128 | 1 | 12.0 | 0.700 | 200 |",
    ],
    "deadlines": [
        "| 10 ms | 2.0 / 3.0 / 4.0 | 25% at 2, 75% at 0 | 0.600 |",
        "| full size, 300 ms |  | 100% at 6 | 0.800 |",
    ],
    "serving": [
        "| FastAPI and CrossEncoder, 1 thread | 2.35 × | 213 | 18,000 / 19,000 | 200: 420, 500: 3 |",
        "| `mrr serve --shed auto` | 1.5 × / 2.5 × | 154 / 1,250 | 100 / 500 | 75% 6@1, 25% 4@0.5 | 200: 600 |",
    ],
    "precision": ["| birds | full size | 0.8000 | 0.7982 | -0.0018 | 0.9951 |"],
}
"""Lines that each table must have."""


def invented(name: str, **changes: Any) -> BenchmarkResult:
    fields = {
        "name": name,
        "what": "Invented figures.",
        "machine": Machine(processor="Abacus", features=("beads",), cores=2),
        "versions": {"torch": "2.6"},
        "commit": "0" * 40,
        "command": "python benchmarks/invented.py",
        "date": "2026-01-02",
        "results": INVENTED[name],
    }
    return BenchmarkResult.model_validate({**fields, **changes})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with every result file and no page."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for name in INVENTED:
        (results / f"{name}.json").write_text(invented(name).model_dump_json(), encoding="utf-8")
    return tmp_path


def marked(name: str, content: str = "") -> str:
    return f"<!-- results: {name} -->\n{content}<!-- /results -->\n"


def test_the_projects_pages_show_the_result_files() -> None:
    stale = [
        str(file.relative_to(ROOT))
        for file, text in render(ROOT).items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run `make results`: {stale}"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_result_file_is_named_after_its_script_and_renders(file: Path) -> None:
    assert read_result(file).name == file.stem
    assert (ROOT / command_of(file.stem).split()[1]).is_file()
    for table in TABLES.values():
        if table.sources == (file.stem,):
            assert table.render(ResultFiles(RESULTS)).count("\n|") >= 2  # the rule and a row


def test_every_table_has_a_script_for_its_sources() -> None:
    for source in {source for table in TABLES.values() for source in table.sources}:
        assert (ROOT / command_of(source).split()[1]).is_file()


@pytest.mark.parametrize("name", list(TABLES))
def test_a_marker_becomes_its_table(name: str, root: Path) -> None:
    page = "\n".join(["before\n", marked(name, "old\n"), "after\n"])
    (root / "docs" / "page.md").write_text(page, encoding="utf-8")
    [text] = render(root).values()
    lines = text.splitlines()
    assert lines[:2] == ["before", ""]
    assert lines[-2:] == ["", "after"]
    assert "old" not in lines
    assert [line for line in EXPECTED[name] if line not in lines] == []
    assert "Measured on 2026-01-02, Abacus, beads, 2 cores" in text


def test_rendering_again_changes_nothing(root: Path) -> None:
    (root / "README.md").write_text("# A\n\n" + "\n".join(map(marked, TABLES)) + "\nend", encoding="utf-8")
    [once] = render(root).values()
    assert render_page(once, ResultFiles(root / "benchmarks" / "results")) == once
    assert once.endswith("\nend")


def test_pages_without_markers_are_left_alone(root: Path) -> None:
    (root / "README.md").write_text("# A\n", encoding="utf-8")
    (root / "docs" / "page.md").write_text("Write `<!-- results` here.\n", encoding="utf-8")
    assert render(root) == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (marked("sped"), "'sped'"),
        ("<!-- results: speed -->\n", "speed"),
        ("<!-- results: speed -->\n" + marked("memory"), "speed"),
        ("text\n<!-- /results -->\n<!-- results: speed -->\n<!-- /results -->\n", "/results"),
    ],
)
def test_a_wrong_marker_is_an_error_that_names_it(text: str, named: str, root: Path) -> None:
    (root / "docs" / "page.md").write_text(text, encoding="utf-8")
    with pytest.raises(RenderError, match=f"docs/page.md.*{re.escape(named)}"):
        render(root)


def test_a_missing_result_file_is_an_error_that_names_its_script(root: Path) -> None:
    (root / "README.md").write_text(marked("cold-start"), encoding="utf-8")
    (root / "benchmarks" / "results" / "cold-start.json").unlink()
    with pytest.raises(RenderError, match=r"benchmarks/cold_start\.py"):
        render(root)


@pytest.mark.parametrize("change", [{"unknown": 1}, {"commit": "main"}, {"results": {}}])
def test_a_result_file_that_lacks_a_figure_is_an_error(change: dict[str, Any], root: Path) -> None:
    (root / "README.md").write_text(marked("memory"), encoding="utf-8")
    file = root / "benchmarks" / "results" / "memory.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(RenderError, match="memory"):
        render(root)


def test_the_picture_is_drawn_if_a_page_links_to_it(root: Path) -> None:
    (root / "README.md").write_text("![frontier](docs/images/frontier.svg)\n", encoding="utf-8")
    rendered = render(root)
    assert list(rendered) == [root / PICTURE]
    svg = ElementTree.fromstring(rendered[root / PICTURE])
    texts = ["".join(each.itertext()) for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("BM25") == 2
    assert {"depth", "6", "4", "3", "2", "keep_ratio", "1", "0.5", "0.25"} <= set(texts)
    titles = [each.text for each in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert titles.count("depth 4, keep_ratio 0.5: 0.740") == 2  # the panels of time and FLOPs
    assert titles.count('depth 6, keep_ratio 1, cascade="auto": 0.749') == texts.count('cascade="auto"') == 2


def test_the_picture_places_better_settings_higher_and_cheaper_ones_to_the_left(root: Path) -> None:
    (root / "README.md").write_text("docs/images/frontier.svg", encoding="utf-8")
    [text] = render(root).values()
    lines = re.findall(r'<polyline points="([^" ]+) ([^" ]+)"', text)  # depth 4 in both panels
    assert len(lines) == 2
    for line in lines:
        (wide_x, wide_y), (narrow_x, narrow_y) = (map(float, point.split(",")) for point in line)
        assert narrow_x < wide_x
        assert narrow_y > wide_y


@pytest.mark.slow
def test_the_command_checks_writes_and_names_errors(root: Path) -> None:
    page = root / "docs" / "page.md"
    page.write_text(marked("memory"), encoding="utf-8")

    def command(*flags: str) -> subprocess.CompletedProcess[str]:
        script = [sys.executable, str(ROOT / "benchmarks" / "render.py"), "--root", str(root), *flags]
        return subprocess.run(script, capture_output=True, text=True, check=False)

    assert command("--check").returncode == 1
    assert page.read_text(encoding="utf-8") == marked("memory")
    assert command().stdout == "rendered: docs/page.md\n"
    assert command("--check").returncode == 0
    page.write_text(marked("sped"), encoding="utf-8")
    failed = command()
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: docs/page.md: no table is called 'sped'")


def test_a_row_of_another_length_is_an_error(root: Path) -> None:
    broken = INVENTED["ablation"] | {"settings": INVENTED["ablation"]["settings"][:1]}
    file = root / "benchmarks" / "results" / "ablation.json"
    file.write_text(invented("ablation", results=broken).model_dump_json(), encoding="utf-8")
    table: Table = TABLES["ablation"]
    with pytest.raises(RenderError, match="cells"):
        table.render(ResultFiles(file.parent))
