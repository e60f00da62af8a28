"""The commands `dmlfast index build` and `dmlfast index search`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from dmlfast._optional import require
from dmlfast.cli.report import print_recalls
from dmlfast.evaluation import INDEX_SETTINGS
from dmlfast.functional import Selection
from dmlfast.training import TrainingError
from dmlfast.training.files import replacing
from dmlfast.training.run_index import Queries, RunIndex, recalls, write_neighbors
from dmlfast.training.trained import SPLIT_NAMES, TrainedRun

__all__ = ["index"]

_Command = TypeVar("_Command", bound=Callable[..., None])

_POSITIVE = click.IntRange(min=1)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_SHORTLIST = 32
# Of a picture: more are too small to see.
_MOST_ROWS, _MOST_COLUMNS = 8, 12


def _to_write(*endings: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A check that a file can have one of these endings and lies in a folder that exists."""

    def check(_: click.Context, __: click.Parameter, file: Path | None) -> Path | None:
        if file is not None and file.suffix.lower() not in endings:
            named = " or ".join(endings)
            raise click.BadParameter(f"expected a name that ends in {named}, got '{file}'")
        if file is not None and not file.parent.is_dir():
            raise click.BadParameter(f"expected an existing folder to lie in, got '{file}'")
        return file

    return check


@click.group()
def index() -> None:
    """Index the embeddings of a run, and search them."""


def _settings(command: _Command) -> _Command:
    """Every setting of every kind of index as an option."""
    for kind, settings in reversed(list(INDEX_SETTINGS.items())):
        for name, text in reversed(list(settings.items())):
            shown = f"{kind}: {text}."
            command = click.option(f"--{name}", type=int, help=shown)(command)
    return command


@index.command()
@click.argument("run_folder", type=_FOLDER)
@click.option("--kind", type=click.Choice(list(INDEX_SETTINGS)), default="flat", show_default=True)
@click.option("--split", type=click.Choice(SPLIT_NAMES), default="test", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the index. [default: index-<split>-<kind> in the run folder]",
)
@click.option("--overwrite", is_flag=True, help="Replace the index in --out.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the starts of k-means.",
)
@_settings
def build(
    run_folder: Path,
    kind: str,
    split: str,
    out: Path | None,
    overwrite: bool,
    seed: int,
    **settings: int | None,
) -> None:
    """Embed a split by the weights that validation selected, and index it with faiss.

    The cells of ivf are those of dmlfast's k-means. Writes index.faiss, index.json and rows.npz.
    """
    folder = out or run_folder / f"index-{split}-{kind}"
    given = {name: value for name, value in settings.items() if value is not None}
    with _errors():
        run = TrainedRun.open(run_folder)
        built = RunIndex.build(
            run, folder, kind=kind, split=split, seed=seed, overwrite=overwrite, **given
        )
    described = built.description
    size = described["bytes"] / described["rows"]
    click.echo(
        f"{described['rows']} rows of {described['dimensions']} dimensions, {size:.0f} bytes each: "
        f"{_kind_of(built)}"
    )
    click.echo(f"Index: {folder}")


@index.command()
@click.argument("index_folder", type=_FOLDER)
@click.option(
    "--queries",
    multiple=True,
    help="A split, or an image file; repeat the option for several files. They are made grey, "
    "padded to a square and scaled to the size of the data's images: crop them to what is shown. "
    "[default: the split that is indexed]",
)
@click.option("--first", type=_POSITIVE, help="So many queries of the split. [default: all]")
@click.option("--k", type=_POSITIVE, default=10, show_default=True, help="Neighbours of a query.")
@click.option(
    "--structure/--no-structure",
    default=None,
    help="Rank a shortlist again by the structure of the query. "
    "[default: where the run has learnt one]",
)
@click.option(
    "--shortlist",
    type=_POSITIVE,
    help=f"Length of the shortlist. [default: {_SHORTLIST}, or k if that is more]",
)
@click.option(
    "--out",
    type=_FILE,
    callback=_to_write(".csv", ".json"),
    help="File of the neighbours, .csv or .json.",
)
@click.option(
    "--picture",
    type=_FILE,
    callback=_to_write(".png"),
    help=f"Picture of up to {_MOST_ROWS} queries, .png.",
)
@click.option(
    "--run", "run_folder", type=_FOLDER, help="Where the run folder is now. [default: where it was]"
)
def search(
    index_folder: Path,
    queries: tuple[str, ...],
    first: int | None,
    k: int,
    structure: bool | None,
    shortlist: int | None,
    out: Path | None,
    picture: Path | None,
    run_folder: Path | None,
) -> None:
    """Search an index for the nearest to the images of a split, or to image files.

    A query that is indexed is left out of its own list. Printed are Recall@K for a split, and the
    classes of the neighbours for image files.
    """
    if structure is False and shortlist is not None:
        raise click.UsageError("--shortlist and --no-structure exclude each other.")
    with _errors():
        if picture is not None:
            require("matplotlib.figure", "train")
        opened = RunIndex.open(index_folder)
        run = opened.run(run_folder)
        rows = opened.description["rows"]
        if k > rows:
            click.echo(f"k: {rows} rows are indexed, fewer than {k}: as many are searched for.")
            k = rows
        if (structure or shortlist is not None) and not run.has_structure:
            named = "structure" if structure else "shortlist"
            raise ValueError(f"{named}: expected a run with a structure, got that in {run.path}")
        given = _queries(opened, run, queries, first)
        searches: dict[str, int | None] = {"Euclidean": None}
        if run.has_structure and structure is not False:
            length = max(_SHORTLIST, k) if shortlist is None else shortlist
            searches[f"structure,\n{length} re-ranked"] = length
        found, seconds = {}, []
        for name, length_of in searches.items():
            started = time.perf_counter()
            found[name] = opened.search(given, k, shortlist=length_of)
            seconds.append(time.perf_counter() - started)
        # Before the files, so that it is not lost where one cannot be written.
        _print(opened, given, found, seconds)
        best = list(found.values())[-1]
        if given.split is None:
            _print_classes(opened, run, given, best)
        if out is not None:
            write_neighbors(out, best, given, opened)
            click.echo(f"Written: {out}")
        if picture is not None:
            with replacing(picture) as partial:
                _draw(partial, opened, run, given, best)
            click.echo(f"Written: {picture}")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What a command says in one line instead of a traceback."""
    try:
        yield
    except (TrainingError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except (ValueError, OSError) as error:
        raise click.ClickException(f"{error}.") from error


def _queries(
    opened: RunIndex, run: TrainedRun, given: tuple[str, ...], first: int | None
) -> Queries:
    splits = [name for name in given if name in SPLIT_NAMES]
    if given and not splits:
        missing = [name for name in given if not Path(name).exists()]
        if missing:
            raise ValueError(
                f"queries: expected {', '.join(SPLIT_NAMES)} or image files, got {missing[0]!r}"
            )
        if first is not None:
            raise ValueError(f"first: expected none with image files, got {first}")
        return opened.file_queries(run, given)
    if len(given) > 1:
        raise ValueError(f"queries: expected one split or image files, got {', '.join(given)}")
    return opened.queries(run, splits[0] if splits else opened.description["split"], first)


def _draw(
    path: Path, opened: RunIndex, run: TrainedRun, queries: Queries, found: Selection
) -> None:
    """Queries at even distances, and the first of what was found."""
    # Only here: matplotlib takes a second to import.
    from dmlfast.plots import plot_neighbors

    total = len(queries.images)
    rows = min(total, _MOST_ROWS)
    chosen = torch.arange(rows) * total // rows
    split = opened.description["split"]
    plot_neighbors(
        queries.images[chosen],
        run.split(split).images[opened.ids],
        found.index[chosen, :_MOST_COLUMNS],
        path,
        query_labels=None if queries.split is None else queries.split.labels[chosen],
        reference_labels=opened.labels,
        class_names=run.data.class_names,
        title=f"{run.config.data}, nearest in the {split} split, step {run.step}",
    )


def _print(
    opened: RunIndex, queries: Queries, found: dict[str, Selection], seconds: list[float]
) -> None:
    count, described = len(queries.images), opened.description
    named = f"{count} {'queries' if count > 1 else 'query'}"
    times = " and ".join(f"{1e3 * each / count:.3f}" for each in seconds)
    click.echo(
        f"{named} in {described['rows']} rows of {described['split']}: {_kind_of(opened)}; "
        f"{times} ms a query"
    )
    if queries.split is not None:
        print_recalls({name: recalls(found[name], queries, opened) for name in found})


def _print_classes(opened: RunIndex, run: TrainedRun, queries: Queries, found: Selection) -> None:
    """For each query the first of what was found: the class of each, and its distance."""
    for name, distances, rows in zip(
        queries.names, *(part.tolist() for part in found), strict=True
    ):
        neighbors = [
            f"{run.data.class_names[opened.labels[row]]} {distance:.3g}"
            for distance, row in zip(distances, rows, strict=True)
            if row >= 0
        ]
        click.echo(f"{name}: {', '.join(neighbors[:_MOST_COLUMNS])}")


def _kind_of(opened: RunIndex) -> str:
    settings = ", ".join(
        f"{name} {value}" for name, value in opened.description["settings"].items()
    )
    return f"{opened.description['kind']}{', ' if settings else ''}{settings}"
