"""The command `dmlfast`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dmlfast import _backend, _library
from dmlfast._optional import require

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `dmlfast info` needs nothing but the library itself.

    Args:
        arguments: what follows the name of the command; None takes it from `sys.argv`.

    Returns:
        The exit code: 0, 1 after an error, 2 after a wrong use, 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_environment()
    except ValueError as error:
        print(f"Error: {error}.", file=sys.stderr)
        return 1
    try:
        require("click", "train")
        require("rich", "train")
        from dmlfast.cli.commands import run
    except ImportError as error:
        if arguments == ["info"]:
            print(_library.info_text())
            return 0
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return run(arguments)


def _check_environment() -> None:
    """Ask for what environment variables choose: a wrong value shows before any work is done.

    Raises:
        ValueError: if a variable has a value that it cannot have.
    """
    _backend.backend_name()
    if _library.module is not None:
        _library.module.cpu_isa()
