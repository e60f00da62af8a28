"""What a training run is made of: every setting, its default and its limits."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from dmlfast import _backend
from dmlfast import data as data_sets
from dmlfast.training import methods
from dmlfast.training.limits import one_of, positive, whole
from dmlfast.training.methods import MethodSettings

Backend = Literal["kernel", "reference"]

# Defaults that hold for every data set, and what single data sets have instead. A setting that is
# not given is looked up here and nowhere else.
_DEFAULTS: dict[str, Any] = {
    "dimensions": 16,
    "steps": 600,
    "batch_size": 128,
    "samples_per_class": 4,
    "learning_rate": 1e-3,
    "seed": 0,
    "evaluate_every": 50,
    "labelled_per_class": 0,
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

# What configurations meant that were written before these settings.
_BEFORE_IT_WAS_SAID: dict[str, Any] = {"method": "triplet", "labelled_per_class": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run; two runs of one configuration are the same run.

    `TrainConfig.resolve` fills in the defaults of a data set.

    Attributes:
        data: name of the data set, one of `dmlfast.data.names()`.
        method: the settings of the training method, by whose type it is known.
        dimensions: length of the embedding.
        steps: optimiser steps.
        batch_size: images a step, a multiple of `samples_per_class`.
        samples_per_class: images of one class in a batch, at least 2.
        learning_rate: learning rate of Adam, constant.
        seed: start of every random stream of the run, 0 to 2**63 - 1.
        evaluate_every: steps from one evaluation to the next; the last step is evaluated too.
        labelled_per_class: training images of each class that are used, spread over those there
            are; 0 for all.
        device: "cpu", "cuda" or "cuda:<number>".
        backend: "kernel" or "reference": who computes the loss.

    Raises:
        ValueError: if a setting is outside its limits, with its name, its limits and its value.
    """

    data: str
    method: MethodSettings
    dimensions: int
    steps: int
    batch_size: int
    samples_per_class: int
    learning_rate: float
    seed: int
    evaluate_every: int
    labelled_per_class: int
    device: str
    backend: Backend

    def __post_init__(self) -> None:
        one_of("data", self.data, tuple(data_sets.names()))
        whole("dimensions", self.dimensions, 1)
        whole("steps", self.steps, 1)
        whole("samples_per_class", self.samples_per_class, 2)
        whole("batch_size", self.batch_size, 2 * self.samples_per_class)
        if self.batch_size % self.samples_per_class:
            raise ValueError(
                f"batch_size: expected a multiple of samples_per_class ({self.samples_per_class}), "
                f"got {self.batch_size}"
            )
        positive("learning_rate", self.learning_rate)
        whole("seed", self.seed, 0, 2**63 - 1)
        whole("evaluate_every", self.evaluate_every, 1)
        whole("labelled_per_class", self.labelled_per_class, 0)
        if not isinstance(self.device, str) or not re.fullmatch(
            r"cpu|cuda(:\d{1,2})?", self.device
        ):
            raise ValueError(f"device: expected cpu, cuda or cuda:<number>, got {self.device!r}")
        one_of("backend", self.backend, get_args(Backend))

    @classmethod
    def resolve(cls, data: str, **given: Any) -> TrainConfig:
        """The configuration of a data set: its defaults, with the given settings in their place.

        The default of `backend` is the one in use now: the configuration says who computes, so
        that a run which goes on elsewhere is computed as it was here.

        Args:
            data: name of the data set.
            given: settings by name, `method` by its own; None means that a setting is not given.

        Raises:
            ValueError: if a setting is unknown or outside its limits.
        """
        given = {name: value for name, value in given.items() if value is not None}
        method = methods.settings_of(given.pop("method", methods.names()[0]))
        own = {name: given.pop(name) for name in _names(method) if name in given}
        settings = _DEFAULTS | {"backend": _backend.backend_name()}
        unknown = sorted(given.keys() - settings.keys())
        if unknown:
            others = {name: _methods_with(name) for name in unknown}
            reason = f" for the method {method.name}" if any(others.values()) else ""
            named = (
                f"{name}, a setting of {', '.join(owners)}" if owners else name
                for name, owners in others.items()
            )
            raise ValueError(f"unknown setting{reason}: {'; '.join(named)}")
        settings |= _DEFAULTS_OF_DATA_SET.get(data, {})
        settings |= given
        return cls(data=data, method=method(**own), **settings)

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, as JSON takes them; the method's stand beside those of all."""
        settings: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            settings[field.name] = value.name if field.name == "method" else value
            if field.name == "method":
                settings |= dataclasses.asdict(value)
        return settings

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
        settings = completed(settings)
        method = methods.settings_of(settings["method"])
        names = {*_names(cls), *_names(method)}
        missing, unknown = sorted(names - settings.keys()), sorted(settings.keys() - names)
        if missing:
            raise ValueError(f"missing setting: {', '.join(missing)}")
        if unknown:
            raise ValueError(f"unknown setting: {', '.join(unknown)}")
        own = {name: settings.pop(name) for name in _names(method)}
        return cls(**settings | {"method": method(**own)})


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, with what they meant where they were written before a setting was there."""
    return _BEFORE_IT_WAS_SAID | dict(settings)


def _methods_with(setting: str) -> list[str]:
    return [name for name in methods.names() if setting in _names(methods.settings_of(name))]


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def default_text(name: str) -> str | None:
    """A setting's default and those of single data sets, in words; None where there is none."""
    if name not in _DEFAULTS:
        return None
    others: dict[Any, list[str]] = {}
    for data, settings in _DEFAULTS_OF_DATA_SET.items():
        if name in settings:
            others.setdefault(settings[name], []).append(data)
    exceptions = (f"{value} for {' and '.join(names)}" for value, names in others.items())
    return ", ".join([str(_DEFAULTS[name]), *exceptions])
