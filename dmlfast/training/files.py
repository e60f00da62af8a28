"""Files that are written whole: a reader sees the old one or the new one, and never a half."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dmlfast.training.errors import RunFolderError


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to, in place of a file.

    On leaving, what was written takes the place of the file; after an exception it is removed and
    the file is as it was.

    Args:
        file: the file. The path that is given lies beside it and has the same ending.

    Raises:
        RunFolderError: if the file cannot be written.
    """
    partial = file.with_name(f".partial-{file.name}")
    try:
        yield partial
        partial.replace(file)
    except OSError as error:
        raise RunFolderError(f"{file} cannot be written: {reason(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a file in UTF-8.

    Raises:
        RunFolderError: if it cannot be written.
    """
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of the same keys, at least one, as CSV with a header."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def reason(error: OSError) -> str:
    """What went wrong, without the name of the file."""
    return error.strerror or str(error)
