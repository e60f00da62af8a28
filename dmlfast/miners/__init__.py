"""Miners: modules that return index tuples, composed of `dmlfast.functional`."""

from __future__ import annotations

from dmlfast.miners.batch_easy_hard import BatchEasyHardMiner

__all__ = ["BatchEasyHardMiner"]
