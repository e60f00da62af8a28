"""What the nearest positive is worth: training runs over several seeds, with intervals.

    python benchmarks/collapse.py --data digits --data digits-unseen --seeds 5

Trains with `positives` "nearest" (EPS) and "all", everything else equal, and compares the hidden
sub-classes on the test split at the step that the class MAP@R of the validation split selects.
Writes benchmarks/results/collapse.json and docs/images/collapse.png, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from intervals import STUDENT, interval

from dmlfast import data as data_sets
from dmlfast.benchmarking.machine import describe_machine
from dmlfast.evaluation import embed
from dmlfast.models import ConvolutionalEmbedding
from dmlfast.plots import draw_embedding
from dmlfast.training import RunFolder, TrainConfig, train

ROOT = Path(__file__).resolve().parents[1]
POSITIVES = ("all", "nearest")
SHOWN = (("subclass", "map@r"), ("subclass", "recall@1"), ("class", "map@r"), ("class", "recall@1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", choices=data_sets.names())
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    arguments = parser.parse_args()
    names = arguments.data or ["digits"]
    machine = describe_machine()  # before this writes to the checkout
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run(name, positives, seed, Path(folder))
            for name in names
            for seed in range(arguments.seeds)
            for positives in POSITIVES
        ]
        picture(names[0], Path(folder))
    summary = [summarize(runs, name, arguments.seeds) for name in names]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine,
        "summary": summary,
        "runs": runs,
    }
    target = ROOT / "benchmarks" / "results" / "collapse.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(summary))


def run(name: str, positives: str, seed: int, folder: Path) -> dict[str, Any]:
    config = TrainConfig.resolve(name, positives=positives, seed=seed)
    metrics = train(config, folder / f"{name}-{positives}-{seed}").metrics
    print(name, positives, seed, f"sub-class MAP@R {metrics['subclass']['map@r']:.4f}", flush=True)
    return {"config": config.as_dict(), "metrics": metrics}


def summarize(runs: list[dict[str, Any]], name: str, seeds: int) -> dict[str, Any]:
    """Mean and half width of the 95 % interval over the seeds, and the ratio of the means."""
    summary: dict[str, Any] = {"data": name, "seeds": seeds, "selection": {}, "best_test": {}}
    for rule in ("selection", "best_test"):
        for labels, metric in SHOWN:
            entry: dict[str, Any] = {}
            for positives in POSITIVES:
                values = [
                    (r["metrics"] if rule == "selection" else r["metrics"]["best_test"])[labels][
                        metric
                    ]
                    for r in runs
                    if r["config"]["data"] == name and r["config"]["positives"] == positives
                ]
                entry[positives] = interval(values)
            entry["ratio"] = entry["nearest"]["mean"] / entry["all"]["mean"]
            summary[rule][f"{labels}/{metric}"] = entry
    return summary


def table(summary: list[dict[str, Any]]) -> str:
    lines = [
        "| data | metric | all positives | nearest positive (EPS) | ratio |",
        "|---|---|---|---|---|",
    ]
    for one in summary:
        for metric, entry in one["selection"].items():
            cells = [f"{entry[p]['mean']:.3f} ± {entry[p]['half_width']:.3f}" for p in POSITIVES]
            lines.append(
                f"| {one['data']} | {metric} | {cells[0]} | {cells[1]} | {entry['ratio']:.2f} |"
            )
    return "\n".join(lines)


def picture(name: str, folder: Path) -> None:
    """The test split of seed 0, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=120, layout="constrained")
    titles = {
        "all": "All positives: the digits of a parity mix",
        "nearest": "Nearest positive (EPS): the digits stay apart",
    }
    entries = []
    data = data_sets.load(name)
    test = data.test
    for place, positives in enumerate(POSITIVES):
        run_folder, config = RunFolder.open(folder / f"{name}-{positives}-0")
        model = ConvolutionalEmbedding(
            image_size=test.images.shape[-1], dimensions=config.dimensions
        )
        model.load_state_dict(run_folder.read_checkpoint(config, resume=False)["selected_model"])
        metrics = json.loads((run_folder.path / RunFolder.METRICS).read_text(encoding="utf-8"))
        axes = figure.add_subplot(1, 2, place + 1)
        entries = draw_embedding(
            axes,
            torch.nn.functional.normalize(embed(model, test.images)),
            test.subclasses,
            labels=test.labels,
            subclass_names=data.subclass_names,
            class_names=data.class_names,
            title=f"{titles[positives]}\n(sub-class MAP@R {metrics['subclass']['map@r']:.2f})",
        )
    figure.legend(handles=entries, loc="outside right center", frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "collapse.png")


if __name__ == "__main__":
    main()
