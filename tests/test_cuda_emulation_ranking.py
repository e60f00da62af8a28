"""The CUDA kernels of the ranking loss and of similarities to synthesised rows, run on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import emulation
import numpy as np
import pytest
import torch
from torch import Tensor

from dmlfast.reference import ranking as reference

pytestmark = emulation.needs_compiler

OPERATORS = ("loss", "loss_backward", "synthesis", "synthesis_backward")
PAIRS = ("all", "adjacent", "band")  # in the order of csrc/ranking_form.h
EPSILON = 2.0**-24  # of float32, half a unit in the last place
LEAST = 2.0**-149  # the least float32

each_pairs = pytest.mark.parametrize("pairs", PAIRS)
each_form = pytest.mark.parametrize("form", ["own", "targets"])


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("ranking", tmp_path_factory.getbasetemp())


def run(program, folder, header: list[float], tensors: list[Tensor], *shapes) -> list[Tensor]:
    """The float32 results of these shapes, in float64."""
    whole = np.array(header[:-2], dtype=np.int64).tobytes()
    content = whole + np.array(header[-2:], dtype=np.float64).tobytes()
    content += b"".join(t.contiguous().numpy().tobytes() for t in tensors)
    data = np.frombuffer(emulation.run(program, folder, content), np.float32)
    assert len(data) == sum(map(math.prod, shapes))
    parts = np.split(data, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return [
        torch.from_numpy(p.copy()).reshape(s).double() for p, s in zip(parts, shapes, strict=True)
    ]


def assert_within(actual: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    assert torch.equal(actual.isnan(), expected.isnan())
    limit = torch.finfo(torch.float32).max
    error = (actual.clamp(-limit, limit) - expected.clamp(-limit, limit)).abs()
    assert (error <= tolerance).logical_or(expected.isnan()).all()


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator)


def upstream(*shape: int) -> Tensor:
    """Upstream gradients, a third of them 0."""
    grad = draw(*shape, seed=3)
    return torch.where(grad.abs() < 0.43, 0.0, grad)


# --- ranking_loss ---------------------------------------------------------------------------------


def check_loss(
    program,
    folder,
    s: Tensor,
    grad: Tensor | None = None,
    *,
    margin: float = 0.11,
    scale: float = 32.0,
    pairs: str = "all",
) -> None:
    options = {"margin": margin, "scale": scale, "pairs": pairs}

    def result(operator: str, tensors: list[Tensor], shape) -> Tensor:
        which = OPERATORS.index(operator)
        header = [which, *s.shape, 0, PAIRS.index(pairs), 0, margin, scale]
        return run(program, folder, header, tensors, tuple(shape))[0]

    # Rounded once to float32; float64 loses a few units of 2^-53, of weights up to 1 each.
    expected = reference.loss(s.double(), **options)
    loss = result("loss", [s.T], s.shape[:1])
    assert_within(loss, expected, 1.01 * EPSILON * expected.abs() + 1e-13 + LEAST)
    grad = upstream(len(s)) if grad is None else grad
    expected = reference.loss_backward(grad, s.double(), **options)
    gradient = result(
        "loss_backward", [s.T, torch.stack([grad, torch.zeros_like(grad)], 1)], s.shape
    )
    tolerance = 1.01 * EPSILON * expected.abs() + 1e-12 * grad[:, None].abs() + LEAST
    assert_within(gradient, expected, tolerance.nan_to_num(0.0))


@each_pairs
# A row, one that has no pair, and more rows than threads, which go on to further ones.
@pytest.mark.parametrize("size", [(1, 2), (130, 1), (7, 33), (600, 5)], ids=str)
def test_losses_and_their_gradients_are_those_of_the_reference(program, tmp_path, pairs, size):
    check_loss(program, tmp_path, 0.5 * draw(*size), pairs=pairs)


@each_pairs
@pytest.mark.parametrize("size", [(0, 5), (3, 0)], ids=str)
def test_losses_of_nothing_are_0(program, tmp_path, pairs, size):
    check_loss(program, tmp_path, draw(*size), pairs=pairs)


@each_pairs
@pytest.mark.parametrize("columns", [1, 5])
def test_a_row_that_is_not_finite_is_nan_alone(program, tmp_path, pairs, columns):
    s = draw(40, columns)
    s[1, 0], s[2, -1], s[3, 0], s[30:, -1] = math.nan, math.inf, -math.inf, math.nan
    grad = upstream(40)
    grad[30:32] = torch.tensor([0.0, 1.0])
    check_loss(program, tmp_path, s, grad, pairs=pairs)


@each_pairs
def test_nan_from_above_reaches_no_row_without_a_pair(program, tmp_path, pairs):
    check_loss(program, tmp_path, draw(3, 1), torch.full((3,), math.nan), pairs=pairs)


@each_pairs
@pytest.mark.parametrize(
    ("margin", "scale"),
    [(0.0, 1e-3), (-0.3, 5.0), (2.0, 300.0), (1e4, 32.0), (-1e3, 32.0), (0.0, 1e30)],
)
def test_margins_and_scales_overflow_nothing(program, tmp_path, pairs, margin, scale):
    check_loss(program, tmp_path, draw(9, 6), margin=margin, scale=scale, pairs=pairs)


@each_pairs
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e4, 1e30])
def test_similarities_of_any_size_have_their_loss(program, tmp_path, pairs, factor):
    check_loss(program, tmp_path, factor * draw(9, 6), pairs=pairs)


# --- synthesis_similarity -------------------------------------------------------------------------


@dataclass
class Case:
    """Projected rows, what is added to them, and with what they are compared."""

    projected: Tensor
    shifts: Tensor
    targets: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.shifts)

    def tensors(self) -> list[Tensor]:
        return [self.projected, self.shifts] + ([] if self.targets is None else [self.targets])

    def doubles(self) -> list[Tensor | None]:
        return [None if t is None else t.double() for t in vars(self).values()]

    def header(self, operator: str) -> list[float]:
        rows, dimensions = self.projected.shape
        has_targets = self.targets is not None
        return [OPERATORS.index(operator), rows, self.steps, dimensions, 0, has_targets, 0, 0]


def make(form: str, rows: int, steps: int, dimensions: int) -> Case:
    """Shifts of rising length."""
    length = torch.arange(1, steps + 1)[:, None] / max(steps, 1)
    shifts = 2 * length * draw(steps, dimensions, seed=1)
    targets = draw(rows, dimensions, seed=2) if form == "targets" else None
    return Case(draw(rows, dimensions), shifts, targets)


@dataclass
class Bounds:
    """What is summed for each pair and dimension, without signs, and errors of similarities."""

    target: Tensor  # (B, J, p), of |factor * target| where v > 0, per unit of upstream gradient
    direction: Tensor  # (B, J, p), of |similarity * v / length^2|
    positive: Tensor  # (B, J, p), of v where it is above 0, divided by both lengths
    value: Tensor  # (B, J, p), of |v| / length^2
    similarity: Tensor  # (B, J), of the similarities without signs
    own: Tensor  # (B, p), of the row divided by the square of its length
    error: Tensor  # (B, J), the errors of the similarities
    summing: float  # the relative error of a sum over the dimensions


def bounds(case: Case) -> Bounds:
    rows, shifts, targets = case.doubles()
    own_length = torch.ones(len(rows), 1, dtype=torch.float64)
    if targets is None:
        own_length = rows.norm(dim=1, keepdim=True)
        own_length = torch.where(own_length == 0, 1.0, own_length)
        targets = rows.relu()
    value = rows[:, None] + shifts
    length = value.norm(dim=2, keepdim=True)
    length = torch.where(length == 0, 1.0, length)
    target = targets.abs()[:, None] * (value > 0) / length / own_length[:, None]
    positive = value.relu() / length / own_length[:, None]
    similarity = (target * value.abs()).sum(2)
    # A lane adds every 32nd product, five exchanges add the lanes, and chunks of 128 dimensions
    # are added; v itself is rounded, which counts twice in its square.
    dimensions = rows.shape[1]
    summing = 1.01 * (math.ceil(dimensions / 32) + math.ceil(dimensions / 128) + 8) * EPSILON
    # Half of it comes back from each length, and the result is rounded.
    error = (2 * summing + 2 * EPSILON) * similarity
    return Bounds(
        target=target,
        direction=similarity[..., None] * value.abs() / length.square(),
        positive=positive,
        value=value.abs() / length.square(),
        similarity=similarity,
        own=rows.abs() / own_length.square(),
        error=error,
        summing=summing,
    )


def gradient_tolerances(case: Case, grad: Tensor) -> list[Tensor]:
    """Bounds of the errors of the gradients by rows, by shifts and by targets."""
    b = bounds(case)
    up = grad.double().abs()[..., None]
    terms = torch.where(up == 0, 0.0, up * (b.target + b.direction))
    # Two lengths, and six roundings of weights and products; the similarity is in a weight.
    pair = (b.summing + 6 * EPSILON) * terms
    pair = pair + torch.where(up == 0, 0.0, up * b.error[..., None] * b.value)
    rows, steps = grad.shape
    to_projected = pair.sum(1) + (steps + 4) * EPSILON * terms.sum(1)
    chunk = max(64, 2 * steps)  # rows summed in float32
    to_shifts = pair.sum(0) + (min(chunk, rows) + 2) * EPSILON * terms.sum(0)
    positive = torch.where(up == 0, 0.0, up * b.positive).sum(1)
    to_target = (b.summing + (steps + 6) * EPSILON) * positive
    if case.targets is None:
        along = torch.where(up == 0, 0.0, up)[..., 0]
        error = (along * b.error).sum(1, keepdim=True)
        error = error + (b.summing + 6 * EPSILON) * (along * b.similarity).sum(1, keepdim=True)
        to_projected = to_projected + to_target + error * b.own
        # These two are added to what the shifts give.
        whole = positive + (along * b.similarity).sum(1, keepdim=True) * b.own
        to_projected = to_projected + 4 * EPSILON * (whole + terms.sum(1))
    tolerances = [to_projected, to_shifts, to_target[: 0 if case.targets is None else rows]]
    return [t.nan_to_num(0.0) + (rows + steps) * LEAST for t in tolerances]


def similarities(program, folder, case: Case) -> Tensor:
    shape = len(case.projected), case.steps
    return run(program, folder, case.header("synthesis"), case.tensors(), shape)[0]


def check_synthesis(program, folder, case: Case, grad: Tensor | None = None) -> None:
    grad = upstream(len(case.projected), case.steps) if grad is None else grad
    expected = reference.synthesis(*case.doubles())
    tolerance = bounds(case).error.nan_to_num(0.0) + LEAST
    assert_within(similarities(program, folder, case), expected, tolerance)
    gradients = reference.synthesis_backward(grad.double(), *case.doubles())
    # To the reference an infinite row has one direction that is NaN, where kernels have none.
    gradients[2][gradients[2].isnan().any(1)] = math.nan
    actual = run(
        program,
        folder,
        case.header("synthesis_backward"),
        [*case.tensors(), grad.T],
        *(tuple(g.shape) for g in gradients),
    )
    for a, e, t in zip(actual, gradients, gradient_tolerances(case, grad), strict=True):
        assert_within(a, e, t + 2 * EPSILON * e.abs())


@each_form
# (B, J, p): one of everything; rows, shifts and dimensions that fill no group of their kind; more
# rows than the blocks' first ones, in several chunks; more shifts and dimensions than are taken at
# once.
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (7, 5, 3), (600, 2, 64), (130, 5, 130), (9, 33, 515), (170, 40, 3)], ids=str
)
def test_similarities_and_their_gradients_are_those_of_the_reference(program, tmp_path, form, size):
    check_synthesis(program, tmp_path, make(form, *size))


@each_form
@pytest.mark.parametrize("size", [(0, 5, 4), (6, 0, 4), (6, 5, 0)], ids=str)
def test_similarities_of_nothing_are_0(program, tmp_path, form, size):
    check_synthesis(program, tmp_path, make(form, *size))


@each_form
def test_rows_of_0_have_similarity_0_and_gradient_0(program, tmp_path, form):
    case = make(form, 9, 3, 40)
    # As a row, and as what is synthesised.
    case.projected[2] = 0
    case.projected[5] = -case.shifts[1]
    check_synthesis(program, tmp_path, case)


@each_form
@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e-12, 1e12, 1e30, 1e37])
def test_rows_of_any_length_keep_their_digits(program, tmp_path, form, factor):
    case = make(form, 9, 3, 20)
    case.projected *= factor
    case.shifts *= factor
    check_synthesis(program, tmp_path, case, 2.0**-20 * upstream(9, 3))


@each_form
def test_rows_beside_rows_of_other_lengths_keep_their_digits(program, tmp_path, form):
    case = make(form, 23, 18, 20)
    case.projected *= 10.0 ** (torch.arange(23) % 8 * 9 - 35)[:, None]
    case.shifts *= 10.0 ** (torch.arange(18) % 5 * 12 - 24)[:, None]
    check_synthesis(program, tmp_path, case, 1e-8 * upstream(23, 18))


@each_form
# Lengths of rows and shifts, and upstream gradients that, divided by products of these, leave
# float32, as the gradients do not.
@pytest.mark.parametrize(
    ("own", "shift", "size"),
    [(1e9, 1e9, 1e-25), (1e-9, 1e-9, 1e25), (1e-9, 1e9, 1e-24), (1e-9, 1e9, 1e22)],
)
def test_upstream_gradients_of_any_size_keep_their_digits(
    program, tmp_path, form, own, shift, size
):
    case = make(form, 9, 3, 20)
    case.projected *= own
    case.shifts *= shift
    check_synthesis(program, tmp_path, case, size * upstream(9, 3))


def test_large_targets_do_not_overflow(program, tmp_path):
    case = Case(torch.ones(1, 4), torch.zeros(1, 4), torch.tensor([[2e38, 2e38, 1e38, -1e38]]))
    check_synthesis(program, tmp_path, case, torch.ones(1, 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("form", "what"),
    [
        *[("own", each) for each in ("projected", "shifts")],
        *[("targets", each) for each in ("projected", "shifts", "targets")],
    ],
)
def test_what_is_not_finite_is_nan_where_it_is_used(program, tmp_path, form, bad, what):
    case = make(form, 23, 5, 20)
    getattr(case, what)[3, 6] = bad
    grad = upstream(23, 5)
    check_synthesis(program, tmp_path, case, grad)
    check_synthesis(program, tmp_path, case, torch.zeros(23, 5))
    # Neither that row nor that shift, but others.
    grad[3], grad[:, 3] = 0, 0
    check_synthesis(program, tmp_path, case, grad)
