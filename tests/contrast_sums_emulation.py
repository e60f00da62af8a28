"""Cases of the sums over pairs and of their gradients for the emulated CUDA kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import emulation
import numpy as np
import torch
from emulation import METRICS
from torch import Tensor

from dmlfast.reference import contrast_sums as reference
from dmlfast.reference import distances
from dmlfast.reference.pairs import PairChunk

FORMS = ("none", "logsumexp", "hinge", "sum", "softplus")  # in the order of SumForm
GRAD_STRIDE = 2


@dataclass(frozen=True)
class Side:
    form: str = "none"
    scale: float = 1.0
    # Of logsumexp and hinge, whether there is one; of softplus, the number added.
    bound: float | None = None


@dataclass
class Case:
    """Rows with duplicates, near-duplicates, zeros and, unless `clean`, NaN and infinity.

    Bounds of distances lie in the middle of the widest gap between an anchor's distances around
    their median, so that no rounding decides which pairs count.
    """

    anchors: int
    references: int | None = None  # None: the batch itself
    dimensions: int = 5
    classes: int = 4
    metric: str = "euclidean"
    positive: Side = field(default_factory=Side)
    negative: Side = field(default_factory=Side)
    has_self: bool = False
    fast: bool = False
    wanted_items: int = 0
    clean: bool = False
    offset: float = 0.0
    integers: bool = False  # distances by products are exact

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.anchors + self.dimensions)

        def rows(count: int) -> Tensor:
            normal = torch.randn(count, self.dimensions, generator=generator) + self.offset
            return normal.round() if self.integers else normal

        def labels(count: int) -> Tensor:
            return torch.randint(0, self.classes, (count,), generator=generator)

        self.x, self.labels = rows(self.anchors), labels(self.anchors)
        self.y, self.y_labels = self.x, self.labels
        if self.references is not None:
            self.y, self.y_labels = rows(self.references), labels(self.references)
        self.grads = [torch.randn(self.anchors, generator=generator) for _ in range(2)]
        if min(len(self.x), len(self.y)) > 8 and not self.integers:
            self.y[5] = self.y[0]
            self.x[6] = self.y[1] * (1 + 1e-4 / (1 + self.offset))
            self.x[7] = self.offset
            if not self.clean:
                self.x[2, -1] = math.nan
                self.x[3, 0] = -math.inf
                self.y[4, 0] = math.nan
                # An anchor that is not finite, but that nobody asks for.
                self.grads[0][3] = self.grads[1][3] = 0
        self.self_index = None
        if self.has_self:
            self.self_index = torch.arange(self.anchors) % (len(self.y) + 1) - 1
        self.measure()
        self.bounds = [self._bound(side) for side in (self.positive, self.negative)]

    def measure(self) -> None:
        """Compares all rows, as they are now."""
        self.value = distances.values(self.x.double()[:, None], self.y.double()[None], self.metric)
        self.distance = distances.distances(self.value, self.metric, torch.float64)

    def _bound(self, side: Side) -> Tensor | None:
        if side.bound is None:
            return None
        bound = torch.full((self.anchors,), side.bound)
        if side.form != "softplus" and not self.integers:
            error = self.distance_errors()
            for i, row in enumerate(self.distance):
                known = row.isfinite()
                if int(known.sum()) > 2:
                    ordered = row[known].sort().values
                    third = len(ordered) // 3
                    middle = ordered[third : len(ordered) - third + 1]
                    gap = int(middle.diff().argmax())
                    # All distances of a zero vector are the same under cosine.
                    is_wide = bool(middle[gap] < middle[gap + 1])
                    bound[i] = (middle[gap] + middle[gap + 1]) / 2 if is_wide else 0.5
                    assert (row[known] - bound[i]).abs().gt(error[i][known]).all()
        if not self.clean and not self.integers and self.anchors > 8:
            bound[1] = math.nan
        return bound

    def sides(self) -> list[reference.Side]:
        return [
            reference.Side(side.form, side.scale, bound, sign)
            for side, bound, sign in zip(
                (self.positive, self.negative), self.bounds, (1, -1), strict=True
            )
        ]

    def partners(self) -> tuple[Tensor, Tensor]:
        exists = ~self.distance.isnan() & self.x.isfinite().all(1)[:, None]
        exists &= self.y.isfinite().all(1)[None]
        own = self.self_index
        if self.references is None:
            own = torch.arange(self.anchors)
        if own is not None:
            exists &= torch.arange(len(self.y))[None] != own[:, None]
        same = self.labels[:, None] == self.y_labels[None]
        return exists & same, exists & ~same

    def side_rows(self) -> list[reference.SideRows]:
        """Both sides of all anchors, with the derivatives by the distances."""
        partners = self.partners()
        chunk = PairChunk(self.value, self.distance, *partners, self.x.isfinite().all(1))
        return [
            reference.side_rows(chunk, pairs, side)
            for pairs, side in zip(partners, self.sides(), strict=True)
        ]

    def centred(self) -> tuple[Tensor, Tensor]:
        """The rows as they are packed, but for the scale; 0 for those that are not finite."""
        x, y = (rows.double().nan_to_num(0, 0, 0) for rows in (self.x, self.y))
        if self.metric in ("euclidean", "sqeuclidean"):
            finite = self.y.isfinite().all(1)
            centre = y[finite].mean(0) if bool(finite.any()) else y.new_zeros(self.dimensions)
            return x - centre, y - centre
        return x, y

    def squares(self) -> Tensor:
        """The sum of both rows' squared lengths, by pair."""
        x, y = self.centred()
        return x.square().sum(1)[:, None] + y.square().sum(1)[None]

    def distance_errors(self) -> Tensor:
        """How far a distance may be off, by pair.

        Products: each operand is off by 2^-11 of its length in half precision; split, 2^-22, and
        sums over the steps of 16 columns and within them are rounded to float32. Squares are
        rounded to float32, too; at half precision they are those of the rounded rows.
        """
        if self.integers:
            return torch.zeros_like(self.distance)
        if self.metric == "dot":
            return self.product_errors() + 2**-23 * self.distance.abs()
        if self.metric == "cosine":
            return torch.full_like(self.distance, self.product_error() + 2**-23)
        error = self.square_errors()
        error = torch.where(self.is_near(), 2**-22 * self.value, error)
        if self.metric == "euclidean":
            by_root = torch.minimum(error / self.distance, error.sqrt())
            return torch.where(self.value == 0, 0, by_root) + 2**-22 * self.distance
        return error + 2**-22 * self.distance

    def rounding(self) -> float:
        return 2**-11 if self.fast else 2**-22

    def summing(self) -> float:
        return ((self.dimensions + 15) // 16 + 34) * 2**-23

    def product_error(self) -> float:
        return 2 * self.rounding() + self.summing()

    def product_errors(self) -> Tensor:
        x, y = self.centred()
        return self.product_error() * x.norm(dim=1)[:, None] * y.norm(dim=1)[None]

    def square_errors(self) -> Tensor:
        if not self.fast:
            return 2 * self.product_errors() + 2**-22 * self.squares()
        x, y = (rows.norm(dim=1) for rows in self.centred())
        # So much closer or further apart are the rounded rows.
        apart = self.rounding() * (x[:, None] + y[None])
        summed = 2 * self.summing() * x[:, None] * y[None]
        return apart * (2 * self.value.sqrt() + apart) + summed + 2**-22 * self.squares()

    def is_near(self) -> Tensor:
        """Whether a pair is surely compared by the differences of its rows."""
        return self.value + self.square_errors() < 1e-3 * self.squares()


@dataclass
class Results:
    """By side, and the gradients of the rows."""

    sums: list[Tensor]
    counts: list[Tensor]
    to_bounds: list[Tensor]
    to_x: Tensor
    to_references: Tensor


_known: dict[str, Results] = {}


def run(program: Path, folder: Path, case: Case) -> Results:
    """What the kernels make of a case; of the same case only once."""
    key = repr(case)
    if key not in _known:
        _known[key] = _run(program, folder, case)
    return _known[key]


def _run(program: Path, folder: Path, case: Case) -> Results:
    sides = case.positive, case.negative
    header = [len(case.x), len(case.y), case.dimensions, METRICS.index(case.metric)]
    header += [case.references is None, case.has_self, case.fast, case.wanted_items, GRAD_STRIDE]
    header += [FORMS.index(side.form) for side in sides]
    header += [bound is not None for bound in case.bounds]
    parts = [
        np.array(header, dtype=np.int64),
        np.array([side.scale for side in sides]),
        case.x.numpy(),
        case.labels.numpy(),
        case.labels.argsort(stable=True).numpy(),
    ]
    if case.references is not None:
        parts += [case.y.numpy(), case.y_labels.numpy()]
        parts += [case.y_labels.argsort(stable=True).numpy()]
    if case.self_index is not None:
        parts += [case.self_index.numpy()]
    parts += [bound.numpy() for bound in case.bounds if bound is not None]
    for grad in case.grads:
        spaced = torch.full((len(grad), GRAD_STRIDE), math.nan)
        spaced[:, 0] = grad
        parts += [spaced.numpy()]
    content = emulation.run(program, folder, b"".join(part.tobytes() for part in parts))
    offset = 0

    def take(kind: type, *shape: int) -> Tensor:
        nonlocal offset
        array = np.frombuffer(content, kind, math.prod(shape), offset).reshape(shape)
        offset += array.nbytes
        return torch.from_numpy(array.copy())

    n = len(case.x)
    by_side = [(take(np.float32, n), take(np.int64, n), take(np.float32, n)) for _ in range(2)]
    sums, counts, to_bounds = (list(each) for each in zip(*by_side, strict=True))
    to_x = take(np.float32, n, case.dimensions)
    to_references = take(np.float32, case.references or 0, case.dimensions)
    assert offset == len(content)
    return Results(sums, counts, to_bounds, to_x, to_references)


def expect(case: Case) -> Results:
    """The same by the reference in float64."""
    positive, negative = case.sides()
    arguments = (
        case.x.double(),
        case.labels,
        None if case.references is None else case.y.double(),
        case.y_labels,
        case.self_index,
    )
    options = {"metric": case.metric, "positive": positive, "negative": negative}
    found = reference.sums(*arguments, **options)
    grads = [grad.double() for grad in case.grads]
    to_x, to_references, *to_bounds = reference.sums_backward(*grads, *arguments, **options)
    return Results(list(found[:2]), list(found[2:]), to_bounds, to_x, to_references)


# --- How far results may be off ------------------------------------------------------------------


def exponent_errors(case: Case, side: Side, partners: Tensor) -> Tensor:
    """How far the exponents of a log-sum-exp may be off, by anchor.

    By the error of the distance, and by the rounding of the exponent to the base of 2 and of its
    factor.
    """
    error = torch.where(partners, case.distance_errors(), 0)
    distance = torch.where(partners, case.distance.abs(), 0)
    if not len(case.y):
        return error.sum(1)
    return abs(side.scale) * (error.amax(1) + 4 * 2**-23 * distance.amax(1))


def sum_errors(case: Case, i: int) -> Tensor:
    """How far a side's sum may be off, by anchor."""
    side, bound, partners = case.sides()[i], case.bounds[i], case.partners()[i]
    error = torch.where(partners, case.distance_errors(), 0)
    distance = torch.where(partners, case.distance, 0)
    # 32 terms of a tile are added in float32; the result is float32.
    rounding = 36 * 2**-24
    scale = abs(side.scale)
    if side.form == "logsumexp":
        # Powers are good to a few 2^-23.
        size = distance.abs().sum(1)
        return exponent_errors(case, side, partners) + rounding + 2**-21 + 2**-24 * scale * size
    if side.form == "softplus":
        assert bound is not None
        size = torch.where(partners, scale * distance.abs() + bound.abs()[:, None] + 1, 0).sum(1)
        return scale * error.sum(1) + (rounding + 2**-21) * size
    if side.form == "hinge":
        assert bound is not None
        term = torch.where(partners, (side.sign * (distance - bound[:, None])).clamp(min=0), 0)
        return error.sum(1) + rounding * term.sum(1) + 2**-23 * distance.abs().sum(1)
    return error.sum(1) + rounding * distance.abs().sum(1)


def derivative_errors(case: Case, i: int, rows: reference.SideRows) -> Tensor:
    """How far the derivative of a side's sum by each distance may be off."""
    side, partners = case.sides()[i], case.partners()[i]
    if side.form == "logsumexp":
        # The sum is off as its exponents are, and is told by a result of at most 64 in float32.
        result = rows.result.abs().nan_to_num(0, 0, 0).clamp(max=64)
        relative = 2 * exponent_errors(case, side, partners) + 2**-20 + 2**-23 * result
        return rows.weights.abs() * relative.expm1()[:, None]
    if side.form == "softplus":
        assert side.bound is not None
        size = abs(side.scale) * case.distance.abs() + side.bound.abs()[:, None] + 4
        error = abs(side.scale) * (case.distance_errors() * abs(side.scale) / 4 + 2**-22 * size)
        return torch.where(partners & (rows.weights != 0), error, 0)
    return 2**-23 * rows.weights.abs()


def weights(case: Case) -> tuple[Tensor, Tensor]:
    """Derivatives of the loss by the distances, and how far they may be off."""
    total = torch.zeros_like(case.distance)
    error = torch.zeros_like(total)
    for i, rows in enumerate(case.side_rows()):
        grad = case.grads[i].double()[:, None]
        total += (rows.weights * grad).abs()
        error += derivative_errors(case, i, rows) * grad.abs()
    if case.references is None:
        return total + total.T, error + error.T
    return total, error


def gradient_errors(case: Case) -> tuple[Tensor, Tensor]:
    """How far the gradients of the rows may be off in length, by anchor and by reference."""
    return row_errors(case, *weights(case))


def row_errors(case: Case, weight: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """The same for derivatives of the loss by the distances, and errors, of at most these."""
    x, y = case.centred()
    lengths = x.norm(dim=1)[:, None], y.norm(dim=1)[None]
    # Weights and rows are halves, or split in two of them; products and their sums are float32.
    steps = 24 + (max(len(x), len(y)) + 127) // 128
    product = (2 * 2**-11 if case.fast else 2 * 2**-21) + steps * 2**-23
    if case.metric == "dot":
        pairs = weight * product + error
        return (pairs * lengths[1]).sum(1), (pairs * lengths[0]).sum(0)
    if case.metric == "cosine":
        pairs = torch.where((lengths[0] == 0) | (lengths[1] == 0), 0, weight * product + error)
        by_x = pairs.sum(1) / lengths[0][:, 0]
        by_y = pairs.sum(0) / lengths[1][0]
        return by_x.nan_to_num(0, 0, 0), by_y.nan_to_num(0, 0, 0)
    # The derivative of a distance has length 1, of its square 2 D; the difference of two rows is
    # off as both rows are, but of near ones as itself.
    root = case.value.sqrt()
    slope = torch.ones_like(root) if case.metric == "euclidean" else 2 * root
    factor = torch.where(root == 0, 0, slope * weight / root)
    pairs = slope * error + factor * product * (lengths[0] + lengths[1])
    if case.metric == "euclidean":
        pairs += torch.where(root == 0, 0, weight * case.distance_errors() / root)
    pairs = torch.where(case.is_near(), slope * (error + weight * 2**-20), pairs)
    pairs = torch.where(weight + error == 0, 0, pairs)
    return pairs.sum(1), pairs.sum(0)


# --- Comparison ----------------------------------------------------------------------------------


def check_sums(case: Case, results: Results, expected: Results) -> None:
    for i, side in enumerate((case.positive, case.negative)):
        assert torch.equal(results.counts[i], expected.counts[i])
        got, wanted = results.sums[i].double(), expected.sums[i]
        if side.form == "none":
            assert torch.equal(got, wanted)
            continue
        finite = wanted.isfinite()
        assert torch.equal(got[~finite].nan_to_num(1.0), wanted[~finite].nan_to_num(1.0))
        wrong = finite & ~((got - wanted).abs() <= sum_errors(case, i))
        assert not wrong.any(), f"{side.form}: {got[wrong]} {wanted[wrong]}"


def check_rows(got: Tensor, wanted: Tensor, error: Tensor) -> None:
    """Gradients as vectors; those of a row are all NaN or none."""
    lost = wanted.isnan().any(1)
    assert torch.equal(got.isnan(), lost[:, None].expand_as(got))
    apart = (got.double() - wanted).norm(dim=1)
    wrong = ~lost & ~(apart <= error + 2**-23 * wanted.norm(dim=1))
    assert not wrong.any(), f"{wrong.nonzero()[:, 0]}: {apart[wrong]}, not {error[wrong]}"


def check_gradients(case: Case, results: Results, expected: Results) -> None:
    by_x, by_references = gradient_errors(case)
    check_rows(results.to_x, expected.to_x, by_x)
    check_rows(results.to_references, expected.to_references, by_references[: case.references or 0])


def check_bound_gradients(case: Case, results: Results, expected: Results) -> None:
    errors = case.distance_errors()
    for i, side in enumerate((case.positive, case.negative)):
        got, grad = results.to_bounds[i].double(), case.grads[i].double()
        if side.form not in ("hinge", "softplus"):
            assert (got == 0).all()
            continue
        # 0 * NaN: of an anchor that nobody asks for.
        wanted = torch.where(grad == 0, 0, expected.to_bounds[i].double())
        error = 2**-23 * wanted.abs()
        if side.form == "softplus":
            slopes = torch.where(case.partners()[i], abs(side.scale) * errors / 4 + 2**-18, 0)
            error = error + grad.abs() * slopes.sum(1)
        assert torch.equal(got.isnan(), wanted.isnan())
        assert ((got - wanted).abs() <= error)[~wanted.isnan()].all()
