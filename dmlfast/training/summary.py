"""From the evaluations of a run to the numbers that are reported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SPLITS = ("validation", "test")
# What is trained on, and what is hidden from the training.
LABELS = ("class", "subclass")
RECALL_AT = (1, 2, 4, 8)
METRICS = (*(f"recall@{k}" for k in RECALL_AT), "r_precision", "map@r")
# Of as many k-means clusters as there are labels: `dmlfast.evaluation.evaluate_clustering`.
CLUSTERING = ("nmi", "ami", "purity")
# The group "collapse": `dmlfast.evaluation.evaluate_collapse`.
COLLAPSE = (
    "class_distance_ratio",
    "subclass_distance_ratio",
    "effective_rank",
    "active_triplets",
)
_GROUPS = {**dict.fromkeys(LABELS, (*METRICS, *CLUSTERING)), "collapse": COLLAPSE}

# One evaluation, with the keys `ROW_KEYS` and those that the method evaluates: "step", the means
# since the one before of "loss" and of "active" (a share that the method defines: of the anchors
# with an active triplet, or of samples that qualify), and "<split>/<group>/<metric>".
Row = Mapping[str, float]
ROW_KEYS = (
    *("step", "loss", "active"),
    *(
        f"{split}/{group}/{metric}"
        for split in SPLITS
        for group, metrics in _GROUPS.items()
        for metric in metrics
    ),
)

SELECTION_RULE = (
    "the step with the highest class map@r on the validation split, the earliest of equals; "
    "best_test is the same on the test split, for comparison only"
)


def selected_row(history: Sequence[Row], split: str) -> Row:
    """The evaluation with the highest class map@r on a split; the earliest of equals.

    A NaN counts as lower than every number.

    Raises:
        ValueError: if there is no evaluation.
    """
    if not history:
        raise ValueError("nothing was evaluated")
    # max returns the first of equals.
    return max(history, key=lambda row: _or_lowest(row[f"{split}/class/map@r"]))


def summarize(history: Sequence[Row]) -> dict[str, Any]:
    """What a run reports: test numbers at the step that validation selects, and two comparisons.

    Returns:
        `class`, `subclass`, `collapse` and what else the method evaluates on the test split
        (metrics by name at the selected step), `selected_step`,
        `selection` (the rule, as a sentence), and `best_test` and `last`, each with
        the same and `step`: the step that is best on the test split, and the
        last one evaluated. A number that is not finite becomes None, which JSON can hold.

    Raises:
        ValueError: if there is no evaluation.
    """
    selected = selected_row(history, "validation")
    return {
        **_test_metrics(selected),
        "selected_step": selected["step"],
        "selection": SELECTION_RULE,
        "best_test": _metrics_and_step(selected_row(history, "test")),
        "last": _metrics_and_step(history[-1]),
    }


def long_form(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers of `summarize` one by one.

    Yields:
        Rows of `chosen` ("selected", "best_test" or "last"), `step`, `labels` ("class",
        "subclass", "collapse" or a group of the method's), `metric` and `value`.
    """
    groups = {
        "selected": {**summary, "step": summary["selected_step"]},
        "best_test": summary["best_test"],
        "last": summary["last"],
    }
    for chosen, group in groups.items():
        for labels in groups_of(summary):
            for metric, value in group[labels].items():
                yield {
                    "chosen": chosen,
                    "step": group["step"],
                    "labels": labels,
                    "metric": metric,
                    "value": value,
                }


def groups_of(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups of metrics in what `summarize` returns: those of every run, then the method's."""
    return tuple(name for name in summary["last"] if name != "step")


def _metrics_and_step(row: Row) -> dict[str, Any]:
    return {**_test_metrics(row), "step": row["step"]}


def _test_metrics(row: Row) -> dict[str, dict[str, float | None]]:
    metrics: dict[str, dict[str, float | None]] = {labels: {} for labels in LABELS}
    for name, value in row.items():
        split, _, rest = name.partition("/")
        if split == "test":
            labels, _, metric = rest.partition("/")
            metrics.setdefault(labels, {})[metric] = value if math.isfinite(value) else None
    return metrics


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value
