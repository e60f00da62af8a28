"""Samples synthesised along learnt directions, and their projection, which two losses share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast._normalize import unit_rows
from dmlfast.losses._base import ShownModule, promoted
from dmlfast.ops._arguments import check_count, check_generator, check_option, check_positive

SHUFFLES = ("batch", "class", "none")


class SynthesisHead(ShownModule):
    """A bank of directions and a projector, whose similarities are what a loss ranks.

    Sample i at intensity j, counted from 1, is x_i + j * radius * u with a direction u of the
    bank, scaled to unit length; which direction is at which intensity is drawn at every call. It
    is compared by q(v) = relu(unit(W v + b)).

    The state dict holds `directions` (count, embedding_size), `projector.weight`
    (projection_size, embedding_size) and `projector.bias`.

    Args:
        embedding_size: dimensions of the samples.
        count: directions, and intensities.
        radius: distance of one intensity from the next, greater than 0.
        projection_size: rows of W; None for `embedding_size`.
        shuffle: "batch" draws one order of the directions a call, "class" one for each class,
            "none" keeps that of the bank.
        generator: what decides the draws; None for torch's own.
    """

    def __init__(
        self,
        embedding_size: int,
        *,
        count: int,
        radius: float,
        projection_size: int | None,
        shuffle: str,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.embedding_size = check_count("embedding_size", embedding_size)
        self.radius = check_positive("radius", radius)
        self.shuffle = check_option("shuffle", shuffle, SHUFFLES)
        self.generator = check_generator(generator)
        if projection_size is None:
            projection_size = embedding_size
        check_count("projection_size", projection_size)
        self.directions = nn.Parameter(torch.empty(check_count("count", count), embedding_size))
        nn.init.kaiming_normal_(self.directions, mode="fan_out")
        self.projector = nn.Linear(embedding_size, projection_size)
        nn.init.orthogonal_(self.projector.weight)
        nn.init.zeros_(self.projector.bias)

    def project(self, x: Tensor) -> Tensor:
        """Q of (N, embedding_size) rows, (N, projection_size), float32 or better."""
        x, weight = promoted(x, self.projector.weight)
        # Rounding that autocast would bring is not part of any operator here.
        with torch.autocast(x.device.type, enabled=False):
            bias = self.projector.bias.to(weight.dtype)
            return unit_rows(nn.functional.linear(x, weight, bias)).relu()

    def draw(self, groups: Tensor) -> Tensor:
        """Which direction is at which intensity.

        Args:
            groups: (N,) int64 in [0, N), equal for the rows of a class.

        Returns:
            (count,) indices of directions, or (N, count) when they are drawn for each class.
        """
        count, device = self.directions.shape[0], groups.device
        if self.shuffle == "none":
            return torch.arange(count, device=device)
        source = torch.device("cpu") if self.generator is None else self.generator.device
        if self.shuffle == "batch":
            order = torch.randperm(count, generator=self.generator, device=source)
            return order.to(device)
        # An order for every row, of which a class takes one: how many classes there are is data.
        keys = torch.rand((groups.shape[0], count), generator=self.generator, device=source)
        return keys.argsort(1).to(device)[groups]

    def similarities(
        self, x: Tensor, order: Tensor, *, targets: Tensor | None = None, level: bool = False
    ) -> Tensor:
        """Similarities of the synthesised samples of each row to its own projection.

        Args:
            x: (N, embedding_size) of unit length.
            order: as `draw` returns it.
            targets: (N, projection_size), what to compare with instead.
            level: every offset has length 1, whatever its intensity.

        Returns:
            (N, count), by rising intensity. No (N, count, embedding_size) tensor is made.
        """
        count = self.directions.shape[0]
        bank = unit_rows(self.directions)
        steps = self.radius * torch.arange(1, count + 1, device=bank.device, dtype=bank.dtype)
        if order.dim() == 1:
            offsets = bank[order] if level else bank[order] * steps[:, None]
            return self._similarities(x, offsets, targets)
        if level:
            return self._similarities(x, bank, targets).gather(1, order)
        # Every direction at every intensity, of which each row takes one an intensity.
        offsets = (bank * steps[:, None, None]).flatten(0, 1)
        places = order + count * torch.arange(count, device=order.device)
        return self._similarities(x, offsets, targets).gather(1, places)

    def _similarities(self, x: Tensor, offsets: Tensor, targets: Tensor | None) -> Tensor:
        weight, bias = self.projector.weight, self.projector.bias
        dtype = torch.promote_types(x.dtype, weight.dtype)
        return functional.synthesis_similarity(
            x.to(dtype),
            offsets.to(dtype),
            weight.to(dtype),
            bias.to(dtype),
            targets=None if targets is None else targets.to(dtype),
        )
