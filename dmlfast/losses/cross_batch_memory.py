"""A loss against a queue of the embeddings of past batches."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmlfast.losses._base import ShownModule
from dmlfast.losses._pair_lists import index_lists
from dmlfast.ops._arguments import (
    check_count,
    check_dimensions,
    check_embeddings,
    check_integers,
    check_tensor,
    describe,
)
from dmlfast.ops.contrast import AnchorSums
from dmlfast.ops.contrast_sums import ContrastSums


class CrossBatchMemory(ShownModule):
    """Compares each batch with a queue of past embeddings, with pytorch-metric-learning's call.

    A batch enters the queue, in place of the oldest rows when it is full, and is then compared
    with the whole queue. An anchor never meets its own copy, which is left out by its place in
    the queue inside the loss: duplicates of the anchor still count, and a nearest positive is
    the nearest of the others.

    The queue, its position and its fill count are buffers, so that a state dict resumes it
    exactly: `embedding_memory` (memory_size, embedding_size) and `label_memory` (memory_size,)
    int64, `queue_idx` () int64, the row that is written next, and `queue_fill` () int64, the
    number of rows in use, which are the first ones.

    Args:
        loss: a loss of dmlfast whose call takes `self_index`, such as `TripletMarginLoss`.
        embedding_size: dimensions of the embeddings.
        memory_size: rows of the queue, at least the size of a batch.
        miner: a callable (embeddings, labels, ref_emb, ref_labels) -> index tuple, whose pairs
            then are the only ones that count; None (default) leaves the choice to the loss. One
            that takes `self_index` too, as those of `dmlfast.miners` do, chooses among the
            others; from the choice of any other miner an anchor's own copy is dropped.

    Raises:
        TypeError: a loss that takes no `self_index`, a miner that cannot be called, or a size
            that is no integer.
        ValueError: a size below 1.

    Source: Wang et al., "Cross-batch memory for embedding learning", CVPR 2020.
    """

    shown = ("embedding_size", "memory_size")

    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: Tensor
    queue_fill: Tensor

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        *,
        miner: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module) or not _takes_self_index(loss):
            raise TypeError(
                "loss: expected a loss module of dmlfast whose call takes self_index, got "
                f"{type(loss).__module__}.{type(loss).__name__}"
            )
        if miner is not None and not callable(miner):
            raise TypeError(f"miner: expected a callable or None, got {describe(miner)}")
        self.loss = loss
        self.embedding_size = check_count("embedding_size", embedding_size)
        self.memory_size = check_count("memory_size", memory_size)
        self.miner = miner
        self._miner_takes_self_index = miner is not None and _takes_self_index(miner)
        self.register_buffer("embedding_memory", torch.zeros(memory_size, embedding_size))
        self.register_buffer("label_memory", torch.zeros(memory_size, dtype=torch.int64))
        self.register_buffer("queue_idx", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue_fill", torch.zeros((), dtype=torch.int64))

    def reset_queue(self) -> None:
        """Empties the queue."""
        for buffer in (self.embedding_memory, self.label_memory, self.queue_idx, self.queue_fill):
            buffer.zero_()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor | AnchorSums | ContrastSums:
        """Enqueues the batch and computes its loss against the queue.

        Args:
            embeddings: (N, embedding_size) floating, on the device of the module. Computed with
                in the dtype of the queue, float32 unless the module was cast; that must hold
                the embeddings exactly, so float64 needs `.double()` on the module.
            labels: (N,) any integer dtype.
            indices_tuple: (anchor, positive, negative) or (anchor, positive, anchor, negative)
                index tensors; then exactly these count, except that pairs of an anchor with its
                own copy are dropped. Anchors are rows of `embeddings`, the others of the queue
                as it is with this batch in it; one that is not in use yet makes the loss NaN.
                Not together with a miner or `enqueue_mask`.
            enqueue_mask: (N,) bool, on the device of `embeddings` or on the CPU. Where True a row
                enters the queue and is no anchor; where False it is an anchor and stays out.

        Returns:
            What the loss returns for the anchors. Gradients flow to `embeddings`, as anchors:
            the queue holds detached copies.

        Memory: O((N + memory_size)·embedding_size) beside that of the loss; the queue is copied,
        so that it may move on before the backward pass. On CUDA nothing waits for the device,
        except for the lengths of what is given as a mask on the device, an index tuple or a
        miner; so `torch.compile(fullgraph=True)` works without these.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, more rows than the queue has, or arguments that
                exclude each other. A refused argument leaves the queue as it was.
            IndexError: an index of `indices_tuple` that is no row; found after the queue moved on,
                unless it is negative.
        """
        x = self._check_embeddings(embeddings)
        classes = check_integers("labels", labels, x.shape[0], x.device)
        indices = None
        if indices_tuple is not None:
            if enqueue_mask is not None or self.miner is not None:
                other = "a miner" if enqueue_mask is None else "enqueue_mask"
                raise ValueError(
                    f"indices_tuple: expected None with {other}, got {describe(indices_tuple)}"
                )
            indices = index_lists(indices_tuple, x.device)
        if enqueue_mask is None:
            own: Tensor | None = self._enqueue(x, classes)
        else:
            mask = _check_mask(enqueue_mask, x)
            self._enqueue(x[mask], classes[mask])
            x, classes, own = x[~mask], classes[~mask], None
        in_use = torch.arange(self.memory_size, device=x.device) < self.queue_fill
        # No loss and no selection ever chooses a reference of NaN; and being a copy, what is
        # saved for the backward pass outlives the next change of the queue.
        references = torch.where(in_use[:, None], self.embedding_memory, math.nan)
        reference_labels = self.label_memory.clone()
        if self.miner is not None:
            indices = self._mine(self.miner, x, classes, references, reference_labels, own)
        loss: Tensor | AnchorSums | ContrastSums
        if indices is None:
            loss = self.loss(
                x, classes, ref_emb=references, ref_labels=reference_labels, self_index=own
            )
            return loss
        if own is not None:
            indices = _without_own(indices, own)
        loss = self.loss(x, classes, tuple(indices), references, reference_labels, self_index=own)
        return loss

    def _check_embeddings(self, embeddings: Tensor) -> Tensor:
        x = check_embeddings("embeddings", embeddings)
        memory = self.embedding_memory
        check_dimensions("embeddings", x, self.embedding_size)
        if x.device != memory.device:
            raise ValueError(
                f"embeddings: expected the device of the queue, {memory.device}, got {describe(x)}"
            )
        if torch.promote_types(x.dtype, memory.dtype) != memory.dtype:
            raise TypeError(
                f"embeddings: expected a dtype that the queue of {memory.dtype} holds exactly "
                f"(cast the module for others), got {describe(x)}"
            )
        return x.to(memory.dtype)

    def _enqueue(self, x: Tensor, labels: Tensor) -> Tensor:
        """Writes rows into the queue and returns (N,) where they are."""
        rows = x.shape[0]
        if rows > self.memory_size:
            raise ValueError(
                f"embeddings: expected at most {self.memory_size} rows for the queue, got {rows}"
            )
        slots = (self.queue_idx + torch.arange(rows, device=x.device)) % self.memory_size
        self.embedding_memory.index_copy_(0, slots, x.detach())
        self.label_memory.index_copy_(0, slots, labels)
        self.queue_idx.copy_((self.queue_idx + rows) % self.memory_size)
        self.queue_fill.copy_((self.queue_fill + rows).clamp(max=self.memory_size))
        return slots

    def _mine(
        self,
        miner: Callable[..., Any],
        x: Tensor,
        labels: Tensor,
        references: Tensor,
        reference_labels: Tensor,
        own: Tensor | None,
    ) -> list[Tensor]:
        with torch.no_grad():
            if self._miner_takes_self_index:
                indices = miner(x, labels, references, reference_labels, self_index=own)
            else:
                # Other miners do not pass over references of NaN, and need the length.
                fill = int(self.queue_fill)
                indices = miner(x, labels, references[:fill], reference_labels[:fill])
        return index_lists(indices, x.device)


def _takes_self_index(module: Callable[..., Any]) -> bool:
    call = getattr(module, "forward", module)
    return "self_index" in inspect.signature(call).parameters


def _check_mask(value: object, x: Tensor) -> Tensor:
    mask = check_tensor("enqueue_mask", value)
    if mask.dtype != torch.bool:
        raise TypeError(f"enqueue_mask: expected torch.bool, got {describe(mask)}")
    if mask.dim() != 1 or mask.shape[0] != x.shape[0]:
        raise ValueError(f"enqueue_mask: expected shape ({x.shape[0]},), got {describe(mask)}")
    if mask.device not in (x.device, torch.device("cpu")):
        raise ValueError(f"enqueue_mask: expected device {x.device} or cpu, got {describe(mask)}")
    return mask


def _without_own(indices: list[Tensor], own: Tensor) -> list[Tensor]:
    """Triplets or pairs without those in which an anchor meets its own copy."""
    if len(indices) == 3:
        anchor, positive, negative = indices
        others = (positive != own[anchor]) & (negative != own[anchor])
        return [index[others] for index in indices]
    anchor, positive, negative_anchor, negative = indices
    to_others = positive != own[anchor]
    from_others = negative != own[negative_anchor]
    return [
        anchor[to_others],
        positive[to_others],
        negative_anchor[from_others],
        negative[from_others],
    ]
