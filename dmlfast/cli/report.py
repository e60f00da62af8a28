"""What the commands show: their progress and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Table

from dmlfast.benchmarking import BenchmarkProgress, Results, short_table
from dmlfast.training import Progress, TrainConfig
from dmlfast.training.summary import LABELS, groups_of

if TYPE_CHECKING:
    from typing_extensions import Self


class _Report:
    """A progress bar of these columns while its context is open.

    It goes to stderr, and only to a terminal; elsewhere there are lines instead.
    """

    def __init__(self, *columns: ProgressColumn) -> None:
        self._console = Console(stderr=True)
        self._bar = ProgressBar(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def _line(self, text: str) -> None:
        """A line where there is no bar."""
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


class TrainingReport(_Report):
    """The progress while its context is open, and a table of the metrics after it.

    The progress goes to stderr, a bar to a terminal and elsewhere a line for each evaluation; the
    table goes to stdout.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(
            TextColumn(config.data),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("", total=config.steps, numbers="")

    def update(self, progress: Progress) -> None:
        """Show the step, the loss and the last validation numbers."""
        numbers = f"loss {progress.loss:.4f}"
        if progress.evaluation:
            by_class = progress.evaluation["validation/class/map@r"]
            by_subclass = progress.evaluation["validation/subclass/map@r"]
            numbers += f"  map@r {by_class:.3f} sub-class {by_subclass:.3f}"
            if progress.evaluation["step"] == progress.step:
                self._line(f"step {progress.step} of {progress.steps}: {numbers}")
        self._bar.update(self._task, completed=progress.step, numbers=numbers)

    def print_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Print the test metrics at the step that validation selects, and at the best test step.

        What only a method evaluates follows the table, at the selected step.

        Args:
            metrics: what `dmlfast.training.summarize` returns.
        """
        best = metrics["best_test"]
        table = Table(box=box.SIMPLE_HEAD, title="Test split", title_justify="left")
        table.add_column("metric")
        for chosen, step in (("selected", metrics["selected_step"]), ("best test", best["step"])):
            for labels in ("class", "sub-class"):
                table.add_column(f"{labels}\n{chosen}, step {step}", justify="right")
        for name in metrics["class"]:
            cells = [group[labels][name] for group in (metrics, best) for labels in LABELS]
            table.add_row(name, *map(_shown, cells))
        console = Console()
        console.print(table)
        for group in groups_of(metrics):
            if group not in LABELS:
                numbers = (f"{name} {_shown(value)}" for name, value in metrics[group].items())
                console.print(f"{group}, selected: {', '.join(numbers)}", highlight=False)


def print_recalls(recalls: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print Recall@K of searches by their names, each by class and by sub-class, to stdout.

    Args:
        recalls: by the name of the search, what `dmlfast.training.run_index.recalls` returns.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric")
    columns = [values for found in recalls.values() for values in found.values()]
    for name in recalls:
        for labels in ("class", "sub-class"):
            table.add_column(f"{labels}\n{name}", justify="right")
    for metric in columns[0]:
        table.add_row(metric, *(_shown(values[metric]) for values in columns))
    Console().print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


class BenchmarkReport(_Report):
    """The progress while its context is open, and a table of the results after it.

    Where there is no terminal, the progress is a line for each workload as it begins.
    """

    def __init__(self) -> None:
        super().__init__(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}"),
        )
        self._task = self._bar.add_task("", total=None, doing="")
        self._workload = ""

    def update(self, progress: BenchmarkProgress) -> None:
        """Show what is measured next."""
        if progress.workload != self._workload:
            self._workload = progress.workload
            self._line(f"{progress.done} of {progress.total}: {progress.workload}")
        doing = f"{progress.workload} {progress.doing}"
        self._bar.update(self._task, completed=progress.done, total=progress.total, doing=doing)

    @staticmethod
    def print_results(results: Results) -> None:
        """Print every workload at its largest size, to stdout."""
        console = Console()
        for title, rows in short_table(results):
            table = Table(
                box=box.SIMPLE_HEAD,
                title=f"\n{title}",
                title_justify="left",
                pad_edge=False,
                show_edge=False,
            )
            table.add_column("contestant", min_width=23)
            table.add_column("median", justify="right", min_width=len("out of memory"))
            for name in ("peak memory", "to yardstick", "to kernel"):
                table.add_column(name, justify="right", min_width=len(name))
            for row in rows:
                table.add_row(*row)
            console.print(table)
