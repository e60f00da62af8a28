"""Studies of what a setting is worth: paired training runs over several seeds, with intervals.

Within a seed all arms start from the same network and see the same batches, so that the differences
of an arm and the one it is compared with are paired. Reported is the test split at the step that
the class MAP@R of the validation split selects.

Every run has its folder, so a study can be interrupted and started again: finished runs are read
and interrupted ones go on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from intervals import STUDENT, interval, shown_difference

from dmlfast import data as data_sets
from dmlfast.benchmarking.machine import describe_machine
from dmlfast.training import RunFolder, TrainConfig, interruption, train

ROOT = Path(__file__).resolve().parents[1]

# By title: a group of the metrics of a run and the metric, and a group to subtract if there is one.
Metrics = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """Settings of a run beside those of all, and the arm that it is compared with."""

    settings: Mapping[str, Any]
    against: str | None = "base"


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm at one seed."""

    arm: str
    config: TrainConfig
    folder: Path


@dataclasses.dataclass(frozen=True)
class Study:
    """Some arms, what is compared, and the program that does it.

    Attributes:
        name: names the default folder of the runs and the file of the results.
        description: what the program says it does.
        arms: by name, each after the one that it is compared with.
        metrics: what is compared.
        settings: of all arms on a data set, by its name.
    """

    name: str
    description: str | None
    arms: Mapping[str, Arm]
    metrics: Metrics
    settings: Mapping[str, Mapping[str, Any]]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Do the study, and return its exit code: 130 when it was interrupted."""
        options = self.parse(arguments)
        machine = describe_machine()  # before this writes to the checkout
        runs = self.plan(options)
        done = dict(results(runs, options.jobs, self.metrics))
        if len(done) < len(runs):
            print(f"{len(done)} of {len(runs)} runs are done; the same command goes on.")
            return 130
        summary = self.summarize(done, options.arms)
        result = {
            "command": " ".join(["python", *sys.argv]),
            "machine": machine,
            "summary": summary,
            "runs": [
                {
                    "arm": run.arm,
                    "config": run.config.as_dict(),
                    "metrics": done[run.arm, run.config.seed],
                }
                for run in runs
            ],
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(self.table(summary))
        return 0

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.description)
        names = list(self.arms)
        parser.add_argument("--data", default="glyphs", choices=data_sets.names())
        parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
        parser.add_argument("--arms", nargs="+", default=names, choices=names, metavar="ARM")
        parser.add_argument("--steps", type=int, default=400)
        parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a core each")
        parser.add_argument(
            "--runs", type=Path, default=Path("runs") / self.name, help="the run folders"
        )
        parser.add_argument(
            "--out", type=Path, default=ROOT / "benchmarks" / "results" / f"{self.name}.json"
        )
        options = parser.parse_args(arguments)
        # What an arm is compared with has to run, and in the order of the table.
        wanted = {*options.arms, *(self.arms[name].against for name in options.arms)}
        options.arms = [name for name in self.arms if name in wanted]
        return options

    def plan(self, options: argparse.Namespace) -> list[Run]:
        """The runs, seed by seed: interrupted, the study has whole pairs."""
        common: dict[str, Any] = {
            "steps": options.steps,
            "evaluate_every": max(1, options.steps // 4),
            **self.settings.get(options.data, {}),
            "backend": "kernel",
        }
        runs = []
        for seed in range(options.seeds):
            for name in options.arms:
                settings = {**common, **self.arms[name].settings, "seed": seed}
                words = "-".join(name.replace(",", "").split())
                folder = options.runs / f"{options.data}-{words}-{options.steps}-{seed}"
                runs.append(Run(name, TrainConfig.resolve(options.data, **settings), folder))
        return runs

    def summarize(
        self, done: Mapping[tuple[str, int], Mapping[str, Any]], arms: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """By arm and metric: mean and half width over the seeds, and of the paired difference."""
        seeds = sorted({seed for _, seed in done})
        values = {key: chosen(metrics, self.metrics) for key, metrics in done.items()}
        summary: dict[str, dict[str, Any]] = {}
        for arm in arms:
            against = self.arms[arm].against
            summary[arm] = {"against": against, "seeds": len(seeds)}
            for metric in self.metrics:
                own = [values[arm, seed][metric] for seed in seeds]
                summary[arm][metric] = interval(own)
                if against is not None:
                    other = [values[against, seed][metric] for seed in seeds]
                    pairs = [a - b for a, b in zip(own, other, strict=True)]
                    summary[arm][metric]["difference"] = interval(pairs)
        return summary

    def table(self, summary: Mapping[str, Mapping[str, Any]]) -> str:
        """The summary in Markdown; a difference in bold when its interval leaves out 0."""
        titles = [title for metric in self.metrics for title in (metric, "difference")]
        lines = [f"| arm | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
        for arm, entry in summary.items():
            cells = []
            for metric in self.metrics:
                cells.append(f"{entry[metric]['mean']:.4f}")
                difference = entry[metric].get("difference")
                cells.append("" if difference is None else shown_difference(difference))
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        return "\n".join(lines)


def results(
    runs: Sequence[Run], jobs: int, metrics: Metrics
) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """The metrics of the runs by arm and seed, as they are done; fewer when interrupted."""
    if jobs == 1:
        for run in runs:
            found = do(run, metrics)
            if found is None:
                return
            yield (run.arm, run.config.seed), found
        return
    context = multiprocessing.get_context("spawn")
    work = functools.partial(_do_one_of_many, metrics=metrics)
    with ProcessPoolExecutor(jobs, mp_context=context) as pool, interruption() as should_stop:
        waiting = {pool.submit(work, run): run for run in runs}
        for future in as_completed(waiting):
            run, found = waiting[future], future.result()
            if found is not None:
                yield (run.arm, run.config.seed), found
            if should_stop():
                # Those at work have had the signal, too, and save what they have.
                pool.shutdown(wait=False, cancel_futures=True)
                return


# Whether a run of this process was interrupted; a pool hands out some runs before they are due.
_interrupted = False


def _do_one_of_many(run: Run, metrics: Metrics) -> dict[str, Any] | None:
    global _interrupted
    found = None if _interrupted else do(run, metrics)
    _interrupted = found is None
    return found


def do(run: Run, metrics: Metrics) -> dict[str, Any] | None:
    """Train, or go on, or read what is there; None when interrupted."""
    # The bits of a run depend on the number of threads.
    torch.set_num_threads(1)
    found = finished(run)
    if found is not None:
        return found
    with interruption() as should_stop:
        # A run that was killed before its first checkpoint starts again.
        resume = _has_checkpoint(run)
        result = train(
            run.config, run.folder, resume=resume, overwrite=not resume, should_stop=should_stop
        )
    if not result.finished:
        return None
    shown = (f"{name} {value:.4f}" for name, value in chosen(result.metrics, metrics).items())
    print(f"seed {run.config.seed}, {run.arm}: {', '.join(shown)}", flush=True)
    return result.metrics


def finished(run: Run) -> dict[str, Any] | None:
    """The metrics of a run whose folder holds all of it; None for any other."""
    if not run.folder.exists():
        return None
    folder, config = RunFolder.open(run.folder)
    if config != run.config:
        raise SystemExit(f"{run.folder} holds a run of another configuration: choose other --runs.")
    if not _has_checkpoint(run):
        return None
    if folder.read_checkpoint(config)["step"] < config.steps:
        return None
    with contextlib.suppress(FileNotFoundError):
        return json.loads((run.folder / RunFolder.METRICS).read_text(encoding="utf-8"))
    return None


def _has_checkpoint(run: Run) -> bool:
    return (run.folder / RunFolder.CHECKPOINT).exists()


def chosen(metrics: Mapping[str, Any], compared: Metrics) -> dict[str, float]:
    """The metrics that are compared, of those of a run."""
    return {
        title: metrics[group][metric] - sum(metrics[other][metric] for other in others)
        for title, (group, metric, *others) in compared.items()
    }
