"""Tiny training runs, and what their tests compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlfast.training import Progress, TrainConfig

FILES = [
    "checkpoint.pt",
    "collapse.png",
    "config.json",
    "curves.png",
    "embedding.png",
    "history.csv",
    "metrics.csv",
    "metrics.json",
]
METRICS = ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r"]
CLUSTERING = ["nmi", "ami", "purity"]
COLLAPSE = [
    "class_distance_ratio",
    "subclass_distance_ratio",
    "effective_rank",
    "active_triplets",
]
# What every run evaluates, by group.
GROUPS = {
    "class": [*METRICS, *CLUSTERING],
    "subclass": [*METRICS, *CLUSTERING],
    "collapse": COLLAPSE,
}


def small(**settings: Any) -> TrainConfig:
    """A run of 7 steps, evaluated after 3, 6 and 7."""
    return TrainConfig.resolve(
        "digits",
        **{
            "steps": 7,
            "evaluate_every": 3,
            "batch_size": 32,
            "samples_per_class": 16,
            "dimensions": 4,
            **settings,
        },
    )


def stop_after(steps: int) -> dict[str, Callable[..., Any]]:
    """Arguments of train that interrupt it after some steps."""
    done = [0]

    def count(progress: Progress) -> None:
        done[0] = progress.step

    return {"progress": count, "should_stop": lambda: done[0] >= steps}


def checkpoint_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return loaded


def assert_same_run(one: Path, other: Path) -> None:
    """The same numbers, weights and state of the optimiser and the generators, bit for bit."""
    for name in ("config.json", "history.csv", "metrics.json", "metrics.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert_same_bits(checkpoint_of(one), checkpoint_of(other), "checkpoint")


def assert_same_bits(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for name in one:
            assert_same_bits(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(left, right, f"{where}/{index}")
    else:
        assert one == other, where


def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the drawing, most of the time of a tiny run."""
    import dmlfast.plots

    for name, position in (
        ("plot_collapse", 1),
        ("plot_curves", 1),
        ("plot_embedding", 2),
        ("plot_intensity", 1),
    ):
        monkeypatch.setattr(
            dmlfast.plots,
            name,
            lambda *arguments, position=position, **_: arguments[position].write_bytes(b"png"),
        )
