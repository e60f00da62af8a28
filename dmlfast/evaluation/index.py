"""Indexes of faiss over embeddings, IVF with the cells of this library's k-means.

Sources: IVF and PQ are Jégou, Douze and Schmid, "Product quantization for nearest neighbor search",
TPAMI 2011; HNSW is Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search
using hierarchical navigable small world graphs", TPAMI 2020.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast._optional import require
from dmlfast.evaluation._rows import is_kept, parts
from dmlfast.functional import Selection
from dmlfast.ops._arguments import (
    check_count,
    check_dimensions,
    check_embeddings,
    check_generator,
    check_integers,
    check_option,
    describe,
)
from dmlfast.ops.clusters_kmeans import GREATEST_ITERATIONS

__all__ = ["INDEX_SETTINGS", "SearchIndex", "build_index", "index_settings", "search_index"]

# By kind of index what it can be set to, and what that means.
INDEX_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "flat": {},
    "ivf": {
        "lists": "cells that the rows are divided into, by default 4·sqrt(N), at most N / 39",
        "probes": "cells that a search looks into, by default a 16th of them, at least 8",
        "iterations": "iterations of k-means, by default 10",
    },
    "hnsw": {
        "links": "links of a row in the graph, by default 32",
        "breadth": "rows that a search keeps while it follows links, by default 64",
    },
    "pq": {"parts": "parts that a row is cut into, a byte each, by default one for 4 dimensions"},
}

_METRICS = ("euclidean", "dot")
# What faiss asks for to train a cell.
_ROWS_A_LIST = 39
_LEAST_PROBES = 8
# Dimensions of a part, by default.
_PART = 4
# Two such rows are at most 2^127 apart, squared: half of what float32 holds.
_GREATEST_SQUARE = 2.0**125
# Of a graph: 8 kB a row, and 8 MB a thread that searches.
_GREATEST = {"links": 2**10, "breadth": 2**20}


class SearchIndex(Protocol):
    """What the searches ask of a faiss index."""

    d: int
    ntotal: int

    def search(self, x: Any, k: int, /) -> tuple[Any, Any]:
        """Distances and rows, (N, k) each, of the nearest to (N, d) float32; -1 for no row."""
        ...


def index_settings(kind: str, rows: int, dimensions: int, /, **given: int) -> dict[str, int]:
    """Every setting of an index of so many rows: those given, and the defaults of the rest.

    Args:
        kind: one of `INDEX_SETTINGS`.
        rows: how many are indexed, at least 1.
        dimensions: their length, at least 1.
        given: settings of that kind.

    Raises:
        TypeError: a number that is no integer.
        ValueError: an unknown kind or setting, or a number out of its range.
    """
    check_option("kind", kind, tuple(INDEX_SETTINGS))
    check_count("rows", rows)
    check_count("dimensions", dimensions)
    for name in given:
        if name not in INDEX_SETTINGS[kind]:
            known = ", ".join(INDEX_SETTINGS[kind]) or "no setting"
            raise ValueError(f"{name}: expected {known} for an index of kind {kind}, got {name}")
    if kind == "ivf":
        return _ivf_settings(rows, **given)
    if kind == "hnsw":
        settings = {"links": 32, "breadth": 64} | given
        return {
            name: check_count(name, value, least=2, greatest=_GREATEST[name])
            for name, value in settings.items()
        }
    if kind == "pq":
        parts = given.get("parts", _most_parts(dimensions))
        if dimensions % check_count("parts", parts):
            raise ValueError(f"parts: expected a divisor of {dimensions} dimensions, got {parts}")
        return {"parts": parts}
    return {}


def build_index(
    x: Tensor,
    kind: str = "flat",
    *,
    metric: str = "euclidean",
    generator: torch.Generator | None = None,
    **settings: int,
) -> Any:
    """An index of faiss that holds the rows of `x` in their order.

    * "flat" compares a query with all rows.
    * "ivf" divides the rows into cells around the centres of `dmlfast.functional.kmeans` over all
      rows, which starts from rows drawn at random: k-means++ leaves cells of less even size, of
      which a search reads more. A query is compared with the rows of the nearest cells.
      Settings: `lists`, the cells, by default 4·sqrt(N), but with 39 rows on average at least;
      `probes`, the cells that a search looks into, a 16th of them by default, but at least 8;
      `iterations` of k-means, 10, at most 2^20.
    * "hnsw" follows links from row to row. Settings: `links` of a row, 32, 2 to 1024; `breadth`,
      the rows that a search keeps, 64, 2 to 2^20. It is built by one thread, so that it is the same
      each time.
    * "pq" stores a row as bytes and compares with what they stand for, by tables that faiss trains.
      Settings: `parts`, a byte each, by default one for 4 dimensions or, where they do not divide,
      the next that do. With fewer than 256 rows they are shorter than a byte.

    Rows are compared in float32. A large common offset costs digits, subtract it first; so do
    squared distances below about 1e-38.

    Args:
        x: (N, d) float16, bfloat16, float32 or float64 embeddings, any strides, N and d at least 1;
            rows of norm 6e18 at most, whose squared distances float32 holds.
        kind: "flat", "ivf", "hnsw" or "pq".
        metric: "euclidean", or "dot" for the largest inner product first, which "ivf" does not
            serve. For the cosine, give rows and queries of unit length.
        generator: of the rows that k-means starts from, of any device; torch's own of the CPU by
            default.
        settings: of the kind, integers.

    Returns:
        The faiss index, trained and filled.

    Memory: a float32 copy of `x` on the CPU and the index, beside what training takes; for IVF that
    is O((N + lists)·d).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, an unknown kind, metric or setting, a setting out of its range, a
            row that is not finite or too large, or a single row for "pq".
        ImportError: faiss is not installed.
    """
    rows = check_embeddings("x", x).detach()
    check_option("kind", kind, tuple(INDEX_SETTINGS))
    check_option("metric", metric, _METRICS)
    check_generator(generator)
    if 0 in rows.shape:
        raise ValueError(f"x: expected a row and a dimension at least, got {describe(x)}")
    if kind == "ivf" and metric != "euclidean":
        raise ValueError(f"metric: expected 'euclidean' with kind 'ivf', got {metric!r}")
    if kind == "pq" and len(rows) < 2:
        raise ValueError(f"x: expected at least 2 rows with kind 'pq', got {describe(x)}")
    chosen = index_settings(kind, rows.shape[0], rows.shape[1], **settings)
    check_norms("x", rows)
    packed = rows.to(device="cpu", dtype=torch.float32).contiguous()
    faiss = require("faiss", "train")
    number = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    if kind == "ivf":
        return _ivf(faiss, packed, generator, **chosen)
    return _BUILDERS[kind](faiss, packed, number, **chosen)


def search_index(
    index: SearchIndex, queries: Tensor, k: int = 10, *, self_index: Tensor | None = None
) -> Selection:
    """The nearest rows of an index to each query, the nearest first, as the index finds them.

    Args:
        index: an index of faiss. What it finds is its own: of rows larger than `build_index`
            takes that may be nothing.
        queries: (N, d) float16, bfloat16, float32 or float64, any strides; rows of norm 6e18 at
            most, whose squared distances float32 holds.
        k: how many, at least 1; it may exceed the number of rows.
        self_index: (N,) of an integer dtype, the row of the index that is the query itself, and is
            left out; -1 for none. By default no row is left out.

    Returns:
        `dmlfast.functional.Selection` with (N, k) float32 distance and (N, k) int64 index, on the
        device of the queries. The distance is the Euclidean one, or minus the inner product; what
        PQ gives is an estimate. Where no row is found, index -1 and distance +inf. Not
        differentiable.

    Memory: O(N·(d + k)), beside what the index takes.

    Raises:
        TypeError: something is not a tensor or an index, or has a wrong dtype.
        ValueError: a wrong shape or device, k below 1, or a row that is not finite or too large.
    """
    rows = check_embeddings("queries", queries).detach()
    check_count("k", k)
    check_index(index)
    check_dimensions("queries", rows, index.d)
    if self_index is not None:
        self_index = check_integers("self_index", self_index, len(rows), rows.device)
    check_norms("queries", rows)
    values, found = found_by(index, rows, k, self_index)
    euclidean = getattr(index, "metric_type", 1) == 1  # faiss.METRIC_L2
    distance = values.clamp(min=0).sqrt() if euclidean else -values
    return Selection(torch.where(found < 0, torch.inf, distance), found)


def check_index(index: object) -> None:
    """Raises TypeError unless it looks like an index of faiss."""
    if not all(hasattr(index, name) for name in ("d", "ntotal", "search")):
        raise TypeError(f"index: expected a faiss index, got {describe(index)}")


def check_norms(name: str, rows: Tensor) -> None:
    """Raises ValueError unless float32 holds the squared distances of such rows."""
    for part in parts(rows):
        wide = part.double()
        if not bool(wide.isfinite().all()):
            raise ValueError(f"{name}: expected values that are finite, got {describe(rows)}")
        if bool((wide.square().sum(1) > _GREATEST_SQUARE).any()):
            raise ValueError(
                f"{name}: expected rows of norm {math.sqrt(_GREATEST_SQUARE):.3g} at most, whose "
                f"squared distances float32 holds, got values up to {wide.abs().max():.3g} in "
                f"{describe(rows)}"
            )


def found_by(
    index: SearchIndex, queries: Tensor, k: int, self_index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(N, k) values of faiss and int64 rows, -1 for none, on the device of the queries.

    `self_index` as in `search_index`, of int64.
    """
    packed = queries.float().cpu().contiguous().numpy()
    asked = k + int(self_index is not None)
    # faiss reserves memory for all that it is asked for, and has nothing beyond its rows.
    there = max(1, min(asked, index.ntotal))
    values, found = map(torch.from_numpy, index.search(packed, there))
    if there < asked:
        values, found = (
            torch.nn.functional.pad(given, (0, asked - there), value=none)
            for given, none in ((values, torch.inf), (found, -1))
        )
    if self_index is not None:
        kept = is_kept(found, self_index.cpu())
        values, found = (given[kept].view(len(found), k) for given in (values, found))
    return values.to(queries.device), found.to(queries.device)


def ivf_around(faiss: Any, rows: Tensor, centers: Tensor, probes: int) -> Any:
    """An IVF index of (N, d) float32 rows whose cells are those of (K, d) float32 centres."""
    quantizer = faiss.IndexFlatL2(rows.shape[1])
    quantizer.add(centers.numpy())
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], len(centers))
    index.is_trained = True  # it has its cells, and stores rows as they are
    index.nprobe = probes
    index.add(rows.numpy())
    return index


def _ivf_settings(rows: int, **given: int) -> dict[str, int]:
    most = max(1, min(round(4 * math.sqrt(rows)), rows // _ROWS_A_LIST))
    lists = check_count("lists", given.get("lists", most), greatest=rows)
    default = min(lists, max(_LEAST_PROBES, lists // 16))
    return {
        "lists": lists,
        "probes": check_count("probes", given.get("probes", default), greatest=lists),
        "iterations": check_count(
            "iterations", given.get("iterations", 10), least=0, greatest=GREATEST_ITERATIONS
        ),
    }


def _most_parts(dimensions: int) -> int:
    """The largest divisor that leaves parts of so many dimensions at least."""
    return next(n for n in range(max(1, dimensions // _PART), 0, -1) if dimensions % n == 0)


def _ivf(
    faiss: Any,
    rows: Tensor,
    generator: torch.Generator | None,
    *,
    lists: int,
    probes: int,
    iterations: int,
) -> Any:
    device = None if generator is None else generator.device
    first = torch.randperm(len(rows), generator=generator, device=device)[:lists].cpu()
    found = functional.kmeans(rows, lists, iterations=iterations, initial=rows[first])
    return ivf_around(faiss, rows, found.centers, probes)


def _flat(faiss: Any, rows: Tensor, metric: int) -> Any:
    index = faiss.IndexFlat(rows.shape[1], metric)
    index.add(rows.numpy())
    return index


def _hnsw(faiss: Any, rows: Tensor, metric: int, *, links: int, breadth: int) -> Any:
    index = faiss.IndexHNSWFlat(rows.shape[1], links, metric)
    index.hnsw.efSearch = breadth
    with _one_thread(faiss):
        index.add(rows.numpy())
    return index


def _pq(faiss: Any, rows: Tensor, metric: int, *, parts: int) -> Any:
    bits = min(8, len(rows).bit_length() - 1)
    index = faiss.IndexPQ(rows.shape[1], parts, bits, metric)
    index.pq.cp.min_points_per_centroid = 1  # says nothing of a small set
    index.train(rows.numpy())
    index.add(rows.numpy())
    return index


_BUILDERS: Mapping[str, Callable[..., Any]] = {"flat": _flat, "hnsw": _hnsw, "pq": _pq}


@contextlib.contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
