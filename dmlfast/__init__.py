"""Deep metric learning losses at large batch, as exact and deterministic operators."""

from __future__ import annotations

from dmlfast import functional
from dmlfast._backend import use_backend
from dmlfast._library import build_information, version

__version__ = version()

__all__ = ["__version__", "build_information", "functional", "use_backend"]
