"""The training loop: steps, evaluations and what they leave in the run folder."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import dmlfast
from dmlfast import data as data_sets
from dmlfast._optional import require
from dmlfast.evaluation import embed, evaluate_retrieval
from dmlfast.functional import AnchorSums
from dmlfast.losses import TripletMarginLoss
from dmlfast.training.config import TrainConfig
from dmlfast.training.errors import RunFolderError, TrainingError
from dmlfast.training.run_folder import RunFolder
from dmlfast.training.state import TrainingState
from dmlfast.training.summary import LABELS, RECALL_AT, SPLITS, Row, selected_row


@dataclasses.dataclass(frozen=True)
class Progress:
    """What `train` tells after a step.

    Attributes:
        step: steps done.
        steps: steps of the whole run.
        loss: loss of the last batch.
        evaluation: the last evaluation, if there was one.
    """

    step: int
    steps: int
    loss: float
    evaluation: Row | None


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        folder: the run folder.
        step: steps done.
        finished: whether these are all; otherwise the run was interrupted and can be resumed.
        metrics: what `metrics.json` holds.
    """

    folder: Path
    step: int
    finished: bool
    metrics: dict[str, Any]


def train(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train an embedding with the triplet loss and write everything about it to a folder.

    A configuration always gives the same bits on one machine and one number of threads. A run
    that was interrupted and resumed gives the bits of one that was not. The caller's random
    streams are neither used nor changed.

    The test split is evaluated beside the validation split, but never decides anything.

    Args:
        config: the settings.
        folder: where the run is written (`RunFolder`).
        resume: go on from the checkpoint in the folder.
        overwrite: replace a run that the folder already holds.
        progress: called after every step.
        should_stop: asked before every step. When it says yes, the state is saved, what is known
            is written, and the call returns.

    Raises:
        RunFolderError: if the folder cannot be used: not made or written, already holding a run,
            or, to resume, without a readable checkpoint of this configuration.
        TrainingError: if the device or the compiled library is not there, the data set cannot
            fill the batches, or the loss is not finite.
        ImportError: if a package that training needs is not installed.
    """
    device = _device(config.device)
    # Before the training, not after it.
    for package in ("faiss", "matplotlib"):
        require(package, "train")
    with _settings(config, device):
        run = _Run(config, device)
        if resume:
            run_folder, started_with = RunFolder.open(folder)
            if started_with != config:
                raise RunFolderError(f"{folder} holds a run of another configuration.")
            run.state.restore(run_folder.read_checkpoint(config))
        else:
            run_folder = RunFolder.create(folder, config, overwrite=overwrite)
        _go_on(run, run_folder, progress, should_stop)
        # An evaluation that only an interruption asks for is not part of the run: it is reported,
        # but a resumed run must not remember it.
        history = run.state.history or [run.evaluate()]
        metrics = run_folder.write_evaluations(history)
        run.plot(run_folder, history)
    return TrainResult(run_folder.path, run.state.step, run.state.step == config.steps, metrics)


def _go_on(
    run: _Run,
    folder: RunFolder,
    progress: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Train until the last step or an interruption, and leave a checkpoint of the state then."""
    state, steps, every = run.state, run.config.steps, run.config.evaluate_every
    while state.step < steps and not (should_stop and should_stop()):
        loss = run.train_step()
        if state.step % every == 0 or state.step == steps:
            state.record_evaluation(run.evaluate())
            folder.write_evaluations(state.history)
            folder.write_checkpoint(state.checkpoint())
        if progress:
            last = state.history[-1] if state.history else None
            progress(Progress(state.step, steps, loss, last))
    if state.step < steps:
        folder.write_checkpoint(state.checkpoint())


class _Run:
    """The data, the loss and the state of one run."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self._device = device
        self._data = data_sets.load(config.data)
        self._loss = TripletMarginLoss(
            config.margin,
            positives=config.positives,
            negatives=config.negatives,
            metric="euclidean",
            normalize=True,
            reduction="none",
        )
        try:
            # Without the compiled library this fails: now, before anything is written.
            self._loss(torch.zeros(2, 2, device=device), torch.tensor([0, 1], device=device))
        except RuntimeError as error:
            raise TrainingError(f"{error}.") from error
        channels, height, width = self._data.train.images.shape[1:]
        self.state = TrainingState(config, (channels, height, width), device)
        try:
            self._sampler = data_sets.MPerClassSampler(
                self._data.train.labels,
                batch_size=config.batch_size,
                samples_per_class=config.samples_per_class,
                batches=config.steps,
                generator=self.state.sampling,
            )
        except ValueError as error:
            raise TrainingError(
                f"The data set {config.data} cannot fill the batches: {error}."
            ) from error

    def train_step(self) -> float:
        """One step of the optimiser; returns the loss of its batch."""
        model, split = self.state.model.train(), self._data.train
        batch = self._sampler.sample()
        images = self._data.augment(split.images[batch], self.state.augmentation)
        embeddings = model(images.to(self._device))
        loss, active = _mean(self._loss(embeddings, split.labels[batch].to(self._device)))
        self.state.optimizer.zero_grad()
        torch.autograd.backward(loss)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss of step {self.state.step + 1} is {value}: a lower learning rate than "
                f"{self.config.learning_rate:g} may help."
            )
        self.state.optimizer.step()
        self.state.record_step(value, active)
        return value

    def evaluate(self) -> Row:
        """Retrieval on the validation and the test split, by class and by hidden sub-class."""
        loss, active = self.state.means()
        row = {"step": self.state.step, "loss": loss, "active": active}
        for split_name in SPLITS:
            split = getattr(self._data, split_name)
            embeddings = self._embed(self.state.model, split.images)
            for labels_name, labels in zip(LABELS, (split.labels, split.subclasses), strict=True):
                metrics = evaluate_retrieval(embeddings, labels, recall_at=RECALL_AT).as_dict()
                for metric, value in metrics.items():
                    row[f"{split_name}/{labels_name}/{metric}"] = value
        return row

    def plot(self, folder: RunFolder, history: list[Row]) -> None:
        """Draw the curves, and the test split as the selected weights embed it."""
        # Only here: matplotlib takes a second to import.
        from dmlfast.plots import plot_curves, plot_embedding

        with folder.replacing(RunFolder.CURVES) as path:
            plot_curves(history, path)
        test, model = self._data.test, copy.deepcopy(self.state.model)
        model.load_state_dict(self.state.selected_model or self.state.model.state_dict())
        step = int(selected_row(history, "validation")["step"])
        with folder.replacing(RunFolder.EMBEDDING) as path:
            plot_embedding(
                self._embed(model, test.images),
                test.subclasses,
                path,
                labels=test.labels,
                class_names=self._data.class_names,
                subclass_names=self._data.subclass_names,
                title=f"{self.config.data}, test split, step {step}",
            )

    def _embed(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        # The loss compares unit vectors, so the evaluation does.
        return F.normalize(embed(model, images))


def _mean(losses: torch.Tensor | AnchorSums) -> tuple[torch.Tensor, float]:
    """The mean over the active triplets, and the share of the anchors that have one.

    By the rule of the loss itself, under which a triplet whose loss is NaN is active.

    Args:
        losses: what the triplet loss returns with the reduction "none".
    """
    if isinstance(losses, torch.Tensor):
        losses = AnchorSums(losses, (~(losses <= 0)).long())
    mean = losses.loss.sum() / losses.active.sum().clamp(min=1)
    return mean, float((losses.active > 0).double().mean())


def _device(name: str) -> torch.device:
    if name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (torch.device(name).index or 0) >= count:
            raise TrainingError(
                f"The device {name} is not available: this machine and this build of torch "
                f"offer {count} CUDA devices."
            )
    return torch.device(name)


@contextlib.contextmanager
def _settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """The library's and torch's settings that a run needs; as before afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(dmlfast.use_backend(config.backend))
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
            )
        yield
