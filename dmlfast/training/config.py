"""What a training run is made of: every setting, its default and its limits."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, Literal, get_args

from dmlfast import _backend
from dmlfast import data as data_sets

Positives = Literal["all", "nearest", "farthest"]
Negatives = Literal["all", "hardest", "semihard"]
Backend = Literal["kernel", "reference"]

# Defaults that hold for every data set, and what single data sets have instead. A setting that is
# not given is looked up here and nowhere else.
_DEFAULTS: dict[str, Any] = {
    "positives": "nearest",
    "negatives": "semihard",
    "margin": 0.2,
    "dimensions": 16,
    "steps": 600,
    "batch_size": 128,
    "samples_per_class": 4,
    "learning_rate": 1e-3,
    "seed": 0,
    "evaluate_every": 50,
    "device": "cpu",
}
_DEFAULTS_OF_DATA_SET: dict[str, dict[str, Any]] = {
    # The labels are even and odd: two classes fill the batch.
    "digits": {"samples_per_class": 64},
    "digits-unseen": {"samples_per_class": 64},
    "glyphs": {
        "dimensions": 64,
        "steps": 2000,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "evaluate_every": 200,
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run; two runs of one configuration are the same run.

    `TrainConfig.resolve` fills in the defaults of a data set.

    Attributes:
        data: name of the data set, one of `dmlfast.data.names()`.
        positives: which same-class samples of the batch an anchor is compared with.
        negatives: which samples of other classes an anchor is compared with.
        margin: margin of the triplet loss, a distance between unit vectors.
        dimensions: length of the embedding.
        steps: optimiser steps.
        batch_size: images a step, a multiple of `samples_per_class`.
        samples_per_class: images of one class in a batch, at least 2.
        learning_rate: learning rate of Adam, constant.
        seed: start of every random stream of the run, 0 to 2**63 - 1.
        evaluate_every: steps from one evaluation to the next; the last step is evaluated too.
        device: "cpu", "cuda" or "cuda:<number>".
        backend: "kernel" or "reference": who computes the loss.

    Raises:
        ValueError: if a setting is outside its limits, with its name, its limits and its value.
    """

    data: str
    positives: Positives
    negatives: Negatives
    margin: float
    dimensions: int
    steps: int
    batch_size: int
    samples_per_class: int
    learning_rate: float
    seed: int
    evaluate_every: int
    device: str
    backend: Backend

    def __post_init__(self) -> None:
        _one_of("data", self.data, tuple(data_sets.names()))
        _one_of("positives", self.positives, get_args(Positives))
        _one_of("negatives", self.negatives, get_args(Negatives))
        _number("margin", self.margin, 0.0)
        _whole("dimensions", self.dimensions, 1)
        _whole("steps", self.steps, 1)
        _whole("samples_per_class", self.samples_per_class, 2)
        _whole("batch_size", self.batch_size, 2 * self.samples_per_class)
        if self.batch_size % self.samples_per_class:
            raise ValueError(
                f"batch_size: expected a multiple of samples_per_class ({self.samples_per_class}), "
                f"got {self.batch_size}"
            )
        _number("learning_rate", self.learning_rate, 0.0)
        if self.learning_rate == 0:
            raise ValueError(f"learning_rate: expected above 0, got {self.learning_rate}")
        _whole("seed", self.seed, 0, 2**63 - 1)
        _whole("evaluate_every", self.evaluate_every, 1)
        if not isinstance(self.device, str) or not re.fullmatch(
            r"cpu|cuda(:\d{1,2})?", self.device
        ):
            raise ValueError(f"device: expected cpu, cuda or cuda:<number>, got {self.device!r}")
        _one_of("backend", self.backend, get_args(Backend))

    @classmethod
    def resolve(cls, data: str, **given: Any) -> TrainConfig:
        """The configuration of a data set: its defaults, with the given settings in their place.

        The default of `backend` is the one in use now: the configuration says who computes, so
        that a run which goes on elsewhere is computed as it was here.

        Args:
            data: name of the data set.
            given: settings by name; None means that a setting is not given.

        Raises:
            ValueError: if a setting is unknown or outside its limits.
        """
        settings = _DEFAULTS | {"backend": _backend.backend_name()}
        unknown = sorted(given.keys() - settings.keys())
        if unknown:
            raise ValueError(f"unknown setting: {', '.join(unknown)}")
        settings |= _DEFAULTS_OF_DATA_SET.get(data, {})
        settings |= {name: value for name, value in given.items() if value is not None}
        return cls(data=data, **settings)

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, as JSON takes them."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The configuration as a JSON object, one setting a line."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is not JSON, or a setting is missing, unknown or outside its
                limits.
        """
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError(f"expected a JSON object, got {type(settings).__name__}")
        names = {field.name for field in dataclasses.fields(cls)}
        missing, unknown = sorted(names - settings.keys()), sorted(settings.keys() - names)
        if missing:
            raise ValueError(f"missing setting: {', '.join(missing)}")
        if unknown:
            raise ValueError(f"unknown setting: {', '.join(unknown)}")
        return cls(**settings)


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _whole(name: str, value: object, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name}: expected at most {most}, got {value}")


def _number(name: str, value: object, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least:g}, got {value}")
