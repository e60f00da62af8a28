"""k-means, and soft assignment to centres."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Contestant, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import on_reference
from dmlfast.functional import assign_clusters, kmeans

__all__ = ["WORKLOADS"]

CLUSTERS = 1024
ITERATIONS = 5
CENTRES = 4096
TEMPERATURE = 0.1

# Of rows and centres; a scalar tensor.
_Loss = Callable[[Tensor, Tensor], Tensor]


def _centres_of(x: Tensor, count: int) -> Tensor:
    """(count, d) rows of length 1, the same on every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(count, x.shape[1], generator=generator))


def _product(count: int, inputs: Inputs) -> Step:
    x, centres = inputs.x, _centres_of(inputs.x, count).to(inputs.x.device)
    warm = x.new_zeros(len(x), count)
    return lambda: torch.mm(x, centres.T, out=warm)


# --- k-means: all start from the same rows, and return the inertia at the end ---------------------


def _first_rows(x: Tensor) -> Tensor:
    """As many rows as there are clusters; again and again where there are fewer."""
    return x[torch.arange(CLUSTERS, device=x.device) % len(x)]


def _kmeans(inputs: Inputs) -> Step:
    initial = _first_rows(inputs.x)
    return lambda: kmeans(inputs.x, CLUSTERS, iterations=ITERATIONS, initial=initial).inertia


def _faiss(inputs: Inputs) -> Step:
    from faiss import Kmeans

    x, initial = inputs.x.numpy(), _first_rows(inputs.x).numpy()

    def step() -> Tensor:
        # All rows, however many or few there are.
        search = Kmeans(
            x.shape[1],
            CLUSTERS,
            niter=ITERATIONS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(x),
        )
        search.train(x, init_centroids=initial)
        return torch.tensor(search.assign(x)[0].sum(dtype="float64"))

    return step


def _scikit_learn(inputs: Inputs) -> Step:
    from sklearn.cluster import KMeans

    x, initial = inputs.x.numpy(), _first_rows(inputs.x).numpy()
    search = KMeans(CLUSTERS, init=initial, n_init=1, max_iter=ITERATIONS, tol=0.0)
    return lambda: torch.tensor(search.fit(x).inertia_, dtype=torch.float64)


# --- soft assignment ------------------------------------------------------------------------------


def _mean_distance(x: Tensor, centres: Tensor) -> Tensor:
    return assign_clusters(x, centres, temperature=TEMPERATURE).mean.sum()


def _written_out(x: Tensor, centres: Tensor) -> Tensor:
    distance = torch.cdist(x, centres)
    return (torch.softmax(-distance / TEMPERATURE, 1) * distance).sum()


def _step(loss: _Loss, inputs: Inputs) -> Step:
    leaves = inputs.leaf(), _centres_of(inputs.x, CENTRES).to(inputs.x.device).requires_grad_()

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves)
        value.backward()
        return value.detach()

    return step


def _training(loss: _Loss) -> Contestant:
    return partial(_step, loss)


def _compiled_step(loss: _Loss, inputs: Inputs) -> Step:
    with torch._dynamo.config.patch(recompile_limit=64):
        step = _step(torch.compile(loss, fullgraph=True, dynamic=False), inputs)
        step()
    return step


def _iterations_operations(case: Case) -> float:
    return 2.0 * (ITERATIONS + 1) * case.rows * CLUSTERS * case.dimensions


def _soft_operations(case: Case) -> float:
    # One product, and two of its gradient.
    return 6.0 * case.rows * CENTRES * case.dimensions


WORKLOADS = (
    Workload(
        name="kmeans",
        family="clusters",
        summary=f"{ITERATIONS} iterations with {CLUSTERS} centres, and the assignment to the last",
        contestants={
            "product": partial(_product, CLUSTERS),
            "kernel": _kmeans,
            "reference": on_reference(_kmeans),
            "faiss": _faiss,
            "scikit-learn": _scikit_learn,
        },
        yardstick="product",
        cases=(Case(131072),),
        quick=Case(2048),
        operations=_iterations_operations,
    ),
    Workload(
        name="soft_assignment",
        family="clusters",
        summary=f"mean distance to {CENTRES} centres by soft assignment, forward and backward",
        contestants={
            "product": partial(_product, CENTRES),
            "kernel": _training(_mean_distance),
            "reference": on_reference(_training(_mean_distance)),
            "torch.cdist and softmax": _training(_written_out),
            "torch.cdist and softmax, compiled": partial(_compiled_step, _written_out),
        },
        yardstick="product",
        cases=(Case(32768),),
        quick=Case(512),
        operations=_soft_operations,
    ),
)
