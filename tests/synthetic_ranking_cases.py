"""Batches, losses over synthesised samples, and their formulas in plain float64 loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dmlfast import losses
from dmlfast.losses import (
    MetricTerm,
    RankingTerm,
    Synthesis,
    SyntheticRankingLoss,
    SyntheticWeights,
)

N, D, CLASSES = 14, 6, 4
# What the constructor is given beside the sizes; published defaults else.
VARIANTS = {
    "published": {},
    "band": {"ranking": RankingTerm(pairs="band", margin=0.03)},
    "adjacent": {"ranking": RankingTerm(pairs="adjacent", margin=0.2, scale=7.0)},
    "cosines qualify": {"synthesis": Synthesis(select="cosine", threshold=0.3)},
    "all qualify": {"synthesis": Synthesis(select="all")},
    "classes draw": {"synthesis": Synthesis(shuffle="class", select="all")},
    "one intensity": {"synthesis": Synthesis(count=1)},
    "short steps": {"synthesis": Synthesis(count=3, radius=0.2)},
    "wide projection": {"synthesis": Synthesis(projection_size=9)},
    "detached": {"synthesis": Synthesis(detach=True)},
    "projected": {"base_on": "projected"},
    "mean of classes": {"weights": SyntheticWeights(classes="mean", total=2.3)},
    "ranking only": {"weights": SyntheticWeights(metric=0.0)},
    "metric only": {
        "weights": SyntheticWeights(ranking=0.0),
        "metric": MetricTerm(margin=0.3, scale=9.0),
    },
    "quirks": {"reference_quirks": True},
    "quirks, all qualify": {"reference_quirks": True, "synthesis": Synthesis(select="all")},
    "as released": {"reference_quirks": True, "base_on": "projected"},
    "no proxies": {"base": "triplet"},
    "no proxies, all qualify": {"base": "triplet", "synthesis": Synthesis(select="all")},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def batch(seed: int = 0, n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Embeddings of four classes, of which the last has one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % (CLASSES - 1)
    labels[n // 2] = CLASSES - 1
    return x.to(dtype).requires_grad_(), labels


def module(variant: str | None = None, **options: object) -> SyntheticRankingLoss:
    """A loss in float64 whose parameters are all in general position."""
    given = {**(VARIANTS[variant] if variant else {}), **options}
    torch.manual_seed(1)
    if given.get("base") == "triplet":
        given["base"] = losses.TripletMarginLoss(0.2, positives="nearest")
    classes = None if "base" in given else CLASSES
    loss = SyntheticRankingLoss(classes, D, **given).double()
    with torch.no_grad():
        loss.projector.bias.normal_(std=0.1)
    return loss


def unit(v: Tensor) -> Tensor:
    length = v.square().sum().sqrt()
    return v / length if length > 0 else v * 0


class Transcription:
    """methods 2.2 to 2.7 with the parameters of a module, one number at a time."""

    def __init__(self, loss: SyntheticRankingLoss, order: Tensor) -> None:
        self.loss, self.order = loss, order
        self.weight, self.bias = loss.projector.weight, loss.projector.bias

    def q(self, v: Tensor) -> Tensor:
        return unit(self.weight @ v + self.bias).clamp(min=0)

    def synthesised(self, x: Tensor, row: int) -> list[Tensor]:
        order = self.order if self.order.dim() == 1 else self.order[row]
        result = []
        for j, direction in enumerate(order.tolist(), start=1):
            offset = j * self.loss.radius * unit(self.loss.directions[direction])
            result.append(x + (unit(offset) if self.loss.reference_quirks else offset))
        return result

    def ranking(self, x: Tensor, row: int) -> Tensor:
        term = self.loss.ranking
        s = [self.q(r) @ self.q(x) for r in self.synthesised(x, row)]
        right, left = x.new_zeros(()), x.new_zeros(())
        for k in range(len(s)):
            for j in range(k):
                if term.pairs == "adjacent" and k != j + 1:
                    continue
                right = right + torch.exp(term.scale * (s[k] - s[j] + term.margin))
                left = left + torch.exp(-term.scale * (s[k] - s[j] + k * term.margin))
        value = torch.log(1 + right)
        if term.pairs == "band":
            value = value + torch.log(1 + left)
        return 2 * value / term.scale

    def metric(self, x: Tensor, row: int, target: Tensor) -> Tensor:
        term = self.loss.metric
        similarities = [self.q(r) @ target for r in self.synthesised(x, row)]
        return torch.log(1 + sum(torch.exp(term.scale * (term.margin - s)) for s in similarities))

    def anchor(self, units: list[Tensor], labels: list[int], row: int) -> Tensor | None:
        proxies = getattr(self.loss.base, "proxies", None)
        if proxies is not None:
            return proxies[labels[row]]
        others = [u for j, u in enumerate(units) if labels[j] == labels[row] and j != row]
        return unit(sum(others) / len(others)).detach() if others else None

    def qualifies(self, x: Tensor, anchor: Tensor | None) -> bool:
        options = self.loss.synthesis
        if anchor is None or options.select == "all":
            return anchor is not None
        value = anchor @ x / (1 if options.select == "raw" else anchor.norm())
        return bool(value >= options.threshold)

    def base(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.loss.base_on == "projected":
            x = torch.stack([self.q(unit(row)) for row in x])
        if not hasattr(self.loss.base, "proxies"):
            return self.loss.base(x, labels)
        pull, push, with_positives = 0, 0, 0
        for c, proxy in enumerate(self.loss.base.proxies):
            s = [unit(row) @ unit(proxy) for row in x]
            own = [torch.exp(-32 * (v - 0.1)) for v, y in zip(s, labels, strict=True) if y == c]
            other = [torch.exp(32 * (v + 0.1)) for v, y in zip(s, labels, strict=True) if y != c]
            with_positives += bool(own)
            pull = pull + torch.log(1 + sum(own, x.new_zeros(())))
            push = push + torch.log(1 + sum(other, x.new_zeros(())))
        return pull / with_positives + push / CLASSES

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        options, weights = self.loss.synthesis, self.loss.weights
        classes = labels.tolist()
        units = [unit(row.detach() if options.detach else row) for row in x]
        terms, found = x.new_zeros(()), 0
        for c in sorted(set(classes)):
            rows = [i for i in range(len(classes)) if classes[i] == c]
            anchors = {i: self.anchor(units, classes, i) for i in rows}
            rows = [i for i in rows if self.qualifies(units[i], anchors[i])]
            if not rows:
                continue
            found += 1
            if self.loss.reference_quirks:
                target = anchors[rows[0]]
                for i in rows:
                    target = self.q(target)
                    metric = self.metric(units[i], i, target)
            else:
                values = [self.metric(units[i], i, self.q(anchors[i])) for i in rows]
                metric = sum(values) / len(rows)
            ranking = sum(self.ranking(units[i], i) for i in rows) / len(rows)
            terms = terms + weights.metric * metric + weights.ranking * ranking
        if weights.classes == "mean":
            terms = terms / max(1, found)
        return self.base(x, labels) + weights.total * terms


def with_order(loss: SyntheticRankingLoss, labels: Tensor) -> Tensor:
    """Makes a loss draw an order that is none of the plain ones, and returns it."""
    count = len(loss.directions)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(7))
    if loss.shuffle == "class":
        order = torch.stack([order.roll(int(label)) for label in labels])
    loss.draw = lambda groups: order
    return order


def gradients(value: Tensor, loss: nn.Module, x: Tensor) -> dict[str, Tensor]:
    wanted = {"x": x, **dict(loss.named_parameters())}
    found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(wanted.items(), found, strict=True)
    }
