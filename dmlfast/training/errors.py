"""What a training run raises when it cannot go on."""

from __future__ import annotations


class TrainingError(Exception):
    """A run cannot start or go on; the message is one sentence for the person who started it."""


class RunFolderError(TrainingError):
    """A run folder cannot be used; the message says which and why."""
