"""The training methods by name: settings, parameters and the loss of a batch.

A new method is a module with its settings, a dataclass after `MethodSettings`, and a `Method`, and
a line in `_METHODS`: config.json, the command line, the loop, checkpoints and the run folder take
the rest from there. A method with a second head has it as a module of its own, on what
`ConvolutionalEmbedding.backbone` returns, and says in `embed` what is retrieved by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dmlfast.training.methods.base import Batch, Method, MethodSettings, StepLoss, Task
from dmlfast.training.methods.gar import GAR, GARSettings
from dmlfast.training.methods.namr import NAMRSettings, NASASettings, Structure
from dmlfast.training.methods.ssr import SSR, SSRSettings
from dmlfast.training.methods.triplet import Triplet, TripletSettings
from dmlfast.training.methods.views import PICTURE

__all__ = [
    "PICTURES",
    "Batch",
    "Method",
    "MethodSettings",
    "StepLoss",
    "Task",
    "create",
    "names",
    "settings_of",
]

_METHODS: dict[type[MethodSettings], Callable[[Any, Task], Method]] = {
    TripletSettings: Triplet,
    GARSettings: GAR,
    SSRSettings: SSR,
    NASASettings: Structure,
    NAMRSettings: Structure,
}

# Every picture that a method may write to the run folder.
PICTURES = (PICTURE,)


def names() -> tuple[str, ...]:
    """The names of the methods; the first is the default."""
    return tuple(settings.name for settings in _METHODS)


def settings_of(name: str) -> type[MethodSettings]:
    """The settings of the method of a name.

    Raises:
        ValueError: if there is none.
    """
    for settings in _METHODS:
        if settings.name == name:
            return settings
    raise ValueError(f"method: expected one of {', '.join(names())}, got {name!r}")


def create(settings: MethodSettings, task: Task) -> Method:
    """The method of these settings, with parameters drawn from torch's own generator."""
    return _METHODS[type(settings)](settings, task)
