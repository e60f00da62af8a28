"""`python -m dmlfast` is the command `dmlfast`."""

from __future__ import annotations

import sys

from dmlfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
