"""How much of retrieval by the structure an index of the sample embeddings finds.

    python benchmarks/indexes.py --run runs/glyphs-namr-0

Searches by the adaptive distance, in a set that is drawn and in the test split of a run of
`dmlfast train --method namr`: in all references exactly, and in the first that flat, IVF, HNSW and
PQ indexes of faiss give by Euclidean distance. The adaptive distance to all is an inner product,
too, of [2 w q, -w] with [x, x x]; so the same kinds of index are asked for that alone.

Writes benchmarks/results/indexes.json and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import torch
from torch import Tensor

from dmlfast.benchmarking.machine import describe_machine, peer_versions
from dmlfast.evaluation import (
    adaptive_search,
    build_index,
    evaluate_adaptive_retrieval,
    evaluate_neighbors,
    evaluate_retrieval,
    search_index,
)
from dmlfast.training.trained import TrainedRun

ROOT = Path(__file__).resolve().parents[1]
SHORTLISTS = (2, 4, 8, 32)
# Of a class that is drawn.
MEMBERS = 12
CELLS, PROBES = 64, 8


class Retrieval(NamedTuple):
    """What is searched: (N, d) sample embeddings, their weights and (N,) labels."""

    sample: Tensor
    structure: Tensor
    labels: Tensor
    source: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run folder; without it the drawn set alone")
    parser.add_argument("--rows", type=int, default=7500, help="of the drawn set")
    parser.add_argument("--dimensions", type=int, default=64, help="of the drawn set")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn set")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "indexes.json"
    )
    options = parser.parse_args(arguments)
    machine = describe_machine()  # before this writes to the checkout
    faiss.omp_set_num_threads(1)  # a graph that threads build is another each time
    sets = {"drawn": drawn(options.rows, options.dimensions, options.seed)}
    if options.run is not None:
        sets["run"] = of_run(options.run)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {**machine, "faiss-cpu": peer_versions()["faiss-cpu"]},
        "sets": {name: {"source": given.source, **study(given)} for name, given in sets.items()},
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(tables(result))


def of_run(folder: Path) -> Retrieval:
    """The test split, as the weights that validation selected embed it."""
    run = TrainedRun.open(folder)
    sample, structure = run.embed(run.data.test.images)
    if structure is None:
        raise SystemExit(f"{folder} holds a run of {run.config.method.name} without a structure.")
    return Retrieval(sample, structure, run.data.test.labels, {"config": run.config.as_dict()})


def drawn(rows: int, dimensions: int, seed: int) -> Retrieval:
    """Classes that are ellipsoids of their own, with the weights that NASA's head would give them.

    Deviations within a class are drawn evenly by their logarithm, from a third of that of the
    centres to three times as much.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = -(-rows // MEMBERS)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, dimensions, generator=generator)
    spread = 3 ** (2 * torch.rand(classes, dimensions, generator=generator) - 1)
    sample = centres[labels] + spread[labels] * torch.randn(rows, dimensions, generator=generator)
    inverse = spread.square().reciprocal()
    structure = (inverse / inverse.mean(1, keepdim=True)).clamp(0.5, 1.5)[labels]
    source = {"rows": rows, "dimensions": dimensions, "seed": seed}
    return Retrieval(sample, structure, labels, source)


def study(given: Retrieval) -> dict[str, Any]:
    """The exact figures, and of each index the share of them that it has."""
    sample, structure, labels, _ = given
    exact = evaluate_adaptive_retrieval(sample, structure, labels)
    nearest = adaptive_search(sample, structure, k=1, shortlist=None).index[:, 0]
    width = max(int(labels.bincount().max()) - 1, *SHORTLISTS)

    def shares(neighbors: Tensor) -> dict[str, float]:
        found = evaluate_neighbors(neighbors, labels)
        return {
            "top-1": float((neighbors[:, 0] == nearest).double().mean()),
            "map@r": found.map_at_r / exact.map_at_r,
        }

    indexes = []
    for name, build in BUILDERS.items():
        index = build(sample, "euclidean")
        listed = search(index, sample, width)
        entry: dict[str, Any] = {"index": name, "bytes": row_bytes(index)}
        entry["as found"] = shares(listed)
        for length in SHORTLISTS:
            again = adaptive_search(sample, structure, k=length, shortlist=length, index=index)
            entry[f"{length} re-ranked"] = shares(torch.cat([again.index, listed[:, length:]], 1))
        indexes.append(entry)
    products = []
    queries, references = augmented(sample, structure)
    for name, build in BUILDERS.items():
        index = build(references, "dot")
        entry = {"index": name, "bytes": row_bytes(index)}
        products.append(entry | shares(search(index, queries, width)))
    even = evened(references)
    index = build_index(even, "hnsw")
    flat = torch.nn.functional.pad(queries, (0, even.shape[1] - queries.shape[1]))
    entry = {"index": "HNSW, lengths evened out", "bytes": row_bytes(index)}
    products.append(entry | shares(search(index, flat, width)))
    return {
        "rows": len(sample),
        "dimensions": sample.shape[1],
        "plain": evaluate_retrieval(sample, labels).as_dict(),
        "exact": exact.as_dict(),
        "indexes": indexes,
        "inner product": products,
    }


def ivf(rows: Tensor, metric: str) -> Any:
    """Trained by faiss itself: under inner products `build_index` makes none."""
    number = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    quantizer = faiss.IndexFlat(rows.shape[1], number)
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], CELLS, number)
    index.nprobe = PROBES
    index.train(rows.numpy())
    index.add(rows.numpy())
    return index


def by_kind(kind: str) -> Callable[[Tensor, str], Any]:
    return lambda rows, metric: build_index(rows, kind, metric=metric)


BUILDERS: dict[str, Callable[[Tensor, str], Any]] = {
    "flat": by_kind("flat"),
    "IVF": ivf,
    "HNSW": by_kind("hnsw"),
    "PQ": by_kind("pq"),
}


def row_bytes(index: Any) -> int:
    """What an index keeps of each row."""
    return round(faiss.serialize_index(index).nbytes / index.ntotal)


def search(index: Any, queries: Tensor, k: int) -> Tensor:
    """(N, k) what an index of the queries' own rows finds, each without itself; -1 for none."""
    return search_index(index, queries, k, self_index=torch.arange(len(queries))).index


def augmented(sample: Tensor, structure: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2d) queries and references, the nearest by adaptive distance having the largest product.

    Around the mean and with a variance of 1, so that both halves are of one size.
    """
    x = sample.double() - sample.double().mean(0)
    x = x / x.square().mean().sqrt()
    w = structure.double()
    queries, references = torch.cat([2 * w * x, -w], 1), torch.cat([x, x.square()], 1)
    return queries.float(), references.float()


def evened(references: Tensor) -> Tensor:
    """With one more number, for which all are of one length: the largest product is the nearest."""
    squares = references.double().square().sum(1, keepdim=True)
    return torch.cat([references, (squares.max() - squares).sqrt().float()], 1)


def tables(result: Mapping[str, Any]) -> str:
    """The tables of each set in Markdown."""
    return "\n\n".join(table(name, entry) for name, entry in result["sets"].items())


def table(name: str, result: Mapping[str, Any]) -> str:
    columns = ("as found", *(f"{length} re-ranked" for length in SHORTLISTS))
    lines = [
        f"{name}: {result['rows']} rows of {result['dimensions']} dimensions, MAP@R "
        f"{result['plain']['map@r']:.4f} by Euclidean distance, "
        f"{result['exact']['map@r']:.4f} by the adaptive one",
        "",
        f"| index of x | bytes a row | {' | '.join(columns)} |",
        "|---|--:" + "|--:" * len(columns) + "|",
    ]
    for entry in result["indexes"]:
        cells = (shown(entry[column]) for column in columns)
        lines.append(f"| {entry['index']} | {entry['bytes']} | {' | '.join(cells)} |")
    lines += ["", "| index of [x, x·x] | bytes a row | as found |", "|---|--:|--:|"]
    for entry in result["inner product"]:
        lines.append(f"| {entry['index']} | {entry['bytes']} | {shown(entry)} |")
    return "\n".join(lines)


def shown(shares: Mapping[str, Any]) -> str:
    return f"{100 * shares['top-1']:.1f} / {100 * shares['map@r']:.1f} %"


if __name__ == "__main__":
    main()
