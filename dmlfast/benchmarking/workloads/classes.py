"""Losses over many classes of several centres each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Contestant, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import training, training_step
from dmlfast.functional import soft_triple_loss, sub_center_arcface_loss

__all__ = ["WORKLOADS"]

CLASSES, CENTRES = 100_000, 3
# The defaults of the functions above.
LA, GAMMA, MARGIN = 20.0, 0.1, 0.01
SCALE, ANGLE = 64.0, 28.6

# Centres of a block of the yardstick.
_BLOCK = 8192


def _centres_of(inputs: Inputs) -> Tensor:
    """(CLASSES * CENTRES, d) rows of length 1, the same on every call."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES * CENTRES, inputs.x.shape[1], generator=generator)
    return torch.nn.functional.normalize(centres).to(inputs.x.device)


def _arguments(inputs: Inputs) -> Sequence[Tensor]:
    return inputs.leaf(), inputs.labels, _centres_of(inputs).requires_grad_()


def _product(inputs: Inputs) -> Step:
    """The rows times all centres, into the same memory again and again; the last block of it."""
    x, centres = inputs.x, _centres_of(inputs)
    warm = x.new_zeros(len(x), _BLOCK)

    def step() -> Tensor:
        for block in centres.split(_BLOCK):
            last = torch.mm(x, block.T, out=warm[:, : len(block)])
        return last

    return step


def _ours(loss: Callable[..., Tensor], x: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    return loss(x, labels, centres, centers_per_class=CENTRES)


def _similarities(x: Tensor, centres: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize
    similarity: Tensor = unit(x) @ unit(centres).T
    return similarity.view(len(x), CLASSES, CENTRES)


def _soft_triple_written_out(x: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    similarity = _similarities(x, centres)
    relaxed = (torch.softmax(similarity / GAMMA, 2) * similarity).sum(2)
    own = torch.zeros_like(relaxed).scatter(1, labels[:, None], MARGIN)
    return torch.nn.functional.cross_entropy(LA * (relaxed - own), labels)


def _sub_center_written_out(x: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    cosine = _similarities(x, centres).amax(2)
    angle = cosine.gather(1, labels[:, None]).acos()
    margin = torch.tensor(ANGLE).deg2rad()
    beyond = angle.cos() - margin * margin.sin()
    own = torch.where(angle <= torch.pi - margin, (angle + margin).cos(), beyond)
    return torch.nn.functional.cross_entropy(
        SCALE * cosine.scatter(1, labels[:, None], own), labels
    )


def _peer_step(module: Any, parameter: str, inputs: Inputs) -> Step:
    """The step of a module of pytorch-metric-learning with the same centres as columns."""
    x, labels, centres = _arguments(inputs)
    columns = torch.nn.Parameter(centres.detach().T.contiguous())
    setattr(module, parameter, columns)

    def loss(x: Tensor, labels: Tensor, _: Tensor) -> Any:
        return module(x, labels)

    return training_step(loss, inputs, lambda _: (x, labels, columns))


def _peer_soft_triple(inputs: Inputs) -> Step:
    from pytorch_metric_learning.losses import SoftTripleLoss

    module = SoftTripleLoss(CLASSES, inputs.x.shape[1], CENTRES, LA, GAMMA, MARGIN)
    return _peer_step(module, "fc", inputs)


def _peer_sub_center(inputs: Inputs) -> Step:
    from pytorch_metric_learning.losses import SubCenterArcFaceLoss

    module = SubCenterArcFaceLoss(
        num_classes=CLASSES, embedding_size=inputs.x.shape[1], sub_centers=CENTRES
    )
    return _peer_step(module, "W", inputs)


def _operations(case: Case) -> float:
    # One product, and two of its gradient.
    return 6.0 * case.rows * CLASSES * CENTRES * case.dimensions


def _workload(
    name: str,
    title: str,
    loss: Callable[..., Tensor],
    written_out: Callable[[Tensor, Tensor, Tensor], Tensor],
    peer: Contestant,
) -> Workload:
    return Workload(
        name=name,
        family="contrast",
        summary=f"{title} loss over {CLASSES} classes of {CENTRES} centres, forward and backward",
        contestants={
            "product in blocks": _product,
            "kernel": training(partial(_ours, loss), _arguments),
            "written out": training(written_out, _arguments),
            "pytorch-metric-learning": peer,
        },
        yardstick="product in blocks",
        cases=(Case(1024),),
        quick=Case(16),
        operations=_operations,
    )


WORKLOADS = (
    _workload(
        "soft_triple",
        "SoftTriple",
        soft_triple_loss,
        _soft_triple_written_out,
        _peer_soft_triple,
    ),
    _workload(
        "sub_center_arcface",
        "sub-centre ArcFace",
        sub_center_arcface_loss,
        _sub_center_written_out,
        _peer_sub_center,
    ),
)
