"""What is timed: cases in the order of their weight, and who takes part in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Contestant, Inputs, Step
from dmlfast.benchmarking.workloads import WORKLOADS
from dmlfast.benchmarking.workloads._contestants import training
from dmlfast.functional import assign_clusters, hardest_negative, triplet_margin_loss
from on_gpu.clock import multiplication
from on_gpu.data import make

__all__ = ["CASES", "TimedCase"]

_QUICK = 1024  # rows

_KERNEL = "kernel"
_REPLAYED = "kernel, replayed"
_KNOWN_ORDER = "kernel, order known"
_COMPILED = "written out, compiled"
_PEER = "pytorch-metric-learning"
_PRODUCT_IN_BLOCKS = "product in blocks, bfloat16"


@dataclass(frozen=True)
class TimedCase:
    """A task at a size.

    Attributes:
        size: rows, dimensions, rows of a class.
        contestants: by name; each is prepared and timed beside the others.
        kind: of `on_gpu.data.make`.
        yardstick: whose time the others are compared with.
        kernel: the contestant that is dmlfast as it comes.
        columns: what the N rows are compared with, where that is not they themselves.
        operations: whether 2·N·columns·d operations over the time is a rate that says something.
        calls: how many calls a step makes, for contestants that make more than one.
        deadline: seconds for a contestant's preparation and two steps; compilers get more.
    """

    size: Case
    contestants: Mapping[str, Contestant]
    kind: str = "random"
    yardstick: str = "product, bfloat16"
    kernel: str = "kernel"
    columns: int | None = None
    operations: bool = True
    calls: Mapping[str, int] = field(default_factory=dict)
    deadline: float = 10.0

    def deadline_of(self, contestant: str) -> float:
        """Seconds for the preparation and two steps of a contestant."""
        return max(self.deadline, 40.0) if contestant == _COMPILED else self.deadline

    def inputs(self, device: str, quick: bool) -> Inputs:
        """The rows and labels, on a device."""
        rows = min(self.size.rows, _QUICK) if quick else self.size.rows
        x, labels = make(self.kind, rows, self.size.dimensions, self.size.per_class)
        return Inputs(x, labels).to(device)


def _product(dtype: torch.dtype, tf32: bool, inputs: Inputs) -> Step:
    """The bare product x @ x.T into memory that is already allocated."""
    x = inputs.x.to(dtype)
    return multiplication(x, x.T, x.new_empty(len(x), len(x)), tf32=tf32)


_PRODUCTS: dict[str, Contestant] = {
    "product, bfloat16": partial(_product, torch.bfloat16, False),
    "product, tf32": partial(_product, torch.float32, True),
    "product, float32": partial(_product, torch.float32, False),
}


def replayed(contestant: Contestant) -> Contestant:
    """A contestant whose step is captured in a CUDA graph: its time without the host's part."""
    return partial(_replayed, contestant)


def _replayed(contestant: Contestant, inputs: Inputs) -> Step:
    step = contestant(inputs)
    return _captured(step) if inputs.x.is_cuda else step


def _captured(step: Step) -> Step:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # What the step returns lives in the memory of the graph.
        kept = step()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def _hardest_negative(inputs: Inputs) -> Step:
    return lambda: hardest_negative(inputs.x, inputs.labels).distance


def _flash_kmeans(inputs: Inputs) -> Step:
    """Its assignment, every row a centre: the same search without labels, in half precision."""
    return _flash_assignment(inputs.x, inputs.x)


def _flash_assignment(rows: Tensor, centres: Tensor) -> Step:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    x, y = rows.half()[None], centres.half()[None]
    squares = x.float().square().sum(-1)
    return lambda: euclid_assign_triton(x, y, squares)


_CENTRES = 16384
_BLOCK = 32768  # rows of the product with the centres, which is not held whole


def _centres(inputs: Inputs) -> Tensor:
    x = inputs.x
    return make("random", _CENTRES, x.shape[1], seed=1)[0].to(x.device)


def _assignment(inputs: Inputs) -> Step:
    centres = _centres(inputs)
    return lambda: assign_clusters(inputs.x, centres).distance


def _product_with_centres(inputs: Inputs) -> Step:
    """The bare product in bfloat16, a block of rows after the other into the same memory."""
    x, y = inputs.x.bfloat16(), _centres(inputs).bfloat16()
    out = x.new_empty(min(_BLOCK, len(x)), _CENTRES)
    blocks = [multiplication(block, y.T, out[: len(block)]) for block in x.split(_BLOCK)]
    return lambda: [block() for block in blocks]


# Copies of the rows, in turn, so that they do not stay in the cache of the device.
_COPIES = 4


def _with_known_order(inputs: Inputs) -> Step:
    """The operator alone, with the order of the labels computed before, replayed as a graph.

    A step is a call for each of some copies of the rows.
    """
    labels = inputs.labels
    order = labels.argsort(stable=True)
    own = torch.arange(len(labels), device=labels.device)
    operator = torch.ops.dmlfast.neighbors_select
    names = {argument.name for argument in operator.default._schema.arguments}

    def call(x: Tensor) -> Any:
        given = {
            "x": x,
            "labels": labels,
            "order": order,
            "references": x,
            "reference_labels": labels,
            "reference_order": order,
            "self_index": own,
            "beyond": None,
            "metric": "euclidean",
            "same_class": True,
            "farthest": False,
        }
        return operator(**{name: value for name, value in given.items() if name in names})

    copies = [inputs.x.clone() for _ in range(_COPIES)]

    def step() -> list[Any]:
        with torch.no_grad():
            return [call(x) for x in copies]

    return _captured(step) if inputs.x.is_cuda else step


def _eps(inputs: Inputs, kind: str = "") -> Step:
    """The step of EPS; on rows of another kind where one is named."""
    if kind:
        rows, dimensions = inputs.x.shape
        x, labels = make(kind, rows, dimensions)
        inputs = Inputs(x, labels).to(inputs.x.device)
    loss = partial(triplet_margin_loss, margin=0.2, positives="nearest", negatives="semihard")
    return training(loss)(inputs)


def _of(workload: str, *names: str) -> dict[str, Contestant]:
    """Contestants that the comparison on a CPU has, too."""
    return {name: WORKLOADS[workload].contestants[name] for name in names}


def _beside(kernel: Contestant, others: Mapping[str, Contestant]) -> dict[str, Contestant]:
    """The kernel as it is called and replayed, beside the bare products and others."""
    # The capture comes last: one that fails is nobody else's business.
    return {**_PRODUCTS, _KERNEL: kernel, **others, _REPLAYED: replayed(kernel)}


def _loss(name: str, *rivals: str) -> dict[str, Contestant]:
    kernel = WORKLOADS[name].contestants[_KERNEL]
    return _beside(kernel, _of(name, *(rivals or ("written out", _COMPILED, _PEER))))


def _of_comparison(name: str, *rivals: str) -> TimedCase:
    """The largest size of a comparison on a CPU, with its yardstick."""
    workload = WORKLOADS[name]
    return TimedCase(
        workload.cases[-1],
        _of(name, workload.yardstick, *rivals),
        yardstick=workload.yardstick,
        operations=False,
    )


_HARDEST = _beside(_hardest_negative, {"flash-kmeans": _flash_kmeans})

CASES: dict[str, TimedCase] = {
    "hardest_negative_128": TimedCase(Case(32768, 128), _HARDEST),
    "hardest_negative_256": TimedCase(Case(32768, 256), _HARDEST),
    "eps_clustered": TimedCase(Case(32768), _beside(_eps, {}), kind="clustered"),
    "eps_random": TimedCase(Case(32768), _beside(_eps, _of("eps_triplet", _COMPILED, "reference"))),
    "multi_similarity": TimedCase(Case(32768), _loss("multi_similarity")),
    "assignment": TimedCase(
        Case(1048576),
        {
            _PRODUCT_IN_BLOCKS: _product_with_centres,
            _KERNEL: _assignment,
            "flash-kmeans": lambda inputs: _flash_assignment(inputs.x, _centres(inputs)),
            _REPLAYED: replayed(_assignment),
        },
        yardstick=_PRODUCT_IN_BLOCKS,
        columns=_CENTRES,
    ),
    "nearest_positive": TimedCase(
        Case(131072),
        {
            **_of("nearest_positive", "clone", _KERNEL),
            **_of("nearest_positive", "batched torch.cdist"),
            _KNOWN_ORDER: _with_known_order,
        },
        yardstick="clone",
        calls={_KNOWN_ORDER: _COPIES},
        operations=False,
    ),
    "eps_collapsed": TimedCase(
        Case(32768),
        {
            "product, bfloat16": _PRODUCTS["product, bfloat16"],
            "ordinary": _eps,
            "one point": partial(_eps, kind="one point"),
            "two points": partial(_eps, kind="two points"),
        },
        kernel="ordinary",
    ),
    "eps_16384": TimedCase(
        Case(16384),
        _beside(_eps, _of("eps_triplet", "written out", _COMPILED, _PEER, "reference")),
    ),
    "pairwise_distance": TimedCase(
        Case(8192), {**_PRODUCTS, **_of("pairwise_distance", _KERNEL, "reference", "torch.cdist")}
    ),
    "pairwise_distance_backward": TimedCase(
        Case(8192),
        {
            **_PRODUCTS,
            **_of("pairwise_distance_backward", _KERNEL, "reference", "torch.cdist"),
        },
    ),
    "adaptive_distance": TimedCase(
        Case(8192),
        {**_PRODUCTS, **_of("adaptive_distance", _KERNEL, "reference", "one product")},
    ),
    "multi_cluster": TimedCase(
        Case(8192), _loss("multi_cluster", "written out", _COMPILED, "reference")
    ),
    "nearest_neighbors": TimedCase(
        Case(16384),
        {
            **_PRODUCTS,
            **_of("nearest_neighbors", _KERNEL, "reference", "torch.cdist and topk", "KeOps"),
        },
    ),
    "synthetic_ranking": _of_comparison("synthetic_ranking", _KERNEL, "written out", _COMPILED),
    "soft_assignment": _of_comparison("soft_assignment", _KERNEL, "torch.cdist and softmax"),
    "kmeans": _of_comparison("kmeans", _KERNEL, "reference"),
    "supcon": TimedCase(Case(32768), _loss("supcon")),
    "info_nce": TimedCase(Case(32768), _loss("info_nce")),
    # Last, as it may have to be given up: what is timed before it is safe.
    "eps_largest": TimedCase(Case(1048576), {_KERNEL: _eps}, yardstick=_KERNEL, deadline=45.0),
}
