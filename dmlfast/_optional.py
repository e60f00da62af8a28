"""Imports of packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the optional dependencies `extra` of this package install.

    Raises:
        ImportError: it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed for this but cannot be imported ({error}); "
            f"install it with: pip install 'dmlfast[{extra}]'"
        ) from error
