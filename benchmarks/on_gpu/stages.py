"""The stages: what each runs, within its time, and what it makes of the output."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from on_gpu.parsing import parse_pytest, parse_sanitizer
from on_gpu.processes import ROOT, Finished, module, run, run_together, tail
from on_gpu.watch import Excluded, watch

__all__ = ["STAGES", "Context", "Stage", "architecture", "cuda_test_files"]

# What `on_gpu.operators` prints when it has come to its end.
ALL_CALLED = "every operator was called"
CPU_FILES = ("test_neighbors.py", "test_contrast_sums.py", "test_pairwise.py")


@dataclass(frozen=True)
class Context:
    """What a stage is given.

    Attributes:
        limit: seconds that it may take.
        machine: what `on_gpu.device` found.
        quick: small sizes.
        keep: called with what the stage has so far; the file is then written anew.
    """

    limit: float
    machine: Mapping[str, Any]
    quick: bool
    keep: Callable[[Mapping[str, Any]], None]

    def size(self) -> list[str]:
        """The option of a module that measures."""
        return ["--quick"] if self.quick else []


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        does: in words.
        run: returns "status", "summary" and whatever else it found.
        limit: seconds that it may take.
        least: seconds that earlier stages leave to it.
    """

    does: str
    run: Callable[[Context], dict[str, Any]]
    limit: float
    least: float


def architecture(capability: str) -> str:
    """The entry of TORCH_CUDA_ARCH_LIST for a device alone: "9.0a" for capability 9.0."""
    return f"{capability}a" if capability == "9.0" else capability


def cuda_test_files() -> list[str]:
    """The test files with tests for a GPU; no other file has to be imported for them."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    # The mark itself, or a list of marks that holds it.
    return [
        str(file.relative_to(ROOT))
        for file in files
        if any(mark in file.read_text(encoding="utf-8") for mark in ("mark.cuda", "needs_gpu"))
    ]


def build(context: Context) -> dict[str, Any]:
    """Build in place, and see whether the libraries load."""
    arch = architecture(str(context.machine["capability"]))
    done = run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        context.limit,
        {"DMLFAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch},
    )
    result = _of(done, architecture=arch)
    if done.status != "passed":
        result["tail"] = tail(done.output)
        return result
    information = run(module("device", "--library"), 60).answer() or {}
    result["library"] = information
    if information.get("CUDA library") != "loaded":
        result["status"] = "failed"
        result["summary"] = f"CUDA library: {information.get('CUDA library', 'not to be had')}"
    else:
        result["summary"] = f"for {arch} alone"
    return result


def test(context: Context) -> dict[str, Any]:
    """`pytest -m cuda`."""
    result = _of_tests(run(_pytest("-m", "cuda", *cuda_test_files()), context.limit))
    if not result["tests"]["passed"]:
        # They skip themselves where they find no device or no library.
        result["status"] = "failed"
    return result


def sanitizer(context: Context) -> dict[str, Any]:
    """Memcheck and racecheck, side by side, over every operator at small sizes."""
    program = shutil.which("compute-sanitizer") or _beside_nvcc("compute-sanitizer")
    if program is None:
        return {"status": "not available", "summary": "compute-sanitizer is not installed"}
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
    # Torch asks the driver for what an older one does not have: no error of ours.
    options = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
    commands = {
        tool: (
            [program, "--tool", tool, "--print-limit", "20", *more, *module("operators")],
            variables,
        )
        for tool, more in options.items()
    }
    tools: dict[str, Any] = {}
    for tool, done in run_together(commands, context.limit).items():
        found = parse_sanitizer(done.output, ALL_CALLED)
        tools[tool] = {**found, "seconds": done.seconds, "called": done.answer()}
        if found["status"] != "clean":
            tools[tool]["tail"] = tail(done.output, 60)
    states = {tool: found["status"] for tool, found in tools.items()}
    status = "passed" if set(states.values()) == {"clean"} else "failed"
    if set(states.values()) == {"not available"}:
        status = "not available"
    summary = ", ".join(
        f"{tool} {found['status']}"
        + ("" if found["errors"] is None else f" ({found['errors']} errors)")
        for tool, found in tools.items()
    )
    return {"status": status, "summary": summary, "tools": tools}


def determinism(context: Context) -> dict[str, Any]:
    """Every operator a hundred times."""
    return _of_answer(run(module("determinism", *context.size()), context.limit))


def exactness(context: Context) -> dict[str, Any]:
    """Every selection beside float64."""
    return _of_answer(run(module("exactness", *context.size()), context.limit))


def cpu(context: Context) -> dict[str, Any]:
    """Some CPU tests at every instruction set level of this processor, side by side."""
    levels = (run(module("device", "--levels"), 30).answer() or {}).get("levels", [])
    threads = str(max(1, min(2, (os.cpu_count() or 1) // 8)))
    variables = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": threads}
    commands = {
        f"{level} {file}": (
            _pytest(f"tests/{file}"),
            {**variables, "DMLFAST_CPU_ISA": level, "CUDA_VISIBLE_DEVICES": ""},
        )
        for level in levels
        for file in CPU_FILES
    }
    runs = {
        name: _of_tests(done) for name, done in run_together(commands, context.limit - 15).items()
    }
    statuses = {result["status"] for result in runs.values()}
    status = "passed" if statuses == {"passed"} else "failed" if runs else "not available"
    passed = sum(result["tests"]["passed"] for result in runs.values())
    summary = f"{passed} passed at {', '.join(levels) or 'no level'}"
    wrong = [f"{name}: {r['summary']}" for name, r in runs.items() if r["status"] != "passed"]
    return {"status": status, "summary": "; ".join([summary, *wrong]), "runs": runs}


def speed(context: Context) -> dict[str, Any]:
    """The times, a case after the other."""
    began = time.monotonic()
    names = (run(module("speed", "--names"), 60).answer() or {}).get("cases", [])
    cases: dict[str, Any] = {}

    def keep(case: str, result: Mapping[str, Any]) -> None:
        cases[case] = result
        context.keep({"status": "running", "cases": cases})

    def command(waiting: Any, excluded: Excluded, events: Path) -> list[str]:
        options = ["--events", str(events), "--without", json.dumps(excluded), *context.size()]
        return module("speed", *options, *waiting)

    watch(command, names, context.limit - (time.monotonic() - began), keep)
    unmeasured = [name for name, case in cases.items() if "message" in case]
    summary = f"{len(cases) - len(unmeasured)} of {len(cases)} cases measured"
    status = "passed" if cases and not unmeasured else "failed"
    return {"status": status, "summary": summary, "cases": cases}


def _pytest(*arguments: str) -> list[str]:
    options = ["-v", "-rfEs", "--tb=short", "-p", "no:cacheprovider", "--color=no"]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def _beside_nvcc(name: str) -> str | None:
    path = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", name)
    return str(path) if path.is_file() else None


def _of(done: Finished, **more: Any) -> dict[str, Any]:
    return {"status": done.status, "summary": "", "process_seconds": done.seconds, **more}


def _of_tests(done: Finished) -> dict[str, Any]:
    tests = parse_pytest(done.output)
    counts = ", ".join(
        f"{tests[name]} {name}" for name in ("passed", "failed", "errors", "skipped")
    )
    result = _of(done, tests=tests)
    result["summary"] = counts if tests["complete"] else f"{counts}, then no more"
    if done.status != "passed":
        result["tail"] = tail(done.output, 80, 12000)
    return result


def _of_answer(done: Finished) -> dict[str, Any]:
    """The result of a module that answers in JSON."""
    answer = done.answer()
    if done.status != "passed" or answer is None:
        status = "failed" if done.status == "passed" else done.status
        return _of(done, **(answer or {})) | {"status": status, "tail": tail(done.output)}
    return _of(done, **answer)


STAGES = {
    "build": Stage("build dmlfast for this device alone", build, 150, 60),
    "test": Stage("tests that need a GPU", test, 80, 30),
    "sanitizer": Stage("compute-sanitizer over every operator", sanitizer, 75, 30),
    "determinism": Stage("every operator a hundred times", determinism, 60, 20),
    "exactness": Stage("selections beside float64", exactness, 35, 15),
    "cpu": Stage("CPU tests at every instruction set level", cpu, 75, 20),
    "speed": Stage("times and memory", speed, 400, 180),
}
