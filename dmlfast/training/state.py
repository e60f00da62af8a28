"""Everything that changes while a run goes on, and its form in a checkpoint."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch

from dmlfast.models import ConvolutionalEmbedding
from dmlfast.training import methods
from dmlfast.training.checkpoint import check_history, check_optimizer, check_step, check_sums
from dmlfast.training.config import TrainConfig
from dmlfast.training.errors import RunFolderError
from dmlfast.training.summary import Row, selected_row


class TrainingState:
    """The weights, the method, the optimiser, the random streams and the evaluations of a run.

    Nothing is drawn from the global random streams, and they are left as they were.

    Attributes:
        model: the network, on `device`.
        method: the method of training, with parameters of its own on `device`.
        optimizer: Adam on the weights of both.
        sampling: generator of the batches, on the CPU.
        augmentation: generator of the augmentation, on the CPU.
        drawing: generator of what the method draws, on the CPU.
        step: optimiser steps done.
        history: the evaluations, in order.
        selected_model: the weights, on the CPU, at the step that validation selects so far.

    Args:
        config: the settings of the run; its seed starts every random stream.
        image_shape: (channels, height, width) of the images.
        device: where the network is.
        classes: how many classes are trained on.

    Raises:
        ValueError: if the images are not square.
    """

    def __init__(
        self,
        config: TrainConfig,
        image_shape: tuple[int, int, int],
        device: torch.device,
        classes: int,
    ) -> None:
        channels, height, width = image_shape
        if height != width:
            raise ValueError(f"image_shape: expected square images, got {height} x {width}")
        self._config = config
        seeding = torch.Generator().manual_seed(config.seed)
        seeds = torch.randint(2**63 - 1, (3,), generator=seeding)
        model_seed, sampling_seed, augmentation_seed = seeds.tolist()
        # Apart from the others, whose numbers do not depend on how many there are.
        method_seed, drawing_seed = torch.randint(2**63 - 1, (2,), generator=seeding).tolist()
        self.sampling = torch.Generator().manual_seed(sampling_seed)
        self.augmentation = torch.Generator().manual_seed(augmentation_seed)
        self.drawing = torch.Generator().manual_seed(drawing_seed)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the CUDA generators as well, which are not forked.
            torch.default_generator.manual_seed(model_seed)
            self.model = ConvolutionalEmbedding(
                image_size=height, channels_in=channels, dimensions=config.dimensions
            )
            torch.default_generator.manual_seed(method_seed)
            task = methods.Task(classes, config.dimensions, self.model.feature_size, self.drawing)
            self.method = methods.create(config.method, task)
        self.model.to(device)
        self.method.to(device)
        self.optimizer = torch.optim.Adam(
            self.method.parameter_groups(self.model, config.learning_rate), lr=config.learning_rate
        )
        self.step = 0
        self.history: list[Row] = []
        self.selected_model: dict[str, torch.Tensor] = {}
        self._selected_method: dict[str, torch.Tensor] = {}
        # Number, loss and active share of the steps since the last evaluation.
        self._sums = [0.0, 0.0, 0.0]

    def record_step(self, loss: float, active: float) -> None:
        """Count an optimiser step, with its loss and the share of its anchors that were active."""
        self.step += 1
        self._sums = [total + new for total, new in zip(self._sums, (1, loss, active), strict=True)]

    def means(self) -> tuple[float, float]:
        """The mean loss and active share since the last evaluation; NaN before the first step."""
        steps, loss, active = self._sums
        return (loss / steps, active / steps) if steps else (math.nan, math.nan)

    def record_evaluation(self, row: Row) -> None:
        """Add an evaluation of this step, and keep the weights if validation now selects it."""
        self.history.append(row)
        self._sums = [0.0, 0.0, 0.0]
        if selected_row(self.history, "validation") is row:
            self.selected_model = _weights(self.model)
            self._selected_method = _weights(self.method)

    def selected_step(self) -> int:
        """The step of the weights that `selected` gives."""
        return int(selected_row(self.history, "validation")["step"]) if self.history else self.step

    @contextlib.contextmanager
    def selected(self) -> Iterator[None]:
        """The weights at the step that validation selected, if there is one, for a while."""
        before = _weights(self.model), _weights(self.method)
        try:
            if self.history:
                self.model.load_state_dict(self.selected_model)
                self.method.load_state_dict(self._selected_method)
            yield
        finally:
            self.model.load_state_dict(before[0])
            self.method.load_state_dict(before[1])

    def begin_step(self) -> None:
        """Make the model ready for training: the blocks rest while the method warms up."""
        self.model.train()
        self.model.features.requires_grad_(self.step >= self.method.warmup_steps)

    def checkpoint(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "config": self._config.as_dict(),
            "step": self.step,
            "model": _weights(self.model),
            "optimizer": self.optimizer.state_dict(),
            "sampling": self.sampling.get_state(),
            "augmentation": self.augmentation.get_state(),
            "sums": self._sums,
            "history": [dict(row) for row in self.history],
            "selected_model": self.selected_model,
            "method": {
                "weights": _weights(self.method),
                "selected": self._selected_method,
                "drawing": self.drawing.get_state(),
            },
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Return to a checkpoint; what follows is what would have followed then.

        Raises:
            RunFolderError: if something is missing in the checkpoint, or is not what this run
                could have written.
        """
        try:
            self.step = check_step(checkpoint["step"], self._config.steps)
            self.history = check_history(checkpoint["history"], self.step, self.method.evaluated)
            self._sums = check_sums(checkpoint["sums"], self.step, self.history)
            self.selected_model = dict(checkpoint["selected_model"])
            if self.history:
                # The run itself needs these weights only in the end; what does not fit shows now.
                copy.deepcopy(self.model).load_state_dict(self.selected_model)
            self.model.load_state_dict(checkpoint["model"])
            self._restore_method(checkpoint)
            settings = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            check_optimizer(self.optimizer, settings, self._trained_steps)
            self.sampling.set_state(checkpoint["sampling"])
            self.augmentation.set_state(checkpoint["augmentation"])
        except KeyError as error:
            raise RunFolderError(f"The checkpoint is incomplete: it has no {error}.") from error
        except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            # torch lists every weight that does not fit, a line each; the first says enough.
            reason = str(error).splitlines()[0].rstrip(".:")
            raise RunFolderError(
                f"The checkpoint does not fit its configuration: {reason}."
            ) from error

    def _restore_method(self, checkpoint: dict[str, Any]) -> None:
        # Checkpoints from before there were methods lack what was empty then.
        if "method" not in checkpoint and not self.method.state_dict():
            return
        held = checkpoint["method"]
        self._selected_method = dict(held["selected"])
        if self.history:
            self.method.load_state_dict(self._selected_method)  # only to see whether it fits
        self.method.load_state_dict(held["weights"])
        self.drawing.set_state(held["drawing"])

    def _trained_steps(self, parameter: torch.nn.Parameter) -> range:
        if any(parameter is own for own in self.model.features.parameters()):
            trained = max(0, self.step - self.method.warmup_steps)
            return range(trained, trained + 1)
        return self.method.trained_steps(parameter, self.step)


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights on the CPU, by name."""
    return {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()
    }
