"""The command `dmlfast`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dmlfast._library import info_text
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
        require("click", "train")
        require("rich", "train")
    except ImportError as error:
        if arguments == ["info"]:
            print(info_text())
            return 0
        print(f"Error: {error}", file=sys.stderr)
        return 1
    from dmlfast.cli.commands import run

    return run(arguments)
