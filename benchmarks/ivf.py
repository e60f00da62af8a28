"""What the cells of an IVF index find: of this library's k-means and of faiss's own training.

    python benchmarks/ivf.py --run runs/glyphs-namr-0

Of the ten exact nearest of each query, the share that an index finds with so many probes, over
several seeds. Every k-means moves its centres ten times and sees all rows. Ours starts from rows at
random, as `build_index` and faiss do, and as k-means++ does. Searched are mixtures of normal
distributions, drawn anew for each seed, and the test split of a run, where a seed draws the starts
alone.

Cells of uneven size have a search read more rows. So there are two differences to faiss: with as
many probes, and with as many rows read, its recall between two numbers of probes being taken in
proportion, and that of one probe being taken for fewer rows.

Writes benchmarks/results/ivf.json and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from intervals import STUDENT, interval, shown_difference
from torch import Tensor

from dmlfast import functional
from dmlfast.benchmarking.machine import describe_machine, peer_versions
from dmlfast.evaluation import build_index, index_settings, search_index
from dmlfast.evaluation.index import ivf_around
from dmlfast.training.trained import TrainedRun

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 10
NEAREST = 10
PROBES = (1, 2, 4, 8, 16)
# With those between and beyond, for as many rows where cells are more even.
MEASURED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
COMPONENTS, QUERIES = 200, 1000
# Deviation of the centres, that of a component being around 1.
APART = {"overlapping": 1.0, "separate": 3.0}


class Rows(NamedTuple):
    """What is searched: (N, d) rows, (Q, d) queries and the rows that they are, -1 for none."""

    rows: Tensor
    queries: Tensor
    self_index: Tensor


class Curve(NamedTuple):
    """Recall and the share of the rows that a query reads, by `MEASURED` probes."""

    recall: list[float]
    read: list[float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run folder; without it the mixtures alone")
    parser.add_argument("--seeds", type=int, default=10, choices=sorted(STUDENT))
    parser.add_argument("--rows", type=int, default=20_000, help="of a mixture")
    parser.add_argument("--dimensions", type=int, default=32, help="of a mixture")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "ivf.json")
    options = parser.parse_args(arguments)
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    machine = describe_machine()  # before this writes to the checkout
    drawn: dict[str, tuple[dict[str, Any], Callable[[int], Rows]]] = {}
    for name, apart in APART.items():
        source = {"rows": options.rows, "dimensions": options.dimensions, "apart": apart}
        drawn[name] = source, lambda seed, source=source: mixture(**source, seed=seed)
    if options.run is not None:
        run = TrainedRun.open(options.run)
        sample = run.embed(run.data.test.images).sample
        rows = Rows(sample, sample, torch.arange(len(sample)))
        drawn["run"] = {"config": run.config.as_dict()}, lambda _: rows
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {**machine, "faiss-cpu": peer_versions()["faiss-cpu"]},
        "iterations": ITERATIONS,
        "sets": {
            name: {"source": source, **study(make, options.seeds)}
            for name, (source, make) in drawn.items()
        },
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(tables(result))


def mixture(rows: int, dimensions: int, apart: float, seed: int) -> Rows:
    """Components of one weight each, whose deviations are log-normal around 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(COMPONENTS, dimensions, generator=generator)
    spread = torch.exp(0.5 * torch.randn(COMPONENTS, 1, generator=generator))
    total = rows + QUERIES
    component = torch.randint(COMPONENTS, (total,), generator=generator)
    noise = torch.randn(total, dimensions, generator=generator)
    x = centres[component] + spread[component] * noise
    return Rows(x[:rows], x[rows:], torch.full((QUERIES,), -1))


def study(make: Callable[[int], Rows], seeds: int) -> dict[str, Any]:
    """Means over the seeds by number of probes, and of the paired differences."""
    curves = [compared(make(seed), seed) for seed in range(seeds)]
    given = make(0).rows
    found = []
    for probes in PROBES:
        place = MEASURED.index(probes)
        entry: dict[str, Any] = {"probes": probes}
        for name in BUILDERS:
            pairs = [(curve[name], curve["faiss"]) for curve in curves]
            entry[name] = {
                "recall": interval([a.recall[place] for a, _ in pairs]),
                "read": statistics.fmean(a.read[place] for a, _ in pairs),
            }
            if name != "faiss":
                entry[name]["difference"] = interval(
                    [a.recall[place] - b.recall[place] for a, b in pairs]
                )
                entry[name]["as many rows"] = interval(
                    [a.recall[place] - np.interp(a.read[place], b.read, b.recall) for a, b in pairs]
                )
        found.append(entry)
    return {
        "rows": len(given),
        "dimensions": given.shape[1],
        "lists": lists_of(given),
        "seeds": seeds,
        "seconds": {
            name: statistics.median(curve[name].seconds for curve in curves) for name in BUILDERS
        },
        "probes": found,
    }


def lists_of(rows: Tensor) -> int:
    return index_settings("ivf", *rows.shape)["lists"]


def compared(given: Rows, seed: int) -> dict[str, Curve]:
    """The curves of all, of the same rows."""
    exact = search_index(
        build_index(given.rows), given.queries, NEAREST, self_index=given.self_index
    ).index
    return {name: curve(build, given, exact, seed) for name, build in BUILDERS.items()}


def from_rows(rows: Tensor, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return build_index(rows, "ivf", generator=generator, iterations=ITERATIONS)


def from_seeding(rows: Tensor, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    found = functional.kmeans(rows, lists_of(rows), iterations=ITERATIONS, generator=generator)
    return ivf_around(faiss, rows, found.centers, probes=1)


def by_faiss(rows: Tensor, seed: int) -> Any:
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(rows.shape[1]), rows.shape[1], lists_of(rows))
    index.cp.niter, index.cp.seed = ITERATIONS, seed + 1
    index.cp.min_points_per_centroid = 1  # says nothing of small cells
    index.train(rows.numpy())
    index.add(rows.numpy())
    return index


BUILDERS: dict[str, Callable[[Tensor, int], Any]] = {
    "kmeans": from_rows,
    "k-means++": from_seeding,
    "faiss": by_faiss,
}


def curve(build: Callable[[Tensor, int], Any], given: Rows, exact: Tensor, seed: int) -> Curve:
    started = time.perf_counter()
    index = build(given.rows, seed)
    seconds = time.perf_counter() - started
    sizes = torch.tensor([index.invlists.list_size(cell) for cell in range(index.nlist)])
    most = min(MEASURED[-1], index.nlist)
    nearest = torch.from_numpy(index.quantizer.search(given.queries.numpy(), most)[1])
    read = sizes[nearest].cumsum(1).double().mean(0) / len(given.rows)
    recall = []
    for index.nprobe in MEASURED:
        found = search_index(index, given.queries, NEAREST, self_index=given.self_index).index
        # Where fewer were found, -1 is none of the nearest.
        hits = (found[:, :, None] == exact[:, None]).any(1)
        recall.append(float(hits.double().mean()))
    reads = [float(read[min(probes, most) - 1]) for probes in MEASURED]
    return Curve(recall, reads, seconds)


def tables(result: Mapping[str, Any]) -> str:
    """The tables of each set in Markdown; a difference in bold when its interval leaves out 0."""
    return "\n\n".join(table(name, entry) for name, entry in result["sets"].items())


def table(name: str, result: Mapping[str, Any]) -> str:
    lines = [
        f"{name}: {result['rows']} rows of {result['dimensions']} dimensions in "
        f"{result['lists']} cells, {result['seeds']} seeds",
        "",
        "| probes | faiss, rows read | k-means, rows read | difference "
        "| k-means++, rows read | difference | at as many rows |",
        "|--:" * 7 + "|",
    ]
    for entry in result["probes"]:
        own = {
            name: f"{entry[name]['recall']['mean']:.4f}, {100 * entry[name]['read']:.2f} %"
            for name in BUILDERS
        }
        cells = [str(entry["probes"]), own["faiss"], own["kmeans"]]
        cells += [shown_difference(entry["kmeans"]["difference"]), own["k-means++"]]
        cells += [shown_difference(entry["k-means++"][d]) for d in ("difference", "as many rows")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
