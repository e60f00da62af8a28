"""Batches with a fixed number of classes and of samples in each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from dmlfast.ops._arguments import check_count


class MPerClassSampler(Sampler[list[int]]):
    """Draw batches of `batch_size // samples_per_class` classes, `samples_per_class` of each.

    The classes of a batch are distinct, drawn uniformly. So are the samples of a class, except
    in a class that has fewer than `samples_per_class`, which is drawn with replacement. The
    samples of a class are adjacent in the batch.

    Randomness is drawn one batch at a time: the state of the generator between two batches,
    restored, gives the same following batches. (A DataLoader with workers draws ahead of the
    batches that it has handed out.) Memory O(N); a batch takes O(classes) for its classes and
    O(classes in the batch x size of the largest of them) for its samples.

    Args:
        labels: (N,) integers of any value, the class of every sample.
        batch_size: samples in a batch.
        samples_per_class: samples of each class in a batch; divides `batch_size`.
        batches: batches in one pass.
        generator: source of all randomness, on the CPU.

    Raises:
        ValueError: if the labels are not (N,) or hold fewer classes than a batch, if a number is
            below 1 or `batch_size` not a multiple, or if the generator is on another device.
        TypeError: if the labels or the numbers are not integers.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        batch_size: int,
        samples_per_class: int,
        batches: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise TypeError(f"labels: expected an integer dtype, got {labels.dtype}")
        if labels.ndim != 1:
            raise ValueError(f"labels: expected (N,), got {tuple(labels.shape)}")
        for name, value in (
            ("batch_size", batch_size),
            ("samples_per_class", samples_per_class),
            ("batches", batches),
        ):
            check_count(name, value)
        if batch_size % samples_per_class:
            raise ValueError(
                f"batch_size: expected a multiple of samples_per_class ({samples_per_class}), "
                f"got {batch_size}"
            )
        if generator.device.type != "cpu":
            raise ValueError(f"generator: expected one on the cpu, got {generator.device}")
        labels = labels.detach().cpu().long()
        # Sorted by label, the samples of a class are one run: its start and length say it all.
        self._order = labels.argsort(stable=True)
        self._counts = torch.unique(labels, return_counts=True)[1]
        self._starts = self._counts.cumsum(0) - self._counts
        if len(self._counts) * samples_per_class < batch_size:
            raise ValueError(
                f"labels: expected at least {batch_size // samples_per_class} classes "
                f"(batch_size // samples_per_class), got {len(self._counts)}"
            )
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.batches = batches
        self.generator = generator

    def sample(self) -> Tensor:
        """Draw one batch.

        Returns:
            (batch_size,) int64, indices into the labels.
        """
        each = self.samples_per_class
        chosen = torch.randperm(len(self._counts), generator=self.generator)
        chosen = chosen[: self.batch_size // each]
        counts = self._counts[chosen, None]
        # The smallest of random keys are a draw without replacement; the keys past the end of a
        # class are larger than any.
        width = max(int(counts.max()), each)
        keys = torch.rand((len(chosen), width), generator=self.generator)
        keys.masked_fill_(torch.arange(width) >= counts, 2)
        picks = keys.topk(each, largest=False).indices
        short = counts < each
        if short.any():
            repeated = torch.randint(2**62, picks.shape, generator=self.generator) % counts
            picks = torch.where(short, repeated, picks)
        return self._order[self._starts[chosen, None] + picks].flatten()

    def __iter__(self) -> Iterator[list[int]]:
        """Give `batches` batches, each drawn when it is asked for."""
        for _ in range(self.batches):
            yield self.sample().tolist()

    def __len__(self) -> int:
        """The number of batches of one pass."""
        return self.batches
