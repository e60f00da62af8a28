"""The training loop: steps, evaluations and what they leave in the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import dmlfast
from dmlfast import data as data_sets
from dmlfast._optional import require
from dmlfast.data import Split
from dmlfast.evaluation import evaluate_clustering, evaluate_collapse, evaluate_retrieval
from dmlfast.training import methods
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
        started_at: steps that were done before the call.
        step: steps done.
        finished: whether these are all; otherwise the run was interrupted and can be resumed.
        metrics: what `metrics.json` holds.
    """

    folder: Path
    started_at: int
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
    """Train an embedding by a method and write everything about it to a folder.

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
    for package in ("faiss", "matplotlib", "sklearn"):
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
        started_at = run.state.step
        _go_on(run, run_folder, progress, should_stop)
        # An evaluation that only an interruption asks for is not part of the run: it is reported,
        # but a resumed run must not remember it.
        history = run.state.history or [run.evaluate()]
        metrics = run_folder.write_evaluations(history)
        run.plot(run_folder, history)
    step = run.state.step
    return TrainResult(run_folder.path, started_at, step, step == config.steps, metrics)


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
    """The data and the state of one run."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self._device = device
        self._data = data_sets.load(config.data)
        self._train = labelled(self._data.train, config.labelled_per_class)
        classes, self._labels = torch.unique(self._train.labels, return_inverse=True)
        channels, height, width = self._train.images.shape[1:]
        self.state = TrainingState(config, (channels, height, width), device, len(classes))
        try:
            # Without the compiled library this fails: now, before anything is written.
            self.state.method.rehearse(device)
        except RuntimeError as error:
            raise TrainingError(f"{error}.") from error
        try:
            self._sampler = data_sets.MPerClassSampler(
                self._labels,
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
        state = self.state
        state.begin_step()
        chosen = self._sampler.sample()
        images = self._data.augment(self._train.images[chosen], state.augmentation)
        batch = methods.Batch(images, self._labels[chosen].to(self._device), self._device)
        loss, active = state.method.loss_of(state.model, batch)
        state.optimizer.zero_grad()
        torch.autograd.backward(loss)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss of step {self.state.step + 1} is {value}: a lower learning rate than "
                f"{self.config.learning_rate:g} may help."
            )
        if state.method.gradient_clip is not None:
            parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_value_(parameters, state.method.gradient_clip)
        state.optimizer.step()
        state.record_step(value, active)
        return value

    def evaluate(self) -> Row:
        """Retrieval, clusters and collapse on the validation and the test split.

        By class and by hidden sub-class; and what the method evaluates.
        """
        loss, active = self.state.means()
        row = {"step": self.state.step, "loss": loss, "active": active}
        for split_name in SPLITS:
            split = getattr(self._data, split_name)
            embeddings = self.state.method.embed(self.state.model, split.images)
            for labels_name, labels in zip(LABELS, (split.labels, split.subclasses), strict=True):
                metrics = evaluate_retrieval(embeddings, labels, recall_at=RECALL_AT).as_dict()
                # A generator of its own, always from the start: an evaluation neither depends on
                # those before nor changes what training draws.
                generator = torch.Generator().manual_seed(self.config.seed)
                metrics |= evaluate_clustering(embeddings, labels, generator=generator).as_dict()
                row |= {f"{split_name}/{labels_name}/{name}": v for name, v in metrics.items()}
            collapse = evaluate_collapse(
                embeddings, split.labels, split.subclasses, margin=self.state.method.margin
            )
            row |= {f"{split_name}/collapse/{name}": v for name, v in collapse.as_dict().items()}
        return row | self.state.method.evaluate(self.state.model, self._data)

    def plot(self, folder: RunFolder, history: list[Row]) -> None:
        """Draw the curves, the collapse, and the test split as the selected weights embed it."""
        # Only here: matplotlib takes a second to import.
        from dmlfast.plots import plot_collapse, plot_curves, plot_embedding

        with folder.replacing(RunFolder.CURVES) as path:
            plot_curves(history, path)
        with folder.replacing(RunFolder.COLLAPSE) as path:
            plot_collapse(
                history, path, training_triplets=self.state.method.active_share_is_of_anchors
            )
        test, state = self._data.test, self.state
        step = int(selected_row(history, "validation")["step"])
        with state.selected():
            with folder.replacing(RunFolder.EMBEDDING) as path:
                plot_embedding(
                    state.method.embed(state.model, test.images),
                    test.subclasses,
                    path,
                    labels=test.labels,
                    class_names=self._data.class_names,
                    subclass_names=self._data.subclass_names,
                    title=f"{self.config.data}, test split, step {step}",
                )
            state.method.draw(state.model, self._data, folder.replacing)


def labelled(split: Split, per_class: int) -> Split:
    """So many images of each class, spread over those there are in their order; 0 for all."""
    if per_class == 0:
        return split
    chosen = []
    for label in torch.unique(split.labels):
        members = (split.labels == label).nonzero().flatten()
        count = min(per_class, len(members))
        chosen.append(members[torch.arange(count) * len(members) // count])
    kept = torch.cat(chosen).sort().values
    return Split(split.images[kept], split.labels[kept], split.subclasses[kept])


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
