"""What teaches a structure embedding the shape of a neighbourhood: paired runs, with intervals.

    python benchmarks/anisotropy.py --seeds 10 --jobs 2

The case where a metric of each query's own must win: classes of a group scatter along a few axes
of that group, and the input shows the group. Rotated, the groups scatter alike along all axes, so
that no weights of single dimensions can help. The sample embedding is given, the coordinates
themselves, or learnt from there by the triplet loss.

Two questions, kept apart: what an added loss does for plain retrieval, against the same run
without it, and what the learnt structure does for retrieval by the adaptive distance, against
plain retrieval by the same embedding. The classes of the test are never trained on. All arms are
measured after the last step: nothing is selected. Within a seed all arms have the same samples,
start and batches. Writes benchmarks/results/anisotropy.json and prints the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from intervals import STUDENT, interval, shown_difference
from torch import Tensor

from dmlfast import functional
from dmlfast.benchmarking.machine import describe_machine
from dmlfast.evaluation import evaluate_adaptive_retrieval, evaluate_retrieval, oracle_structure
from dmlfast.losses import LocalVarianceLoss, TripletMarginLoss
from dmlfast.models import SampleStructureHead

ROOT = Path(__file__).resolve().parents[1]
GROUPS, DIMENSIONS = 4, 16
CLASSES, ROWS = 64, 16  # of training, and as many of the test
# Deviations: of the centres of the classes, and within them along the axes of their group and not.
CENTRES, WIDE, NARROW = 0.35, 1.0, 0.25
BATCH_CLASSES, BATCH_ROWS = 16, 4
LEARNING_RATE = 5e-3


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is trained beside the triplet loss.

    Attributes:
        weight: of the structure loss; 0 leaves it out.
        clusters: its anchor distances.
        trains_sample: whether its gradient reaches the sample embedding.
        is_fixed: all weights of the dimensions are 1.
        local: weight of the local variance loss; 0 leaves it out.
        neighbors: its neighbourhood, None for the class.
        least: the least weight of a dimension.
    """

    weight: float = 0.0
    clusters: int = 2
    trains_sample: bool = True
    is_fixed: bool = False
    local: float = 0.0
    neighbors: int | None = None
    least: float = 0.5

    def has_structure(self) -> bool:
        return not self.is_fixed and self.weight + self.local > 0


ARMS = {
    "triplet": Arm(),
    **{f"NASA, weight {weight}": Arm(weight) for weight in (0.05, 0.1, 0.2, 0.5, 2.0)},
    **{f"NAMR, K = {clusters}": Arm(0.2, clusters) for clusters in (1, 4, 8)},
    "NASA, weights 1": Arm(0.2, is_fixed=True),
    "NASA, structure alone": Arm(0.2, trains_sample=False),
    "local variance, class": Arm(local=0.2),
    "local variance, 4 nearest": Arm(local=0.2, neighbors=4),
    "NASA + local variance": Arm(0.2, local=0.2),
    "NASA, least weight 0.05": Arm(0.2, least=0.05),
    "local variance, class, 0.05": Arm(local=0.2, least=0.05),
    "local variance, 4 nearest, 0.05": Arm(local=0.2, neighbors=4, least=0.05),
}
# They differ from others in the training of the sample embedding alone.
SAMPLE_ARMS = {
    *(f"NASA, weight {weight}" for weight in (0.05, 0.1, 0.5, 2.0)),
    *("NASA, weights 1", "NASA, structure alone"),
}


class Case(NamedTuple):
    """Which world is trained in."""

    is_rotated: bool
    is_given: bool

    def title(self) -> str:
        embedding = "embedding given" if self.is_given else "embedding learnt"
        return f"{'rotated' if self.is_rotated else 'along axes'}, {embedding}"


CASES = [Case(*flags) for flags in itertools.product((False, True), (True, False))]


class Run(NamedTuple):
    """One arm in one case from one seed."""

    case: Case
    arm: str
    seed: int
    steps: int


class Samples(NamedTuple):
    """(N, GROUPS + DIMENSIONS) features, the group before the coordinates, and (N,) classes."""

    features: Tensor
    labels: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the study."""
    options = parse(arguments)
    machine = describe_machine()  # before this writes to the checkout
    runs = [
        Run(case, arm, seed, options.steps)
        for seed in range(options.seeds)
        for case in CASES
        for arm in options.arms
        if not (case.is_given and arm in SAMPLE_ARMS)
    ]
    done = dict(zip(runs, results(runs, options.jobs), strict=True))
    summary = summarize(done)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine,
        "summary": summary,
        "runs": [
            {"case": case.title(), "arm": arm, "seed": seed, "steps": steps, "metrics": metrics}
            for (case, arm, seed, steps), metrics in done.items()
        ],
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n\n".join(f"{title}\n\n{table(entries)}" for title, entries in summary.items()))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, choices=sorted(STUDENT))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a core each")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "anisotropy.json"
    )
    options = parser.parse_args(arguments)
    options.arms = [name for name in ARMS if name == "triplet" or name in options.arms]
    return options


def results(runs: Sequence[Run], jobs: int) -> list[dict[str, float]]:
    """What is measured in each run."""
    if jobs == 1:
        return [do(run) for run in runs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        return list(pool.map(do, runs))


def do(run: Run) -> dict[str, float]:
    """Train an arm in a case from a seed, and measure it on the classes of the test."""
    case, arm, seed, steps = run
    # The bits of a run depend on the number of threads.
    torch.set_num_threads(1)
    training, test = samples(seed, case.is_rotated)
    head = train(ARMS[arm], case, training, seed, steps).eval()
    with torch.no_grad():
        sample, structure = head(test.features)
    weights = structure if ARMS[arm].has_structure() else torch.ones_like(sample)
    found = {
        "plain": evaluate_retrieval(sample, test.labels),
        "structure": evaluate_adaptive_retrieval(sample, weights, test.labels),
        "oracle": evaluate_adaptive_retrieval(
            sample, oracle_structure(sample, test.labels), test.labels
        ),
    }
    return {
        **{f"{name} Recall@1": metrics.recall[1] for name, metrics in found.items()},
        **{f"{name} MAP@R": metrics.map_at_r for name, metrics in found.items()},
        "deviation": weights.std(0, correction=0).mean().item(),
    }


def samples(seed: int, is_rotated: bool) -> tuple[Samples, Samples]:
    """Samples to train on, and of other classes to test on."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(2):
        labels = torch.arange(CLASSES).repeat_interleave(ROWS)
        group = labels % GROUPS
        own = torch.arange(DIMENSIONS) // (DIMENSIONS // GROUPS) == group[:, None]
        within = torch.randn(len(labels), DIMENSIONS, generator=generator)
        within = within * torch.where(own, WIDE, NARROW)
        if is_rotated:
            within = torch.einsum("nk,nlk->nl", within, rotations()[group])
        centres = CENTRES * torch.randn(CLASSES, DIMENSIONS, generator=generator)
        features = torch.cat([torch.eye(GROUPS)[group], centres[labels] + within], 1)
        parts.append(Samples(features, labels))
    return parts[0], parts[1]


def rotations() -> Tensor:
    """(GROUPS, DIMENSIONS, DIMENSIONS), each of which spreads every axis over all of them alike.

    Hadamard's matrix, with signs of each group's own, as one rotation of all could be learnt.
    """
    matrix = torch.ones(1, 1)
    while len(matrix) < DIMENSIONS:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (GROUPS, DIMENSIONS), generator=generator) * 2 - 1
    return signs[:, :, None] * matrix / DIMENSIONS**0.5


def train(arm: Arm, case: Case, training: Samples, seed: int, steps: int) -> SampleStructureHead:
    """A head, of which the sample embedding is the coordinates at first."""
    torch.manual_seed(seed)
    head = SampleStructureHead(GROUPS + DIMENSIONS, DIMENSIONS, least=arm.least)
    with torch.no_grad():
        head.sample.weight.copy_(torch.eye(GROUPS + DIMENSIONS)[GROUPS:])
        head.sample.bias.zero_()
    head.sample.requires_grad_(not case.is_given)
    if case.is_given and not arm.has_structure():
        return head
    base = TripletMarginLoss(0.2, normalize=False)
    local = LocalVarianceLoss(arm.neighbors)
    optimiser = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = batch(generator)
        labels = training.labels[rows]
        sample, structure = head(training.features[rows])
        if arm.is_fixed:
            structure = torch.ones_like(structure)
        loss = base(sample, labels)
        if arm.weight > 0:
            trained = sample if arm.trains_sample else sample.detach()
            loss = loss + arm.weight * functional.multi_cluster_loss(
                trained, structure, clusters=arm.clusters
            )
        if arm.local > 0:
            loss = loss + arm.local * local(sample, labels, structure=structure)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head


def batch(generator: torch.Generator) -> Tensor:
    """Rows of some classes, as many of each."""
    classes = torch.randperm(CLASSES, generator=generator)[:BATCH_CLASSES]
    rows = [torch.randperm(ROWS, generator=generator)[:BATCH_ROWS] for _ in classes]
    return torch.cat([ROWS * c + r for c, r in zip(classes.tolist(), rows, strict=True)])


def summarize(
    done: Mapping[Run, Mapping[str, float]],
) -> dict[str, dict[str, Any]]:
    """By case and arm: mean and half width over the seeds, and of the paired differences."""
    seeds = sorted({seed for _, _, seed, _ in done})
    steps = next(iter(done))[3]
    summary: dict[str, dict[str, Any]] = {}
    for case, arm in dict.fromkeys((case, arm) for case, arm, _, _ in done):
        own = [done[Run(case, arm, seed, steps)] for seed in seeds]
        base = [done[Run(case, "triplet", seed, steps)] for seed in seeds]
        entry: dict[str, Any] = {
            name: interval([metrics[name] for metrics in own]) for name in own[0]
        }
        for metric in ("Recall@1", "MAP@R"):
            plain = f"plain {metric}"
            entry[f"{plain} against triplet"] = interval(
                [a[plain] - b[plain] for a, b in zip(own, base, strict=True)]
            )
            entry[f"structure {metric} against plain"] = interval(
                [metrics[f"structure {metric}"] - metrics[plain] for metrics in own]
            )
        summary.setdefault(case.title(), {})[arm] = entry
    return summary


def table(entries: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A case in Markdown, by MAP@R; a difference in bold when its interval leaves out 0."""
    titles = ("plain", "against triplet", "by structure", "against plain", "oracle", "deviation")
    columns = (
        "plain MAP@R",
        "plain MAP@R against triplet",
        "structure MAP@R",
        "structure MAP@R against plain",
        "oracle MAP@R",
        "deviation",
    )
    lines = [f"| arm | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for arm, entry in entries.items():
        lines.append(f"| {arm} | {' | '.join(cell(name, entry[name]) for name in columns)} |")
    return "\n".join(lines)


def cell(name: str, value: Mapping[str, float]) -> str:
    return shown_difference(value) if "against" in name else f"{value['mean']:.4f}"


if __name__ == "__main__":
    sys.exit(main())
