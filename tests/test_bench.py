"""The benchmark says what it found: figures, ratios, and why there are none. No time decides."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import tiny_contestants as tiny
import torch
from tiny_contestants import TINY

from dmlfast.benchmarking import WORKLOADS, Case, Inputs, Results, Settings, compare, read_results
from dmlfast.benchmarking.compare import interleave, peak_rate
from dmlfast.benchmarking.machine import describe_machine
from dmlfast.benchmarking.memory import peak_memory
from dmlfast.benchmarking.results import relate, timed
from dmlfast.benchmarking.table import BEGIN, END, markdown, short_table, update_table
from dmlfast.benchmarking.trial import Trials
from dmlfast.cli import main

ROOT = Path(__file__).resolve().parents[1]
CASE = Case(16, 4)

# What the allocator and the interpreter may add to a measured allocation, in MiB.
NOISE = 8.0


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    """A budget of 128 MiB, and a minute."""
    with Trials(0.125, 60.0) as trials:
        yield trials


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The tiny workload; a budget between what "hungry" needs at 64 and at 256 rows."""
    path = tmp_path_factory.mktemp("tiny") / "results.json"
    settings = Settings(rounds=4, budget_gib=0.03, deadline=60.0)
    returned = compare([TINY], settings, path, command="dmlfast bench --workload tiny")
    assert read_results(path) == returned
    return returned


def case_at(results: Results, rows: int) -> dict:
    (case,) = (case for case in results["workloads"][0]["cases"] if case["rows"] == rows)
    return case["contestants"]


# Turns


def test_contestants_take_turns_and_begin_in_turn():
    calls = []
    interleave({name: partial(calls.append, name) for name in "abc"}, 4)
    assert "".join(calls) == "abcbcacababc"


def test_every_step_of_every_round_is_timed():
    assert {name: len(s) for name, s in interleave({"a": int, "b": int}, 5).items()} == {
        "a": 5,
        "b": 5,
    }


def test_out_of_patience_a_contestant_has_played_once():
    seconds = interleave({"a": int, "b": int}, 5, patience=0.0)
    assert [len(s) for s in seconds.values()] == [1, 1]


def test_nobody_takes_no_turns():
    assert interleave({}, 3) == {}


def test_the_peak_rate_is_that_of_multiply_adds():
    assert peak_rate(steps=1000, rounds=1) > 0


# Memory


def test_peak_memory_is_that_of_the_call():
    assert peak_memory(lambda: torch.ones(64 * tiny.MIB).sum()) == pytest.approx(64, abs=NOISE)


def test_peak_memory_is_not_hidden_by_what_was_freed_before():
    # Blocks so small that the allocator keeps them for later.
    def call() -> None:
        kept = [torch.ones(tiny.MIB // 64) for _ in range(64 * 32)]
        kept.clear()

    call()
    assert peak_memory(call) == pytest.approx(32, abs=NOISE)


# Trials


def test_a_trial_measures_the_peak_of_a_step(trials):
    trial = trials.attempt(partial(tiny.allocating, 64), CASE)
    assert trial.status == "measured"
    assert trial.peak_mib == pytest.approx(64, abs=NOISE)


def test_what_is_kept_is_not_part_of_a_step(trials):
    trial = trials.attempt(partial(tiny.keeping, 64), CASE)
    assert trial.status == "measured"
    assert trial.peak_mib == pytest.approx(0, abs=NOISE)


@pytest.mark.parametrize(
    "contestant",
    [
        partial(tiny.allocating, 256),
        partial(tiny.keeping, 256),
        partial(tiny.filling, 256),
        tiny.refused,
        tiny.killed,
    ],
    ids=["briefly", "kept", "at length", "refused", "killed by the system"],
)
def test_over_the_budget_is_out_of_memory(trials, contestant):
    assert trials.attempt(contestant, CASE).status == "out of memory"


def test_over_the_budget_between_two_looks_is_out_of_memory(trials, monkeypatch):
    monkeypatch.setattr("dmlfast.benchmarking.trial._LOOK", 60.0)
    assert trials.attempt(partial(tiny.allocating, 256), CASE).status == "out of memory"


def test_over_the_deadline_is_too_slow():
    with Trials(1.0, 0.1) as trials:
        assert trials.attempt(tiny.sleeping, CASE).status == "too slow"


@pytest.mark.parametrize(
    ("contestant", "status", "message"),
    [
        (tiny.missing, "not installed", "dmlfast_has_no_such_module"),
        (tiny.broken, "failed", "ValueError: out of order | today"),
        (tiny.leaving, "failed", "exit code 3"),
    ],
)
def test_another_failure_says_what_it_was(trials, contestant, status, message):
    trial = trials.attempt(contestant, CASE)
    assert trial.status == status
    assert message in trial.message


def test_a_trial_finds_the_package_that_this_process_uses(tmp_path, monkeypatch):
    (tmp_path / "dmlfast").mkdir()
    (tmp_path / "dmlfast" / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Trials(1.0, 60.0) as trials:
        assert trials.attempt(tiny.tiny, CASE).status == "measured"


def test_after_a_failure_the_next_attempt_is_a_new_one(trials):
    trials.attempt(tiny.leaving, CASE)
    assert trials.attempt(tiny.tiny, CASE).status == "measured"


# Results


def test_the_results_say_how_they_came_about(results):
    assert results["finished"]
    assert results["command"] == "dmlfast bench --workload tiny"
    assert results["settings"] == {
        "rounds": 4,
        "budget_gib": 0.03,
        "patience": 10.0,
        "deadline": 60.0,
    }
    assert results["machine"] == describe_machine()
    assert results["peers"]["torch"] == metadata.version("torch")
    assert results["peak_operations_per_second"] > 0


def test_sizes_and_rounds_are_all_there(results):
    cases = results["workloads"][0]["cases"]
    assert [(c["rows"], c["dimensions"], c["per_class"]) for c in cases] == [
        (64, 8, 4),
        (256, 8, 4),
        (512, 8, 4),
    ]
    for case in cases:
        for name in ("unit", "kernel"):
            assert case["contestants"][name]["status"] == "measured"
            assert len(case["contestants"][name]["seconds"]) == 4


def test_out_of_memory_is_reported_from_its_size_on(results):
    assert case_at(results, 64)["hungry"]["status"] == "measured"
    assert case_at(results, 256)["hungry"]["status"] == "out of memory"
    assert case_at(results, 512)["hungry"]["status"] == "out of memory"
    assert case_at(results, 512)["hungry"]["message"].endswith("at N=256")
    assert case_at(results, 256)["hungry"]["median"] is None


def test_other_failures_stop_nobody_else(results):
    assert case_at(results, 512)["missing"]["status"] == "not installed"
    assert case_at(results, 512)["broken"]["status"] == "failed"
    assert case_at(results, 512)["kernel"]["status"] == "measured"


def test_ratios_and_rates_are_those_of_the_medians():
    contestants = {
        "unit": timed([2.0, 1.0, 6.0], 0.0),
        "kernel": timed([4.0], None),
        "other": timed([1.0, 2.0, 3.0, 4.0, 5.0], 1.0),
    }
    relate(contestants, yardstick="unit", kernel="kernel", operations=12.0, peak=24.0)
    other = contestants["other"]
    assert (other["lower_quartile"], other["median"], other["upper_quartile"]) == (2.0, 3.0, 4.0)
    assert (other["to_yardstick"], other["to_kernel"]) == (1.5, 0.75)
    assert (other["operations_per_second"], other["fraction_of_peak"]) == (4.0, 4 / 24)


def test_an_interrupted_comparison_keeps_the_sizes_before(tmp_path):
    def interrupt(progress):
        assert progress.workload == "tiny"
        if "N=32" in progress.doing:
            raise KeyboardInterrupt

    contestants = {"unit": tiny.tiny, "kernel": tiny.tiny}
    workload = replace(TINY, contestants=contestants).with_rows((16, 32))
    path = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        compare([workload], Settings(rounds=1, budget_gib=0.03), path, progress=interrupt)
    found = read_results(path)
    assert not found["finished"]
    assert [case["rows"] for case in found["workloads"][0]["cases"]] == [16]
    assert [name.name for name in tmp_path.iterdir()] == ["results.json"]


def test_a_budget_beyond_the_memory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="budget: expected at most"):
        compare([TINY], Settings(budget_gib=1e6), tmp_path / "results.json")


@pytest.mark.parametrize("name", ["rounds", "budget_gib", "patience", "deadline"])
def test_a_setting_that_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number greater than 0, got 0"):
        Settings(**{name: 0})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}'])
def test_a_file_of_something_else_is_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.json: expected"):
        read_results(path)


# Tables


def test_the_table_has_a_row_for_every_contestant_and_size(results):
    rows = [line for line in markdown(results, "there").splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 3 * len(TINY.contestants)
    assert sum("out of memory" in row for row in rows) == 2
    assert sum("| **kernel** |" in row for row in rows) == 3
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_the_table_stands_between_its_markers(results, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    for _ in range(2):
        update_table(path, results, tmp_path / "bench")
        text = path.read_text(encoding="utf-8")
        block = markdown(results, "bench")
        assert text == f"above\n{BEGIN}\n\n{block}\n{END}\nbelow\n"


@pytest.mark.parametrize(
    "text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"]
)
def test_a_page_without_its_markers_is_left_alone(text, results, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md: expected the lines"):
        update_table(path, results, tmp_path)
    assert path.read_text(encoding="utf-8") == text


def test_the_short_table_shows_the_largest_size(results):
    ((title, rows),) = short_table(results)
    assert title == "tiny, N=512, d=8"
    assert [row[0] for row in rows] == list(TINY.contestants)


def test_the_page_holds_the_committed_results():
    path, folder = ROOT / "BENCHMARKS.md", ROOT / "benchmarks" / "results" / "bench"
    text = path.read_text(encoding="utf-8")
    block = text.split(BEGIN)[1].split(END)[0].strip()
    committed = folder / "results.json"
    expected = ""
    if committed.exists():
        expected = markdown(read_results(committed), "benchmarks/results/bench").strip()
    assert block == expected


# Workloads


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_another_process_can_be_told_of_every_contestant(workload):
    for contestant in workload.contestants.values():
        pickle.dumps(contestant)


SAME = [
    *("eps_triplet", "scaling", "threads", "all_triplet"),
    *("multi_similarity", "supcon", "info_nce", "contrastive"),
    *("nearest_positive", "nearest_neighbors"),
    # Not the matrix itself: torch.cdist is wrong in the fourth digit on its diagonal.
    "pairwise_distance_backward",
    "distance_statistics",
    *("ranking", "synthetic_ranking"),
    *("multi_cluster", "soft_assignment"),
    *("soft_triple", "sub_center_arcface"),
]


@pytest.mark.parametrize("name", SAME)
def test_contestants_compute_the_same(name):
    pytest.importorskip("pytorch_metric_learning")
    workload = WORKLOADS[name]
    inputs = Inputs.of(Case(64, 16))
    expected = workload.contestants[workload.kernel](inputs)()
    for contestant, make in workload.contestants.items():
        # To compile takes long, and what is compiled is a contestant itself.
        if contestant.startswith(("product", "clone")) or contestant.endswith("compiled"):
            continue
        try:
            found = make(inputs)()
        except ImportError:
            continue
        # float32 distances and similarities near 1 from sums of 16 products, some units of 6e-8
        # each, times 50 at most.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_contestants_of_kmeans_reach_the_same_inertia():
    contestants = WORKLOADS["kmeans"].contestants
    inputs = Inputs.of(Case(4096, 8))
    expected = contestants["kernel"](inputs)()
    for name in ("reference", "faiss", "scikit-learn"):
        try:
            found = contestants[name](inputs)()
        except ImportError:
            continue
        # Rows whose nearest centres differ in the last bits of float32 go to either.
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def test_the_product_in_blocks_is_the_product():
    contestants = WORKLOADS["scaling"].contestants
    inputs = Inputs.of(Case(64, 16))
    whole, blocks = (contestants[name](inputs)() for name in ("product", "product in blocks"))
    torch.testing.assert_close(blocks, whole)


def test_other_rows_leave_the_rest_of_the_sizes():
    sizes = WORKLOADS["dimensions"].with_rows((32, 16, 32)).cases
    assert sizes == tuple(Case(rows, d) for d in (64, 128, 512) for rows in (16, 32))


def test_a_workload_without_its_yardstick_is_refused():
    with pytest.raises(ValueError, match="yardstick: expected a contestant of tiny"):
        replace(TINY, yardstick="metre")


def test_inputs_are_the_same_on_every_call():
    first, second = Inputs.of(CASE), Inputs.of(CASE)
    assert torch.equal(first.x, second.x)
    assert first.labels.bincount().tolist() == [4, 4, 4, 4]


# The command


@pytest.fixture
def _command() -> None:
    for module in ("click", "rich", "matplotlib", "faiss", "sklearn"):
        pytest.importorskip(module)


@pytest.mark.usefixtures("_command")
def test_the_command_writes_results_picture_and_table(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    arguments = ["bench", "--workload", "nearest_positive", "--rows", "64", "--rows", "128"]
    arguments += ["--rounds", "2", "--budget", "1", "--table", str(page)]
    arguments += ["--out", str(tmp_path / "new" / "bench")]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "new" / "bench" / "results.json").read_text(encoding="utf-8"))
    assert found["command"] == " ".join(["dmlfast", *arguments])
    (workload,) = found["workloads"]
    assert [case["rows"] for case in workload["cases"]] == [64, 128]
    assert len(workload["cases"][0]["contestants"]["kernel"]["seconds"]) == 2
    assert (tmp_path / "new" / "bench" / "time_memory.png").read_bytes()[:4] == b"\x89PNG"
    assert "new/bench/time_memory.png" in page.read_text(encoding="utf-8")
    captured = capsys.readouterr()
    assert "nearest_positive, N=128, d=128" in captured.out
    # Where there is no terminal, a line for each workload.
    assert captured.err == "0 of 12: nearest_positive\n"


@pytest.mark.usefixtures("_command")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{}"], "holds results; replace them with --overwrite"),
        (["--budget", "1e6"], "budget: expected at most"),
        (["--table", "{}/results.json"], "expected the lines"),
    ],
)
def test_a_command_that_cannot_be_is_one_sentence(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.json").write_text("kept", encoding="utf-8")
    given = [argument.format(tmp_path) for argument in arguments]
    assert main(["bench", "--workload", "nearest_positive", "--quick", *given]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert error.endswith(".\n")
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == "kept"


@pytest.mark.usefixtures("_command")
def test_an_unknown_workload_is_a_wrong_use(capsys):
    assert main(["bench", "--workload", "nothing"]) == 2
    assert "eps_triplet" in capsys.readouterr().err


def test_contestants_draw_alike():
    pytest.importorskip("pytorch_metric_learning")
    workload = WORKLOADS["sample_negative"]
    inputs = Inputs.of(Case(64, 16))
    draws = {}
    with torch.random.fork_rng(devices=[]):
        for contestant, make in workload.contestants.items():
            if contestant == "product":
                continue
            torch.manual_seed(0)
            step = make(inputs)
            draws[contestant] = torch.cat([step() for _ in range(100)])
    assert torch.equal(draws["reference"], draws["kernel"])
    assert all((distance < 1.4).all() for distance in draws.values())
    mean = draws["kernel"].mean()
    # 6400 draws at least: the error of a difference of their means.
    error = draws["kernel"].std() * (2 / 6400) ** 0.5
    assert all((distance.mean() - mean).abs() < 4 * error for distance in draws.values())
    # Uniform draws are much farther away.
    negative = inputs.labels[:, None] != inputs.labels
    assert torch.cdist(inputs.x, inputs.x)[negative].mean() - mean > 20 * error
