"""Limits of settings: every check says the name, the limits and what came."""

from __future__ import annotations

import math


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises ValueError unless `value` is an int from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name}: expected at most {most}, got {value}")


def number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises ValueError unless `value` is a finite number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least:g}, got {value}")
    if value > most:
        raise ValueError(f"{name}: expected at most {most:g}, got {value}")


def positive(name: str, value: object, *, zero: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number above 0, or 0 where `zero` says so."""
    number(name, value, 0.0)
    if value == 0 and not zero:
        raise ValueError(f"{name}: expected above 0, got {value}")


def flag(name: str, value: object) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r}")
