"""Everything there is to see on a machine with an NVIDIA GPU, in one command.

    python benchmarks/gpu.py

Builds dmlfast in place for the device, runs the tests that need one, the sanitizers, the checks of
reproducibility and exactness, CPU tests at every instruction set level, and the timings; writes
all of it to one JSON file after every stage, and prints a short table last. Needs a CUDA build of
torch, nvcc, cmake, ninja, pybind11, numpy and pytest, and no network. BENCHMARKS.md says more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from on_gpu.processes import ROOT, module, run
from on_gpu.report import table
from on_gpu.run import Run, failed
from on_gpu.stages import STAGES


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    machine = run(module("device"), 90).answer()
    if machine is None or "device" not in machine:
        reason = (machine or {}).get("reason", "torch cannot be imported or does not answer")
        print(f"gpu.py needs an NVIDIA GPU and a CUDA build of torch: {reason}.", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    whole = Run(
        path=options.out,
        machine=machine,
        commit=options.commit or commit(),
        command=" ".join(["python", *sys.argv]),
        quick=options.quick,
        seconds=60 * options.minutes,
        say=lambda line: print(line, flush=True),
    )
    results = whole.all({name: STAGES[name] for name in STAGES if name in options.stages})
    print(f"\n{table(results)}\n\n{options.out}")
    return 1 if failed(results) else 0


def parse(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--stages",
        type=stage_names,
        default=list(STAGES),
        help=f"which, with commas between them: {','.join(STAGES)}",
    )
    default = ROOT / "benchmarks" / "results" / "gpu.json"
    parser.add_argument("--out", type=Path, default=default, help="the JSON file (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the command out")
    parser.add_argument(
        "--minutes", type=float, default=8.7, help="for all stages together (%(default)s)"
    )
    parser.add_argument("--commit", help="of the sources, for a copy that is no git checkout")
    return parser.parse_args(arguments)


def stage_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"no such stage: {', '.join(unknown)}")
    return names


def commit() -> str:
    """Of this checkout, as git describes it; what DMLFAST_COMMIT says where there is no git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("DMLFAST_COMMIT", "unknown")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
