"""The folder of a training run: every file that a run writes, and how."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from dmlfast.training import methods
from dmlfast.training.config import TrainConfig, completed
from dmlfast.training.errors import RunFolderError
from dmlfast.training.files import as_csv, reason, replacing, write_text
from dmlfast.training.summary import Row, long_form, summarize


class RunFolder:
    """The files of one run.

    Every file is written beside its place and then moved into it, so that a reader, or a run
    that goes on after a crash, sees the old file or the new one and never a half.

    `create` starts a folder, `open` returns to one.

    Attributes:
        path: the folder.
    """

    CONFIG = "config.json"
    HISTORY = "history.csv"
    METRICS = "metrics.json"
    METRICS_TABLE = "metrics.csv"
    CHECKPOINT = "checkpoint.pt"
    CURVES = "curves.png"
    COLLAPSE = "collapse.png"
    EMBEDDING = "embedding.png"
    FILES = (
        *(CONFIG, HISTORY, METRICS, METRICS_TABLE, CHECKPOINT, CURVES, COLLAPSE, EMBEDDING),
        *methods.PICTURES,
    )

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: TrainConfig, *, overwrite: bool = False
    ) -> RunFolder:
        """Make the folder, if it is not there, and write the configuration into it.

        Args:
            path: the folder; its parents are made too.
            config: what is written to `config.json`.
            overwrite: remove the files of a run that the folder already holds, and no others.

        Raises:
            RunFolderError: if the folder cannot be made or written, or already holds a run.
        """
        folder = cls(path)
        try:
            if folder.path.is_file():
                raise RunFolderError(f"The run folder {folder.path} is a file, not a folder.")
            folder.path.mkdir(parents=True, exist_ok=True)
            held = [name for name in cls.FILES if (folder.path / name).exists()]
            if held and not overwrite:
                raise RunFolderError(
                    f"{folder.path} already holds a run ({held[0]}): resume it, overwrite it, or "
                    "choose another folder."
                )
            for name in held:
                (folder.path / name).unlink()
        except OSError as error:
            raise RunFolderError(
                f"The run folder {folder.path} cannot be used: {reason(error)}."
            ) from error
        folder._write_text(cls.CONFIG, config.to_json())
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> tuple[RunFolder, TrainConfig]:
        """Return to the folder of an earlier run.

        Returns:
            The folder and the configuration of its run.

        Raises:
            RunFolderError: if the folder holds no readable configuration.
        """
        folder = cls(path)
        file = folder.path / cls.CONFIG
        try:
            return folder, TrainConfig.from_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{folder.path} holds no run: there is no {cls.CONFIG}."
            ) from error
        except OSError as error:
            raise RunFolderError(f"{file} cannot be read: {reason(error)}.") from error
        except ValueError as error:
            raise RunFolderError(f"{file} is not a configuration: {error}.") from error

    def write_evaluations(self, history: Sequence[Row]) -> dict[str, Any]:
        """Write `history.csv`, `metrics.json` and `metrics.csv`.

        Args:
            history: the evaluations so far, at least one.

        Returns:
            What `metrics.json` holds (`dmlfast.training.summarize`).

        Raises:
            RunFolderError: if a file cannot be written.
        """
        summary = summarize(history)
        self._write_text(self.HISTORY, as_csv(history))
        self._write_text(self.METRICS, json.dumps(summary, indent=2, allow_nan=False) + "\n")
        self._write_text(self.METRICS_TABLE, as_csv(long_form(summary)))
        return summary

    def write_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Write `checkpoint.pt`: tensors and plain values, readable with `weights_only=True`.

        Raises:
            RunFolderError: if the file cannot be written.
        """
        # Through memory: torch.save reports a full disk as a RuntimeError without a reason.
        buffer = io.BytesIO()
        torch.save(dict(checkpoint), buffer)
        with self.replacing(self.CHECKPOINT) as partial:
            partial.write_bytes(buffer.getbuffer())

    def read_checkpoint(self, config: TrainConfig, *, resume: bool = True) -> dict[str, Any]:
        """Read `checkpoint.pt` onto the CPU.

        Args:
            config: the configuration that the checkpoint must come from.
            resume: whether the run is to go on from it, which tells what to do without one.

        Raises:
            RunFolderError: if the file is missing or unreadable, or comes from another
                configuration.
        """
        file = self.path / self.CHECKPOINT
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{self.path} holds no {self.CHECKPOINT} to resume from: the run has to start "
                "again, with --overwrite."
                if resume
                else f"{self.path} holds no trained weights: there is no {self.CHECKPOINT}, which "
                "a run writes when it is first evaluated or interrupted."
            ) from error
        except OSError as error:
            raise RunFolderError(f"{file} cannot be read: {reason(error)}.") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about formats that are refused below
                checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # A damaged file can fail anywhere in the unpickler.
            raise RunFolderError(f"{file} is damaged or not a checkpoint.") from error
        if not isinstance(checkpoint, dict) or "config" not in checkpoint:
            raise RunFolderError(f"{file} is not a checkpoint of a training run.")
        other = checkpoint["config"]
        if isinstance(other, dict):
            other = completed(other)
        if other != config.as_dict():
            raise RunFolderError(
                f"{file} comes from another configuration: {_difference(other, config)}."
            )
        return checkpoint

    def replacing(self, name: str) -> AbstractContextManager[Path]:
        """A path to write to, in place of a file of the folder: `dmlfast.training.files.replacing`.

        Args:
            name: the name of the file. The path that is given has the same ending.

        Raises:
            RunFolderError: if the file cannot be written.
        """
        return replacing(self.path / name)

    def _write_text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)


def _difference(other: object, config: TrainConfig) -> str:
    if not isinstance(other, dict):
        return "it names no settings"
    for name, value in config.as_dict().items():
        if name not in other or other[name] != value:
            return f"its {name} is {other.get(name)!r}, not {value!r}"
    return "it has settings that are unknown here"
