"""Every public function that operators serve, forward and backward, at any size on any device.

`python -m on_gpu.operators` calls them at small odd sizes, for compute-sanitizer to watch.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dmlfast.functional as F
from on_gpu.stages import ALL_CALLED

__all__ = ["CALLS", "Call", "results", "served_by_kernels"]

# Rows and labels of a batch, its references and their labels; what the function returns.
Call = Callable[[Tensor, Tensor, Tensor, Tensor], Any]

# Rows, dimensions: below, at and above the edges of tiles and vectors, one of everything, and
# pairs enough that selections search for candidates first.
SIZES = ((1, 1), (2, 3), (65, 17), (129, 33), (258, 130), (1031, 20))
PROBLEMS = [(size, torch.float32) for size in SIZES] + [
    ((65, 17), dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)
]
METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")


def _batch(function: Callable[..., Any], **options: Any) -> Call:
    return lambda x, labels, *_: function(x, labels, **options)


def _references(function: Callable[..., Any], **options: Any) -> Call:
    return lambda x, labels, references, reference_labels: function(
        x, labels, references, reference_labels, **options
    )


def _semihard(x: Tensor, labels: Tensor, *_: Tensor, metric: str) -> Any:
    beyond = F.nearest_positive(x, labels, metric=metric).distance
    return F.semihard_negative(x, labels, beyond=beyond, metric=metric)


def _semihard_thresholds(
    x: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor
) -> Any:
    beyond = torch.linspace(0, 2, 3 * len(x), device=x.device).reshape(-1, 3)
    return F.semihard_negative(
        x, labels, references, reference_labels, beyond=beyond, missing="hardest"
    )


def _sample(x: Tensor, labels: Tensor, *_: Tensor) -> Any:
    return F.sample_negative(x, labels, generator=torch.Generator().manual_seed(5))


def _centres(function: Callable[..., Any]) -> Call:
    """A loss against two centres a class."""
    return lambda x, labels, references, _: function(
        x,
        labels % (len(references) // 2),
        references[: len(references) // 2 * 2],
        centers_per_class=2,
    )


def _proxies(function: Callable[..., Any]) -> Call:
    return lambda x, labels, references, _: function(x, labels % len(references), references)


def _matrix(x: Tensor, _: Tensor, references: Tensor, __: Tensor, *, metric: str) -> Any:
    return F.pairwise_distance(x, metric=metric), F.pairwise_distance(x, references, metric=metric)


def _statistics(x: Tensor, *_: Tensor) -> Any:
    return tuple(F.distance_statistics(x)[:2]) if len(x) > 1 else ()


def _synthesis(x: Tensor, _: Tensor, references: Tensor, __: Tensor) -> Any:
    synthesised = partial(F.synthesis_similarity, x, references[:5], references)
    return synthesised(), synthesised(targets=(x @ references.T).detach())


def _synthetic_ranking(x: Tensor, _: Tensor, references: Tensor, __: Tensor) -> Any:
    return F.synthetic_ranking_loss(x, references[:5], references)


def _structure(references: Tensor, rows: int) -> Tensor:
    """Weights of dimensions from 0.5 to 1.5."""
    return 1 + references[:rows].tanh() / 2


def _adaptive(x: Tensor, _: Tensor, references: Tensor, __: Tensor) -> Any:
    weights = _structure(references, len(x))
    return F.adaptive_distance(x, weights), F.adaptive_distance(x, weights, references)


def _multi_cluster(x: Tensor, _: Tensor, references: Tensor, __: Tensor, **options: Any) -> Any:
    return F.multi_cluster_loss(x, _structure(references, len(x)), **options)


def _assigned(x: Tensor, _: Tensor, centers: Tensor, __: Tensor) -> Any:
    return *F.assign_clusters(x, centers), *F.assign_clusters(x, centers, temperature=0.3)


def _cluster_means(x: Tensor, labels: Tensor, *_: Tensor) -> Any:
    return F.cluster_means(x, labels, len(x))


def _kmeans(x: Tensor, _: Tensor, references: Tensor, __: Tensor) -> Any:
    initial = references[: 1 + len(x) // 4].detach()
    return F.kmeans(x, len(initial), iterations=2, initial=initial)


def _neighbors(x: Tensor, labels: Tensor, references: Tensor, __: Tensor) -> Any:
    of_all = F.nearest_neighbors(x, references, k=20)
    return *of_all, *F.nearest_neighbors(x, k=5, query_labels=labels, candidates="negatives")


def _calls() -> dict[str, Call]:
    one = {"positives": "nearest", "negatives": "semihard", "margin": 0.2}
    calls: dict[str, Call] = {}
    for metric in METRICS:
        for name in ("nearest_positive", "farthest_positive", "hardest_negative"):
            calls[f"{name}, {metric}"] = _batch(getattr(F, name), metric=metric)
        calls[f"semihard_negative, {metric}"] = partial(_semihard, metric=metric)
        calls[f"pairwise_distance, {metric}"] = partial(_matrix, metric=metric)
        calls[f"multi_similarity_loss, {metric}"] = _batch(F.multi_similarity_loss, metric=metric)
        calls[f"triplet_margin_loss, {metric}"] = _batch(F.triplet_margin_loss, metric=metric)
    return calls | {
        "hardest_negative, references": _references(F.hardest_negative),
        "nearest_positive, references": _references(F.nearest_positive),
        "semihard_negative, thresholds": _semihard_thresholds,
        "sample_negative": _sample,
        "nearest_neighbors": _neighbors,
        "distance_statistics": _statistics,
        "triplet_margin_loss, EPS": _batch(F.triplet_margin_loss, **one),
        "triplet_margin_loss, batch hard": _batch(
            F.triplet_margin_loss, positives="farthest", negatives="hardest"
        ),
        "triplet_margin_loss, references": _references(F.triplet_margin_loss, **one),
        "margin_loss": _batch(F.margin_loss, boundary=1.0),
        "contrastive_loss": _batch(F.contrastive_loss),
        "contrastive_loss, references": _references(F.contrastive_loss),
        "multi_similarity_loss, mined": _batch(F.multi_similarity_loss, epsilon=0.1),
        "multi_similarity_loss, references": _references(F.multi_similarity_loss),
        "info_nce_loss": _batch(F.info_nce_loss),
        "nca_loss": _batch(F.nca_loss),
        "supcon_loss": _batch(F.supcon_loss),
        "proxy_nca_loss": _proxies(F.proxy_nca_loss),
        "proxy_anchor_loss": _proxies(F.proxy_anchor_loss),
        "soft_triple_loss": _centres(F.soft_triple_loss),
        "sub_center_arcface_loss": _centres(F.sub_center_arcface_loss),
        "ranking_loss": lambda x, *_: F.ranking_loss(x),
        "ranking_loss, band": lambda x, *_: F.ranking_loss(x, pairs="band"),
        "synthesis_similarity": _synthesis,
        "synthetic_ranking_loss": _synthetic_ranking,
        "assign_clusters": _assigned,
        "cluster_means": _cluster_means,
        "kmeans": _kmeans,
        "adaptive_distance": _adaptive,
        "multi_cluster_loss": _multi_cluster,
        "multi_cluster_loss, ordered": partial(_multi_cluster, clusters=4, order_weight=0.5),
    }


CALLS: Mapping[str, Call] = _calls()


def inputs(
    rows: int, dimensions: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch and references, of unit rows around centres, with leaves that take gradients."""
    generator = torch.Generator().manual_seed(rows + dimensions)
    classes = max(1, rows // 4)
    centres = torch.randn(classes, dimensions, generator=generator)
    parts: list[Tensor] = []
    for count in (rows, rows + 7):
        labels = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, dimensions, generator=generator)
        points = torch.nn.functional.normalize(centres[labels] + 0.5 * noise)
        parts += [points.to(device, dtype).requires_grad_(), labels.to(device)]
    return parts[0], parts[1], parts[2], parts[3]


def results(call: Call, of: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    """What a function returns, and the gradients of the sum of what is finite in it."""
    x, labels, references, reference_labels = of
    leaves = [x.detach().requires_grad_(), references.detach().requires_grad_()]
    returned = call(leaves[0], labels, leaves[1], reference_labels)
    parts = [returned] if isinstance(returned, Tensor) else [*returned]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    sums = [torch.where(part.isfinite(), part, 0).sum() for part in tensors if part.requires_grad]
    if sums:
        torch.stack([part.double() for part in sums]).sum().backward()
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [tensor.detach() for tensor in tensors] + grads


class _Namespaces(TorchDispatchMode):
    """Collects the namespaces of the operators called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.add(func.namespace)
        return func(*args, **(kwargs or {}))


def served_by_kernels(device: str) -> list[str]:
    """The calls that kernels serve on a device; plain torch serves the others."""
    served = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for name, call in CALLS.items():
            with _Namespaces() as mode:
                results(call, inputs(9, 3, torch.float32, device))
            if "dmlfast_reference" not in mode.called:
                served.append(name)
    return served


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    served = served_by_kernels(device)
    count = 0
    raised: dict[str, str] = {}
    for (rows, dimensions), dtype in PROBLEMS:
        of = inputs(rows, dimensions, dtype, device)
        for name in served:
            count += 1
            try:
                results(CALLS[name], of)
                if device == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:  # the others are to be called as well
                raised[f"{name}, N={rows}, {dtype}"] = str(error).partition("\n")[0]
    unserved = sorted(set(CALLS) - set(served))
    if not raised:
        print(ALL_CALLED)
    answer = {"calls": count, "operators": served, "plain torch": unserved, "raised": raised}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
