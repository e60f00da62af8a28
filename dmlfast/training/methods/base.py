"""What a training method is: its settings, its parameters and its loss of a batch."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlfast.data import DataSet
from dmlfast.evaluation import embed
from dmlfast.models import ConvolutionalEmbedding

# A file of the run folder by name, to be written to: `RunFolder.replacing`.
Replacing = Callable[[str], AbstractContextManager[Path]]


def setting(default: Any, text: str) -> Any:
    """A field of settings, with its default and what the command line says about it."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What a method can be set to: a number, a flag, a text or one of several literals each.

    They stand beside those of every run in `config.json`, and so have names of their own.
    """

    # What the method is called, on the command line and in `config.json`.
    name: ClassVar[str]

    def title(self) -> str:
        """What tells runs of one data set apart, for the name of a run folder."""
        return self.name


class Task(NamedTuple):
    """What a method is created for.

    Attributes:
        classes: labels of training batches are in [0, classes).
        dimensions: length of the embedding.
        feature_size: what the network hands to its head.
        generator: source of all randomness of the method after its creation, on the CPU.
    """

    classes: int
    dimensions: int
    feature_size: int
    generator: torch.Generator


class Batch(NamedTuple):
    """What a step is done on.

    Attributes:
        images: (N, C, H, W), augmented, on the CPU.
        labels: (N,) int64 in [0, classes), on the device.
        device: where the network is.
    """

    images: Tensor
    labels: Tensor
    device: torch.device


class StepLoss(NamedTuple):
    """What a method makes of a batch.

    Attributes:
        loss: a scalar to minimise.
        active: a share that the method reports beside it.
    """

    loss: Tensor
    active: float


class Method(nn.Module, ABC):
    """A way to train an embedding: the loss of a batch, and parameters beside the network's.

    The parameters of the module are trained, kept in checkpoints and restored like the network's,
    from the same seed in every run. They are created from torch's own generator, which the caller
    seeds; anything drawn later comes from the generator of the task.
    """

    # Steps at the start in which the blocks of the network stay as they are: only its head and
    # the method's own parameters are trained.
    warmup_steps: int = 0
    # Every gradient's numbers are cut to at most this much either way; None leaves them.
    gradient_clip: float | None = None
    # That of the triplets which the collapse metrics count, of unit vectors.
    margin: float = 0.2
    # Whether the active share is that of the anchors with an active triplet of unit vectors.
    active_share_is_of_anchors: bool = False
    # What `evaluate` returns, as "<split>/<group>/<metric>"; a group of the test split is a part
    # of the metrics that a run reports.
    evaluated: tuple[str, ...] = ()
    # Whether `embed` gives rows of unit length.
    normalized: bool = True

    @abstractmethod
    def loss_of(self, model: ConvolutionalEmbedding, batch: Batch) -> StepLoss:
        """The loss of a batch; both need gradients."""

    @abstractmethod
    def rehearse(self, device: torch.device) -> None:
        """Call every operator of the loss once, on next to nothing and without a draw.

        Raises:
            RuntimeError: if the compiled library is needed and not there.
        """

    def parameter_groups(
        self, model: ConvolutionalEmbedding, learning_rate: float
    ) -> list[dict[str, Any]]:
        """The parameters to train, each in one group with a learning rate, as optimisers take."""
        return [{"params": list(model.parameters()), "lr": learning_rate}]

    def trained_steps(self, parameter: nn.Parameter, step: int) -> range:
        """In how many of the first `step` steps a parameter can have had a gradient.

        That of the network's blocks is known to the caller.
        """
        del parameter
        return range(step, step + 1)

    def embed(self, model: ConvolutionalEmbedding, images: Tensor) -> Tensor:
        """(N, d) float32 on the CPU: what is compared by Euclidean distance in the evaluation."""
        return functional.normalize(embed(model, images))

    def evaluate(self, model: ConvolutionalEmbedding, data: DataSet) -> dict[str, float]:
        """What `evaluated` names, beside the retrieval metrics of every run."""
        del model, data
        return {}

    def draw(self, model: ConvolutionalEmbedding, data: DataSet, replacing: Replacing) -> None:
        """Write pictures of the method's own, at the weights that validation selected."""
