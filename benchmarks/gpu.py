"""The GPU kit: all that a few minutes on a GPU are needed for, in one command.

    python benchmarks/gpu.py --minutes 6 --output outputs/gpu    # `make gpu`
    python benchmarks/gpu.py --tiny --output outputs/gpu         # tiny models on the CPU: exercises the kit

In order: correctness on the device; the best batch budget, for the table that `mrr_model/inference/device.py` reads;
speed beside sentence-transformers' CrossEncoder on the same weights, in bfloat16; where the time of a call goes; and
peak memory. All models but the shipped one and the reference data have random weights, in published shapes.

Needs torch, transformers, sentence-transformers and this package's other requirements, and no network. Writes to the
output folder alone: gpu.json after every item, so that a run that is cut off keeps what it has, batch_tokens.json and
profile.txt. Each step has a share of the minutes; what no longer fits is recorded as skipped. Ends with exit code 1 if
a check did not pass or an item failed.
"""

import argparse
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A bare checkout will do: nothing needs installing.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from gpu_budget import sweep
from gpu_checks import check
from gpu_memory import measure
from gpu_profile import profile_calls
from gpu_run import MATRIX_SIZE, Run, matrix_rate
from gpu_shapes import SHAPES, VOCABULARY
from gpu_speed import compare
from gpu_tables import summary
from transformers.utils import logging

TINY_MATRIX = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="how long the run may take (default: 6)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--commit", type=commit, help="commit of the code, 40 hex digits, if the checkout has no .git")
    parser.add_argument("--tiny", action="store_true", help="run tiny models on the CPU, to exercise the kit")
    arguments = parser.parse_args()
    if not arguments.tiny and arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: no CUDA device is here. To exercise the kit on the CPU, give --tiny.")
    device = torch.device("cpu" if arguments.tiny else arguments.device)
    run = Run(arguments.output, device, arguments.minutes, arguments.tiny, arguments.commit)
    sys.exit(0 if measured(run) else 1)


def commit(text: str) -> str:
    """The commit that an argument names, as result files hold it."""
    if not re.fullmatch("[0-9a-f]{40}", text):
        raise argparse.ArgumentTypeError(f"must be a commit's 40 hex digits, in lower case, got {text!r}")
    return text


def measured(run: Run) -> bool:
    """Run all steps and print their tables; returns whether every check passed and nothing failed."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=r"\d+ of \d+ documents", category=UserWarning)  # cutting is intended
    tempfile.tempdir = str(run.output)
    shapes = {name: shape.tiny() for name, shape in SHAPES.items()} if run.tiny else SHAPES
    rate = matrix_rate(run.device, TINY_MATRIX if run.tiny else MATRIX_SIZE)
    run.results |= {"matrix_rate": round(rate), "vocabulary": VOCABULARY}
    steps = {
        "correctness": lambda: check(run),
        "budget": lambda: sweep(run, shapes, rate),
        "speed": lambda: compare(run, shapes, rate),
        "profile": lambda: profile_calls(run, shapes),
        "memory": lambda: measure(run, shapes, rate),
    }
    for name, step in steps.items():
        run.begin(name)
        run.attempt(name, step)
        run.end()
    print("\n" + summary(run.save()), flush=True)
    return not run.results["failed"] and all(row["passed"] for row in run.results["correctness"])


if __name__ == "__main__":
    main()
