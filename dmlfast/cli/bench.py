"""The command `dmlfast bench`."""

from __future__ import annotations

from pathlib import Path

import click

from dmlfast._optional import require
from dmlfast.benchmarking import WORKLOADS, Results, Settings, Workload, compare, update_table
from dmlfast.benchmarking.picture import draw_results
from dmlfast.benchmarking.table import around_table
from dmlfast.cli.report import BenchmarkReport

__all__ = ["bench"]

_RESULTS, _PICTURE = "results.json", "time_memory.png"
_POSITIVE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option(
    "--workload",
    "names",
    multiple=True,
    type=click.Choice(list(WORKLOADS)),
    help="What to measure; repeat for several. [default: everything]",
)
@click.option(
    "--rows",
    multiple=True,
    type=_POSITIVE,
    help="Batch size instead of those of the workload; repeat for several.",
)
@click.option(
    "--rounds",
    type=_POSITIVE,
    help=f"Steps of each contestant. [default: {Settings.rounds}; 3 with --quick]",
)
@click.option(
    "--patience",
    type=_SECONDS,
    help="Seconds after which a contestant plays no further rounds. "
    f"[default: {Settings.patience:g}; 5 with --quick]",
)
@click.option(
    "--deadline",
    type=_SECONDS,
    help="Seconds for a contestant's first two steps before it is too slow. "
    f"[default: {Settings.deadline:g}]",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    help="GiB of memory that a contestant may take. [default: 8, less if less is available]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the results. [default: the first free runs/bench]",
)
@click.option("--overwrite", is_flag=True, help="Replace the results in --out.")
@click.option(
    "--table",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Markdown file whose table, between its markers, to write anew.",
)
@click.option("--quick", is_flag=True, help="One small size of each workload: does it work?")
@click.pass_obj
def bench(
    command: str,
    names: tuple[str, ...],
    rows: tuple[int, ...],
    rounds: int | None,
    patience: float | None,
    deadline: float | None,
    budget: float | None,
    out: Path | None,
    overwrite: bool,
    table: Path | None,
    quick: bool,
) -> None:
    """Measure time and memory of the kernels beside what else computes the same.

    The contestants of a workload take turns in one process. One that needs more memory than the
    budget, or too much time, is reported as such. Peers that are not installed are left out. Writes
    results.json and, where there are several sizes, time_memory.png. Leave the machine alone
    meanwhile; without options this takes an hour or more.
    """
    workloads = [_sized(WORKLOADS[name], rows, quick) for name in dict.fromkeys(names or WORKLOADS)]
    folder = out or _first_free(Path("runs"))
    if (folder / _RESULTS).exists() and not overwrite:
        raise click.ClickException(f"{folder} holds results; replace them with --overwrite.")
    try:
        require("matplotlib.figure", "bench")
        if table is not None:
            around_table(table)
        folder.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            rounds or (3 if quick else Settings.rounds),
            Settings.default_budget() if budget is None else budget,
            patience or (5.0 if quick else Settings.patience),
            deadline or Settings.deadline,
        )
        results = _compare(workloads, settings, folder, command)
        if table is not None:
            update_table(table, results, folder)
    except (ValueError, OSError) as error:
        raise click.ClickException(f"{error}.") from error
    except ImportError as error:
        raise click.ClickException(str(error)) from error


def _sized(workload: Workload, rows: tuple[int, ...], quick: bool) -> Workload:
    sized = workload.shortened() if quick else workload
    return sized.with_rows(rows) if rows else sized


def _compare(workloads: list[Workload], settings: Settings, folder: Path, command: str) -> Results:
    picture = folder / _PICTURE
    try:
        with BenchmarkReport() as report:
            results = compare(
                workloads, settings, folder / _RESULTS, command=command, progress=report.update
            )
    except BaseException:
        # No picture of other results stays beside these. It is there until then: a checkout that
        # lacks one of its files would not be named by its commit.
        picture.unlink(missing_ok=True)
        raise
    report.print_results(results)
    draw_results(results, picture)
    click.echo(f"Results: {folder}")
    return results


def _first_free(parent: Path) -> Path:
    folder, number = parent / "bench", 2
    while folder.exists():
        folder, number = parent / f"bench-{number}", number + 1
    return folder
