"""What the parts of `benchmarks/gpu.py` that measure find, on a CPU; no time decides."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import torch
from on_gpu import cases, determinism, exactness, operators, speed
from on_gpu.cases import CASES, TimedCase
from on_gpu.clock import Clock
from on_gpu.speed import Timer

import dmlfast.functional as F
from dmlfast.benchmarking import Case, Inputs

# --- times ----------------------------------------------------------------------------------------


def absent(inputs):
    raise ImportError("no such package")


def greedy(inputs):
    raise torch.OutOfMemoryError("CUDA out of memory")


def broken(inputs):
    def step():
        raise ValueError("a bad step")

    return step


def sleepy(inputs):
    return partial(time.sleep, 60)


def doubled(inputs):
    return inputs.x.double


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    case = TimedCase(
        Case(16, 4),
        {
            "kernel": doubled,
            "twice": doubled,
            "absent": absent,
            "greedy": greedy,
            "broken": broken,
            "sleepy": sleepy,
            "excluded": doubled,
        },
        yardstick="kernel",
        deadline=0.2,
    )
    events = tmp_path_factory.mktemp("tiny") / "events"
    out = {"excluded": {"status": "failed", "message": "died"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CASES, "tiny", case)
        Timer("cpu", True, events).measure("tiny", out)
    return [json.loads(line) for line in events.read_text().splitlines()]


@pytest.mark.parametrize(
    ("contestant", "status"),
    [
        ("kernel", "measured"),
        ("absent", "not installed"),
        ("greedy", "out of memory"),
        ("broken", "failed"),
        ("sleepy", "too slow"),
        ("excluded", "failed"),
    ],
)
def test_a_contestant_s_fate_is_told(measured, contestant, status):
    assert measured[-1]["result"]["contestants"][contestant]["status"] == status


def test_a_contestant_s_times_come_with_quartiles_and_a_rate(measured):
    kernel = measured[-1]["result"]["contestants"]["kernel"]
    assert len(kernel["seconds"]) == speed.ROUNDS
    assert kernel["lower_quartile"] <= kernel["median"] <= kernel["upper_quartile"]
    assert kernel["operations_per_second"] == pytest.approx(2 * 16**2 * 4 / kernel["median"])


def test_the_process_says_what_it_prepares_before_it_does(measured):
    told = [event["contestant"] for event in measured if event["doing"] == "preparing"]
    assert told == ["kernel", "twice", "absent", "greedy", "broken", "sleepy"]


@pytest.mark.parametrize(("milliseconds", "steps"), [(0.01, 50), (2.0, 3), (80.0, 1)])
def test_short_steps_are_timed_back_to_back(monkeypatch, milliseconds, steps):
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(calls)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return milliseconds * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock, step = Clock("cuda"), partial(calls.append, None)
    assert clock(step) == pytest.approx(milliseconds / 1e3)
    assert clock(step) == pytest.approx(milliseconds / 1e3)
    assert len(calls) == 1 + steps


def test_a_step_of_several_calls_counts_as_one_call(tmp_path, monkeypatch):
    case = TimedCase(Case(16, 4), {"kernel": doubled}, yardstick="kernel", calls={"kernel": 4})
    monkeypatch.setattr(speed, "interleave", lambda steps, *_: {name: [8.0] for name in steps})
    monkeypatch.setitem(CASES, "tiny", case)
    Timer("cpu", True, tmp_path / "events").measure("tiny", {})
    last = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert last["result"]["contestants"]["kernel"]["median"] == 2.0


def test_the_rate_of_a_comparison_with_others_counts_these(tmp_path, monkeypatch):
    case = TimedCase(Case(16, 4), {"kernel": doubled}, yardstick="kernel", columns=5)
    monkeypatch.setitem(CASES, "tiny", case)
    Timer("cpu", True, tmp_path / "events").measure("tiny", {})
    last = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    kernel = last["result"]["contestants"]["kernel"]
    assert kernel["operations_per_second"] == pytest.approx(2 * 16 * 5 * 4 / kernel["median"])


@pytest.mark.parametrize("name", CASES)
def test_a_case_has_its_yardstick_and_its_kernel(name):
    case = CASES[name]
    assert {case.yardstick, case.kernel, *case.calls} <= set(case.contestants)


@pytest.mark.parametrize("name", CASES)
def test_dmlfast_takes_part_in_every_case(name):
    case = CASES[name]
    inputs = TimedCase(Case(64, 8), {}, kind=case.kind).inputs("cpu", quick=False)
    own = {who for who in case.contestants if "kernel" in who} | {case.kernel}
    for who in own:
        case.contestants[who](inputs)()


def test_the_operator_with_a_known_order_finds_the_nearest_positives():
    inputs = TimedCase(Case(64, 8), {}).inputs("cpu", quick=False)
    expected = F.nearest_positive(inputs.x, inputs.labels)
    calls = cases._with_known_order(inputs)()
    assert len(calls) == cases._COPIES
    for distance, index in calls:
        assert torch.equal(distance[:, 0], expected.distance)
        assert torch.equal(index[:, 0], expected.index)


@pytest.mark.parametrize("kind", ["one point", "two points"])
def test_collapsed_batches_are_those_that_are_named(kind):
    inputs = TimedCase(Case(64, 8), {}, kind=kind).inputs("cpu", quick=False)
    points = 1 if kind == "one point" else 2
    place = torch.arange(64) % points
    for point in range(points):
        rows = inputs.x[place == point]
        # Each within 1e-3 of the point, and so of each other within twice that.
        assert torch.cdist(rows.double(), rows.double()).max() <= 2e-3 + 1e-6
    assert torch.equal(inputs.labels, torch.arange(64) // 4 if points == 1 else place)


def test_clustered_rows_are_nearer_to_their_class_than_to_others():
    inputs = TimedCase(Case(256), {}, kind="clustered").inputs("cpu", quick=False)
    nearest = F.nearest_neighbors(inputs.x, k=3).index
    assert torch.equal(inputs.labels[nearest], inputs.labels[:, None].expand(-1, 3))


# --- checks ---------------------------------------------------------------------------------------


def test_every_public_function_is_among_the_operators_called():
    functions = {name for name in F.__all__ if name.islower()}
    assert {name.partition(",")[0] for name in operators.CALLS} == functions


def test_selections_are_compared_with_float64():
    found = exactness.survey("cpu", rows=96, dimensions=7)
    assert (found["share"], found["share_of_distances"]) == (1.0, 1.0)
    assert {check["kind"] for check in found["checks"]} == set(exactness.KINDS)


def test_a_wrong_selection_is_seen(monkeypatch):
    right = F.hardest_negative

    def wrong(x, labels, **options):
        found = right(x, labels, **options)
        index = found.index.clone()
        index[5] += 1
        return F.Selection(found.distance, index)

    monkeypatch.setattr(F, "hardest_negative", wrong)
    found = exactness.survey("cpu", rows=96, dimensions=7)
    bad = {c["selection"]: c["equal_indices"] for c in found["checks"] if c["equal_indices"] < 96}
    assert bad == {"hardest_negative": 95}
    assert found["share"] < 1


@pytest.mark.parametrize("changes", [False, True])
def test_an_operator_that_changes_its_bits_is_seen(monkeypatch, changes):
    noise = iter(range(100))

    def call(x, *_):
        return x.detach() + (next(noise) if changes else 0)

    monkeypatch.setattr(determinism, "CALLS", {"call": call})
    monkeypatch.setattr(determinism, "served_by_kernels", lambda device: ["call"])
    found = determinism.survey("cpu", runs=4, sizes=((5, 3),))
    assert found["operators"]["call"] == {"kernel": True, "runs": 4, "different": 3 * changes}
    assert found["share"] == 1 - changes


def test_a_nan_is_the_same_bits_as_itself_and_a_zero_is_not_its_negative():
    nan, zero = torch.tensor([torch.nan]), torch.zeros(1)
    assert determinism.same_bits([nan], [nan.clone()])
    assert not determinism.same_bits([zero], [-zero])


def test_the_calls_for_the_sanitizer_include_gradients():
    of = operators.inputs(9, 3, torch.float32, "cpu")
    loss, gradient = operators.results(operators.CALLS["triplet_margin_loss, EPS"], of)
    assert loss.shape == ()
    assert gradient.shape == (9, 3)


def test_inputs_go_to_a_device_as_they_are():
    inputs = Inputs.of(Case(8, 4)).to("meta")
    assert (inputs.x.device.type, inputs.labels.device.type) == ("meta", "meta")
    assert inputs.x.shape == (8, 4)
