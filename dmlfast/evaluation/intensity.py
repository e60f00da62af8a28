"""Does the similarity to a sample fall as the intensity of its variants rises?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlfast._normalize import unit_rows
from dmlfast.evaluation.retrieval import embed
from dmlfast.ops._arguments import check_embeddings

__all__ = ["IntensityRanking", "evaluate_intensity_ranking", "view_similarities"]


@dataclass(frozen=True)
class IntensityRanking:
    """What `evaluate_intensity_ranking` returns; NaN without a row or with fewer than two columns.

    Attributes:
        order_accuracy: share of the pairs of intensities at which similarity falls, in [0, 1]; 1/2
            is chance.
        kendall_tau: mean of Kendall's tau-b between intensity and dissimilarity, in [-1, 1]; 0 is
            chance.
        num_rows: how many rows they are means over.
    """

    order_accuracy: float
    kendall_tau: float
    num_rows: int

    def as_dict(self) -> dict[str, float]:
        """Both values by name."""
        return {"order_accuracy": self.order_accuracy, "kendall_tau": self.kendall_tau}


def evaluate_intensity_ranking(similarities: Tensor) -> IntensityRanking:
    """Order accuracy and Kendall's tau of similarities against intensity.

    Over the pairs j < k of a row s, with F of them falling (s_k < s_j), R rising and T tied,

        order accuracy = F / (F + R + T)        tau-b = (F - R) / sqrt((F + R) (F + R + T))

    and 0 for the tau of a row that is all tied. Both are 1 where the similarity falls all the way;
    where there is no tie, tau = 2 accuracy - 1.

    Args:
        similarities: (B, J) floating, the columns by rising intensity, on any device.

    Returns:
        The means over the rows, in float64. Not differentiable.

    Memory: O(B·J).

    Raises:
        TypeError: `similarities` is no tensor of a floating dtype.
        ValueError: a wrong shape, or a value that is not finite.

    Source: Kendall, "The treatment of ties in ranking problems", Biometrika 1945, for tau-b.
    """
    values = check_embeddings("similarities", similarities).detach()
    rows, columns = values.shape
    bad = int((~values.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"similarities: expected finite rows, got {bad} of {rows} not so")
    if not rows or columns < 2:
        return IntensityRanking(math.nan, math.nan, rows)
    falling = torch.zeros(rows, dtype=torch.int64, device=values.device)
    rising = torch.zeros_like(falling)
    for gap in range(1, columns):
        earlier, later = values[:, :-gap], values[:, gap:]
        falling += (later < earlier).sum(1)
        rising += (later > earlier).sum(1)
    pairs = columns * (columns - 1) // 2
    untied = (falling + rising).double()
    tau = (falling - rising) / (untied.clamp(min=1) * pairs).sqrt()
    accuracy = falling.sum().double() / (rows * pairs)
    return IntensityRanking(float(accuracy), float(tau.mean()), rows)


def view_similarities(
    model: torch.nn.Module,
    images: Tensor,
    views: Sequence[Callable[[Tensor, torch.Generator], Tensor]],
    generator: torch.Generator,
) -> Tensor:
    """How similar embeddings of views are to those of their images.

    Args:
        model: a module that maps (n, ...) to (n, d), used as in `embed`.
        images: (N, ...), of the dtype the model takes.
        views: transforms by rising strength, such as `dmlfast.data.RandomView`; each is applied to
            the images, not to the view before it, with draws of its own.
        generator: source of all randomness.

    Returns:
        (N, J) float32 on the CPU: cosines, 0 where an embedding is zero. Not differentiable.

    Memory: the images of one view, and two embeddings of all images.

    Raises:
        TypeError: as `embed`.
        ValueError: as `embed`.
    """
    sources = unit_rows(embed(model, images))
    columns = [
        (sources * unit_rows(embed(model, view(images, generator)))).sum(1) for view in views
    ]
    return torch.stack(columns, 1) if columns else sources.new_empty(len(sources), 0)
