"""The index of a run: a split of its data set, embedded and searchable."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmlfast._library import version
from dmlfast._optional import require
from dmlfast.data import Split, read_images
from dmlfast.evaluation import (
    adaptive_search,
    build_index,
    evaluate_neighbors,
    index_settings,
    search_index,
)
from dmlfast.functional import Selection
from dmlfast.training.errors import RunFolderError
from dmlfast.training.files import as_csv, reason, replacing, write_text
from dmlfast.training.run_folder import RunFolder
from dmlfast.training.summary import LABELS, RECALL_AT
from dmlfast.training.trained import Embedded, TrainedRun

__all__ = ["Queries", "RunIndex", "recalls", "write_neighbors"]


class Queries(NamedTuple):
    """What is searched for.

    Attributes:
        names: what each query is called.
        images: (N, C, H, W), as those of the data set.
        embedded: what the run makes of them.
        split: the labels of queries from a split; None for images from elsewhere.
        self_index: (N,) int64, the row of the index that is the query, -1 for none.
    """

    names: Sequence[str]
    images: Tensor
    embedded: Embedded
    split: Split | None
    self_index: Tensor


class RunIndex:
    """An index of faiss, and beside it what a search needs to know.

    `RunIndex.build` makes the folder, `RunIndex.open` returns to it.

    Attributes:
        path: the folder.
        description: what `index.json` holds: `kind`, its `settings`, `metric` and whether rows are
            `normalized`; `rows`, `dimensions` and `bytes` of the index; the `run`, by its path from
            the folder, with its `config`, the selected `step` and the `checkpoint`'s SHA-256; the
            `split`; `seed`; `versions`.
        index: the faiss index.
        labels: (N,) int64 classes of the rows, `subclasses` likewise.
        ids: (N,) int64, the image of each row in its split.
        embeddings: (N, d) float32, where the run has a structure: what it ranks again.
    """

    INDEX = "index.faiss"
    DESCRIPTION = "index.json"
    ROWS = "rows.npz"
    FILES = (INDEX, DESCRIPTION, ROWS)

    def __init__(
        self, path: Path, description: Mapping[str, Any], index: Any, rows: Mapping[str, Tensor]
    ) -> None:
        self.path, self.description, self.index = path, description, index
        self.ids, self.labels, self.subclasses = (
            rows[name] for name in ("ids", "labels", "subclasses")
        )
        self.embeddings = rows.get("embeddings")

    @classmethod
    def build(
        cls,
        run: TrainedRun,
        path: str | os.PathLike[str],
        *,
        kind: str = "flat",
        split: str = "test",
        seed: int = 0,
        overwrite: bool = False,
        **settings: int,
    ) -> RunIndex:
        """Embed a split as validation selected the weights, index it and write the folder.

        The metric is that of the run: the Euclidean distance of rows that are normalised where the
        method of the run does it.

        Args:
            run: the run.
            path: the folder; its parents are made too.
            kind: of the index, with its settings: `dmlfast.evaluation.build_index`.
            split: "train", "validation" or "test"; images are not augmented.
            seed: of what is drawn.
            overwrite: replace an index that the folder already holds.
            settings: of the kind.

        Raises:
            TypeError: a setting that is no integer.
            ValueError: an unknown kind, split or setting, or one out of its range.
            RunFolderError: if the folder cannot be written or already holds an index.
            ImportError: faiss is not installed.
        """
        folder = Path(path)
        given = run.split(split)
        chosen = index_settings(kind, len(given), run.config.dimensions, **settings)
        faiss = require("faiss", "train")
        _make(folder, overwrite=overwrite)
        sample, structure = run.embed(given.images)
        generator = torch.Generator().manual_seed(seed)
        metric = "euclidean"
        index = build_index(sample, kind, metric=metric, generator=generator, **chosen)
        rows = {
            "ids": torch.arange(len(given)),
            "labels": given.labels,
            "subclasses": given.subclasses,
        }
        if structure is not None:
            rows["embeddings"] = sample
        packed = faiss.serialize_index(index)
        description = {
            "kind": kind,
            "settings": chosen,
            "metric": metric,
            "normalized": run.normalized,
            "rows": len(given),
            "dimensions": run.config.dimensions,
            "bytes": packed.nbytes,
            "data": run.config.data,
            "split": split,
            "seed": seed,
            "run": os.path.relpath(run.path, folder),
            "step": run.step,
            "checkpoint": run.digest,
            "config": run.config.as_dict(),
            "versions": {
                "dmlfast": version(),
                "torch": torch.__version__,
                "faiss": faiss.__version__,
            },
        }
        _write(folder, description, packed, rows)
        return cls(folder, description, index, rows)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunIndex:
        """Return to the folder of an index.

        Raises:
            RunFolderError: if the folder holds no index, or files that do not belong together.
            ImportError: faiss is not installed.
        """
        folder = Path(path)
        faiss = require("faiss", "train")
        content = {name: _read(folder, name) for name in (cls.DESCRIPTION, cls.ROWS, cls.INDEX)}
        try:
            description = json.loads(content[cls.DESCRIPTION])
            with np.load(io.BytesIO(content[cls.ROWS])) as held:
                rows = {name: torch.from_numpy(held[name]) for name in held.files}
            index = faiss.deserialize_index(np.frombuffer(content[cls.INDEX], dtype=np.uint8))
            opened = cls(folder, description, index, rows)
            fits = description["files"] == {
                name: _digest(content[name]) for name in (cls.ROWS, cls.INDEX)
            }
        except Exception as error:  # A damaged file can fail anywhere in what reads it.
            raise RunFolderError(f"{folder} holds a damaged index.") from error
        if not fits:
            raise RunFolderError(f"{folder} holds files of several indexes: build it again.")
        return opened

    def run(self, path: str | os.PathLike[str] | None = None) -> TrainedRun:
        """The run that was indexed.

        Args:
            path: where its folder is now; by default where it was, from the folder of the index.

        Raises:
            RunFolderError: if it is not there, or is another or has gone on.
        """
        where = Path(os.path.normpath(self.path / self.description["run"]))
        if path is None and not (where / RunFolder.CONFIG).exists():
            raise RunFolderError(
                f"{where}, where the run of {self.path} was, holds no run: there is no "
                f"{RunFolder.CONFIG}. If its folder has moved, name it with --run."
            )
        run = TrainedRun.open(where if path is None else path)
        if run.digest != self.description["checkpoint"]:
            raise RunFolderError(
                f"The run in {run.path} is not what {self.path} indexes, or has gone on since: "
                "build the index again."
            )
        return run

    def queries(self, run: TrainedRun, split: str, first: int | None = None) -> Queries:
        """The images of a split, or its first; where it is the one indexed, they know their rows.

        Raises:
            ValueError: if there is no split of that name.
        """
        given = run.split(split)
        count = len(given) if first is None else min(first, len(given))
        own = torch.full((count,), -1)
        if split == self.description["split"]:
            row_of = torch.full((len(given),), -1)
            row_of[self.ids] = torch.arange(len(self.ids))
            own = row_of[:count]
        kept = Split(given.images[:count], given.labels[:count], given.subclasses[:count])
        names = [f"{split} {number}" for number in range(count)]
        return Queries(names, kept.images, run.embed(kept.images), kept, own)

    @staticmethod
    def file_queries(run: TrainedRun, files: Sequence[str | os.PathLike[str]]) -> Queries:
        """Images of files: `dmlfast.data.read_images`.

        Raises:
            ValueError: if a file holds no image that can be read.
            ImportError: Pillow is not installed.
        """
        images = read_images(files, run.data.test.images.shape[-1])
        names = [os.fspath(file) for file in files]
        return Queries(names, images, run.embed(images), None, torch.full((len(files),), -1))

    def search(self, queries: Queries, k: int = 10, *, shortlist: int | None = None) -> Selection:
        """The nearest rows to each query, which is left out itself.

        Args:
            queries: what is searched for.
            k: how many.
            shortlist: how many that the index finds are ranked again by the structure of the query;
                None for none.

        Returns:
            As `dmlfast.evaluation.search_index`, or `adaptive_search` of the index's shortlist.

        Raises:
            TypeError: a number that is no integer.
            ValueError: a number out of its range, a shortlist shorter than `k`, or one where the
                run has no structure.
        """
        sample, structure = queries.embedded
        if shortlist is None:
            return search_index(self.index, sample, k, self_index=queries.self_index)
        if structure is None or self.embeddings is None:
            raise ValueError(
                f"shortlist: expected None for a run without a structure, got {shortlist}"
            )
        return adaptive_search(
            sample,
            structure,
            self.embeddings,
            k,
            shortlist=shortlist,
            index=self.index,
            self_index=queries.self_index,
        )


def recalls(found: Selection, queries: Queries, index: RunIndex) -> dict[str, dict[str, float]]:
    """Recall@K by class and by sub-class, of queries that have another row of theirs.

    Args:
        found: what `RunIndex.search` returns, (N, k).
        queries: what was searched for.
        index: what was searched in.

    Returns:
        By "class" and "subclass" Recall@K by name, for K of 1, 2, 4, 8 up to k, and k. Empty for
        queries without labels.
    """
    if queries.split is None:
        return {}
    k = found.index.shape[1]
    ranks = sorted({*(rank for rank in RECALL_AT if rank < k), k})
    own = (queries.self_index >= 0).long()
    metrics = {}
    for name, labels, others in zip(
        LABELS,
        (queries.split.labels, queries.split.subclasses),
        (index.labels, index.subclasses),
        strict=True,
    ):
        kept = _count_of(labels, others) > own
        found_metrics = evaluate_neighbors(found.index[kept], labels[kept], others, recall_at=ranks)
        metrics[name] = {f"recall@{rank}": found_metrics.recall[rank] for rank in ranks}
    return metrics


def write_neighbors(
    path: str | os.PathLike[str], found: Selection, queries: Queries, index: RunIndex
) -> None:
    """Write what was found, one neighbour a row, as CSV or JSON.

    Columns: `query`, `rank` from 1, `neighbor` (the number of the image in the split that is
    indexed, as `data.<split>.images` has it), `distance`, and the labels `query_class`,
    `neighbor_class`, `query_subclass`, `neighbor_subclass`, those of a query without labels empty.

    Raises:
        ValueError: if the name ends neither in .csv nor in .json.
        RunFolderError: if the file cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"path: expected a name that ends in .csv or .json, got {str(file)!r}")
    columns = (
        *("query", "rank", "neighbor", "distance"),
        *("query_class", "neighbor_class", "query_subclass", "neighbor_subclass"),
    )
    rows = []
    split = queries.split
    for number, (distances, neighbors) in enumerate(
        zip(found.distance.tolist(), found.index.tolist(), strict=True)
    ):
        label = None if split is None else int(split.labels[number])
        subclass = None if split is None else int(split.subclasses[number])
        for place, (distance, row) in enumerate(zip(distances, neighbors, strict=True)):
            if row >= 0:
                own = (queries.names[number], place + 1, int(index.ids[row]), distance)
                classes = (label, int(index.labels[row]), subclass, int(index.subclasses[row]))
                rows.append(dict(zip(columns, own + classes, strict=True)))
    if file.suffix.lower() == ".json":
        write_text(file, json.dumps(rows, indent=1) + "\n")
    else:
        write_text(file, as_csv(rows) if rows else ",".join(columns) + "\n")


def _count_of(labels: Tensor, others: Tensor) -> Tensor:
    """(N,) how often each label is among others."""
    classes, counts = others.unique(return_counts=True)
    place = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[place] == labels, counts[place], 0)


def _make(folder: Path, *, overwrite: bool) -> None:
    """Make the folder, without an index in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [name for name in RunIndex.FILES if (folder / name).exists()]
        if held and not overwrite:
            raise RunFolderError(
                f"{folder} already holds an index ({held[0]}): overwrite it, or choose another "
                "folder."
            )
    except OSError as error:
        raise RunFolderError(f"The folder {folder} cannot be used: {reason(error)}.") from error


def _write(
    folder: Path, description: dict[str, Any], packed: Any, rows: Mapping[str, Tensor]
) -> None:
    """Write the files; the description, the last of them, has their digests."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in rows.items()}
    np.savez(buffer, **arrays)
    content = {RunIndex.ROWS: buffer.getvalue(), RunIndex.INDEX: packed.tobytes()}
    description["files"] = {name: _digest(held) for name, held in content.items()}
    for name, held in content.items():
        with replacing(folder / name) as partial:
            partial.write_bytes(held)
    write_text(folder / RunIndex.DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder} holds no index: there is no {name}.") from error
    except OSError as error:
        raise RunFolderError(f"{folder / name} cannot be read: {reason(error)}.") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
