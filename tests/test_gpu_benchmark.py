"""What `benchmarks/gpu.py` makes of what it runs; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gpu
import pytest
import torch
from on_gpu import device
from on_gpu.bars import BARS, Bar, figures, judge
from on_gpu.cases import CASES
from on_gpu.parsing import parse_pytest, parse_sanitizer
from on_gpu.processes import ROOT, Finished, environment, run
from on_gpu.report import table, write_json
from on_gpu.run import Run, failed
from on_gpu.stages import ALL_CALLED, STAGES, Stage, architecture, cuda_test_files
from on_gpu.watch import watch

# --- what other programs say ----------------------------------------------------------------------

HEAD = "collected 3 items\n\n"
LINES = """tests/test_cuda.py::test_a PASSED [ 33%]
tests/test_cuda.py::test_b[x-1] FAILED [ 66%]
tests/test_cuda.py::test_c SKIPPED (no) [100%]
"""


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("===== 46 passed in 12.30s =====", (46, 0, 0, 0, True)),
        ("=== 1 failed, 45 passed, 2 skipped in 70.1s (0:01:10) ===", (45, 1, 2, 0, True)),
        ("=== 3 passed, 1 deselected, 4 warnings, 1 error in 1.00s ===", (3, 0, 0, 1, True)),
        ("=== 2 errors in 0.50s ===", (0, 0, 0, 2, True)),
        (HEAD + LINES + "tests/test_cuda.py::test_d ", (1, 1, 1, 0, False)),
        ("", (0, 0, 0, 0, False)),
    ],
)
def test_numbers_of_tests_are_read_from_pytest_s_output(output, counts):
    tests = parse_pytest(output)
    names = ("passed", "failed", "skipped", "errors", "complete")
    assert tuple(tests[name] for name in names) == counts


def test_the_tests_that_failed_are_named():
    output = (
        LINES + "FAILED tests/test_cuda.py::test_b[x-1] - assert 1 == 2\n=== 1 failed in 1.0s ==="
    )
    assert parse_pytest(output)["failures"] == [
        "FAILED tests/test_cuda.py::test_b[x-1] - assert 1 == 2"
    ]


REPORT = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void dmlfast::cuda::select<128>(float *)+0x70
=========     by thread (3,0,0) in block (0,0,0)
=========
========= Invalid __global__ read of size 4 bytes
=========     at void at::native::sort(float *)+0x70
=========
"""


@pytest.mark.parametrize(
    ("output", "status", "errors", "in_dmlfast"),
    [
        (f"{ALL_CALLED}\n========= ERROR SUMMARY: 0 errors\n", "clean", 0, 0),
        (f"{REPORT}{ALL_CALLED}\n========= ERROR SUMMARY: 2 errors\n", "errors", 2, 1),
        ("========= ERROR SUMMARY: 1 error\n", "errors", 1, 0),
        ("Traceback\n========= ERROR SUMMARY: 0 errors\n", "unfinished", 0, 0),
        (ALL_CALLED, "unfinished", None, 0),
        ("========= Error: Device not supported. Please refer ...\n", "not available", None, 0),
        (
            ALL_CALLED + "\n========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)",
            "errors",
            1,
            0,
        ),
        (
            ALL_CALLED
            + "\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
            "clean",
            0,
            0,
        ),
    ],
)
def test_errors_are_read_from_the_sanitizer_s_output(output, status, errors, in_dmlfast):
    found = parse_sanitizer(output, ALL_CALLED)
    assert (found["status"], found["errors"], found["in_dmlfast"]) == (status, errors, in_dmlfast)


# --- processes ------------------------------------------------------------------------------------


def test_a_process_that_hangs_is_ended_with_its_children_and_its_output_stays():
    code = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    done = run([sys.executable, "-c", code], 2.0)
    assert done.status == "timed out"
    state = Path(f"/proc/{int(done.output)}/stat")
    end = time.monotonic() + 10
    # Whoever adopts a child may leave it a zombie.
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.01)
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ([sys.executable, "-c", "pass"], "passed"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "failed"),
        (["/no/such/program"], "failed"),
    ],
)
def test_how_a_process_ended_is_told(command, status):
    assert run(command, 30).status == status


@pytest.mark.parametrize(
    ("output", "answer"),
    [('noise\n{"a": 1}\nmore', {"a": 1}), ("{broken", None), ("noise", None)],
)
def test_an_answer_is_the_last_line_in_json(output, answer):
    assert Finished("passed", 0, 0.0, output).answer() == answer


# --- the process that times -----------------------------------------------------------------------

# Prepares "good" and "bad" of each case and then measures both; `bad` does what the test wants.
WORKER = """
import json, os, sys, time
events, excluded, bad, *cases = sys.argv[1:]
excluded = json.loads(excluded)
def tell(**event):
    with open(events, "a") as file:
        file.write(json.dumps(event) + "\\n")
for case in cases:
    left_out = excluded.get(case, {})
    for who in ("good", "bad"):
        if who not in left_out:
            tell(doing="preparing", case=case, contestant=who, deadline=1.5)
            if who == "bad" and case == "a":
                exec(bad)
    tell(doing="timing", case=case, deadline=1.5)
    if bad == "timing = 0" and case == "a":
        os._exit(3)
    tell(doing="done", case=case, result={"without": left_out})
"""


def watched(bad, limit=60.0):
    kept = []

    def command(waiting, excluded, events):
        return [sys.executable, "-c", WORKER, str(events), json.dumps(excluded), bad, *waiting]

    results = watch(command, ["a", "b"], limit, lambda case, result: kept.append(case))
    assert sorted(kept) == ["a", "b"]
    return results


def test_a_process_that_does_its_work_is_left_alone():
    assert watched("pass") == {"a": {"without": {}}, "b": {"without": {}}}


@pytest.mark.parametrize(
    ("bad", "status"), [("os._exit(3)", "failed"), ("time.sleep(60)", "too slow")]
)
def test_a_contestant_that_dies_or_hangs_is_left_out_and_the_rest_measured(bad, status):
    results = watched(bad)
    assert results["a"]["without"]["bad"]["status"] == status
    assert results["b"] == {"without": {}}


def test_a_case_whose_timing_dies_is_left_out():
    results = watched("timing = 0")
    assert "exit code" in results["a"]["message"]
    assert results["b"] == {"without": {}}


def test_without_time_no_case_is_measured():
    assert watched("pass", limit=0.0)["b"] == {"message": "no time left"}


def test_a_process_that_cannot_start_ends_the_watch():
    results = watch(lambda *_: [sys.executable, "-c", "raise SystemExit(1)"], ["a"], 30, print)
    assert "exit code 1" in results["a"]["message"]


# --- bars and report ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "value", "met", "aim_met"),
    [
        ("<=", 3.0, False, False),
        ("<=", 2.0, True, False),
        ("<=", 1.0, True, True),
        (">=", 1.0, False, True),
        ("<=", None, None, None),
    ],
)
def test_a_figure_is_held_against_bar_and_aim(relation, value, met, aim_met):
    (row,) = judge({"f": value}, [Bar("f", "title", relation, 2.0, 1.0)])
    assert (row["met"], row["aim_met"]) == (met, aim_met)


def contestant(median, **more):
    return {"status": "measured", "message": "", "median": median, **more}


def stages_of_a_run():
    def case(rows=32768, **contestants):
        named = {name.replace("_", " "): value for name, value in contestants.items()}
        return {"rows": rows, "dimensions": 128, "contestants": named}

    product = {"product, bfloat16": contestant(1e-3)}
    eps = case(kernel=contestant(0.5e-3, extra_over_x=2.5))
    eps["contestants"] |= product
    known = case(131072)
    known["contestants"] = {"kernel, order known": contestant(5e-5)}
    peers = case(16384, kernel=contestant(1e-3))
    peers["contestants"]["pytorch-metric-learning"] = contestant(0.08)
    collapsed = case(
        ordinary=contestant(1e-3), one_point=contestant(2e-3), two_points=contestant(6e-3)
    )
    share = case(kernel=contestant(1e-3, operations_per_second=4e14))
    tests = {"passed": 46, "failed": 0, "errors": 0, "skipped": 1, "complete": True}
    tools = {"memcheck": {"status": "clean", "errors": 0}}
    tools["racecheck"] = {"status": "unfinished", "errors": 0}
    speed_cases = {
        "ceilings": {
            "bytes_per_second": 3e12,
            "operations_per_second": {"float16": 8e14, "float32": 5e13},
        },
        "hardest_negative_128": share,
        "hardest_negative_256": share,
        "assignment": share,
        "eps_clustered": eps,
        "eps_random": eps,
        "multi_similarity": case(kernel=contestant(3e-3, extra_over_x=7.0)),
        "nearest_positive": known,
        "eps_collapsed": collapsed,
        "eps_16384": peers,
        "supcon": {"message": "failed: exit code 1"},
        "eps_largest": case(1048576, kernel=contestant(1.0)),
    }
    return {
        "build": {"status": "passed", "seconds": 70.0, "summary": "for 9.0a alone"},
        "test": {"status": "passed", "seconds": 30.0, "tests": tests},
        "sanitizer": {"status": "failed", "seconds": 75.0, "tools": tools},
        "determinism": {"status": "passed", "seconds": 10.0, "share": 1.0},
        "exactness": {"status": "passed", "seconds": 10.0, "share": 0.99999},
        "speed": {"status": "failed", "seconds": 200.0, "cases": speed_cases},
    }


def test_the_figures_are_read_from_the_stages():
    found = figures(stages_of_a_run())
    expected = {
        "failed_tests": 0,
        "memcheck_errors": 0,
        "racecheck_errors": None,  # the program did not come to its end
        "reproducible": 1.0,
        "exact": 0.99999,
        "hardest_negative_128": 0.5,
        "hardest_negative_256": 0.5,
        "assignment": 0.5,
        "eps_clustered": 0.5e-3,
        "eps_clustered_to_product": 0.5,
        "eps_random": 0.5e-3,
        "multi_similarity": 3e-3,
        "nearest_positive": 5e-5,
        "eps_to_peer": 80.0,
        "collapsed": 6.0,
        "largest": 1.0,
        "eps_memory": 2.5,
        "multi_similarity_memory": 7.0,
    }
    assert found == pytest.approx(expected)


def test_every_bar_has_its_figure_and_every_figure_its_bar():
    assert [bar.figure for bar in BARS] == list(figures({}))


def test_nothing_measured_meets_no_bar():
    assert {row["met"] for row in judge(figures({}))} == {None}


def test_tests_that_were_all_skipped_meet_no_bar():
    stages = stages_of_a_run()
    stages["test"]["tests"] |= {"passed": 0, "skipped": 47}
    assert figures(stages)["failed_tests"] is None


@pytest.fixture
def whole(tmp_path):
    machine = {"device": "NVIDIA H100", "driver": "580", "torch": "2.11"}
    path = tmp_path / "gpu.json"
    return Run(path, machine, "0b1f809", "python gpu.py", False, 500.0, say=lambda line: None)


def test_the_table_is_short_and_says_what_was_missed(whole):
    whole.stages = stages_of_a_run()
    for name in CASES:
        whole.stages["speed"]["cases"].setdefault(name, {"message": "no time left"})
    lines = table(whole.results(True)).splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 140
    assert any("MISSED" in line and "collapsed" in line for line in lines)
    # What is almost exact is not exact.
    assert any("99.99 %" in line and "MISSED" in line for line in lines)
    assert any("not measured" in line and "racecheck" in line for line in lines)


def test_the_file_holds_everything_even_numbers_that_json_has_not(whole):
    whole.stages = {"speed": {"status": "passed", "seconds": float("nan"), "cases": {}}}
    write_json(whole.results(True), whole.path)
    read = json.loads(whole.path.read_text(), parse_constant=pytest.fail)
    assert read["stages"]["speed"]["seconds"] == "nan"
    assert [row["figure"] for row in read["bars"]] == [bar.figure for bar in BARS]
    assert list(whole.path.parent.iterdir()) == [whole.path]


def test_small_sizes_meet_no_bar_of_speed(whole):
    whole.stages, whole.quick = stages_of_a_run(), True
    bars = {row["figure"]: row["met"] for row in whole.results(True)["bars"]}
    assert bars["eps_random"] is None
    assert bars["reproducible"] is True


# --- the run --------------------------------------------------------------------------------------


def passing(context):
    return {"status": "passed", "summary": ""}


def raising(context):
    raise OSError("no space left")


def test_the_file_is_written_anew_after_every_stage(whole):
    seen = []

    def look(context):
        seen.append(json.loads(whole.path.read_text()))
        return passing(context)

    whole.all({"first": Stage("", passing, 9, 1), "second": Stage("", look, 9, 1)})
    assert list(seen[0]["stages"]) == ["first"]
    assert not seen[0]["finished"]
    assert json.loads(whole.path.read_text())["finished"]


def test_a_stage_that_raises_does_not_cost_the_others(whole):
    results = whole.all({"bad": Stage("", raising, 9, 1), "good": Stage("", passing, 9, 1)})
    assert results["stages"]["bad"]["summary"] == "OSError: no space left"
    assert results["stages"]["good"]["status"] == "passed"
    assert failed(results) == ["bad"]


def test_without_a_build_nothing_is_run(whole):
    results = whole.all({"build": Stage("", raising, 9, 1), "test": Stage("", passing, 9, 1)})
    assert results["stages"]["test"]["status"] == "not run"


def test_a_stage_leaves_time_to_those_after_it(whole):
    limits = {}

    def look(name, context):
        limits[name] = round(context.limit)
        return passing(context)

    whole.seconds = 100
    whole.all(
        {
            "long": Stage("", partial(look, "long"), 90, 10),
            "last": Stage("", partial(look, "last"), 400, 60),
        }
    )
    assert limits == {"long": 40, "last": 100}


def test_the_stages_fit_into_the_time_there_is():
    assert sum(stage.least for stage in STAGES.values()) < 60 * gpu.parse([]).minutes < 9 * 60


@pytest.mark.parametrize(
    ("capability", "expected"), [("9.0", "9.0a"), ("8.0", "8.0"), ("12.0", "12.0")]
)
def test_the_library_is_built_for_the_device_alone(capability, expected):
    assert architecture(capability) == expected


def test_without_a_device_it_stops_with_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = json.dumps({"reason": device.missing()})
    monkeypatch.setattr(gpu, "run", lambda *_: Finished("passed", 0, 0.0, reason))
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs an NVIDIA GPU" in said
    assert "build without CUDA" in said
    assert not list(tmp_path.iterdir())


def test_a_stage_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.parse(["--stages", "build,tset"])
    assert "no such stage: tset" in capsys.readouterr().err


def test_every_test_for_a_gpu_is_in_the_files_that_are_run(tmp_path):
    # From elsewhere: pytest would import the package of the checkout, which need not be built.
    where = ["-c", str(ROOT / "pyproject.toml"), str(ROOT / "tests"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", "cuda", *where],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line.partition(":")[0] for line in done.stdout.splitlines() if "test_" in line}
    assert found == set(cuda_test_files())


def test_nothing_but_torch_numpy_and_pytest_is_needed():
    others = ("hypothesis", "pytorch_metric_learning", "rich", "click", "matplotlib", "faiss")
    files = cuda_test_files()
    assert files
    code = f"""
import sys
sys.modules.update(dict.fromkeys({others!r}))
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
import gpu, on_gpu.determinism, on_gpu.exactness, on_gpu.speed, pytest
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "-m", "cuda", *{files!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_ADDOPTS=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
