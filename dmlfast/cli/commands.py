"""The commands and their options; imported only where click and rich are installed."""

from __future__ import annotations

import dataclasses
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from dmlfast import data as data_sets
from dmlfast._library import info_text, version
from dmlfast.cli.bench import bench
from dmlfast.cli.report import TrainingReport
from dmlfast.training import (
    RunFolder,
    TrainConfig,
    TrainingError,
    TrainResult,
    interruption,
    methods,
    train,
)
from dmlfast.training.config import Backend

# What a shell reports for a command that SIGINT ended.
_INTERRUPTED = 128 + signal.SIGINT


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit code."""
    try:
        code = commands.main(
            list(arguments),
            prog_name="dmlfast",
            standalone_mode=False,
            obj=shlex.join(["dmlfast", *arguments]),
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="dmlfast")
def commands() -> None:
    """Deep metric learning at large batch."""


@commands.command()
def info() -> None:
    """Say what this installation was built with and what it uses."""
    click.echo(info_text())


commands.add_command(bench)


def method_options(command: Callable[..., int]) -> Callable[..., int]:
    """Every setting of every method as an option, which says whose it is."""
    told: dict[str, dict[str, list[str]]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for method in methods.names():
        settings = methods.settings_of(method)
        types = get_type_hints(settings)
        for field in dataclasses.fields(settings):
            text = f"{field.metadata['help']} (default: {field.default})"
            told.setdefault(field.name, {}).setdefault(text, []).append(method)
            kinds[field.name] = _kind_of(types[field.name])
    # The last option that is added is listed first.
    for name, texts in reversed(told.items()):
        text = " ".join(f"For {', '.join(whose)}: {text}" for text, whose in texts.items())
        command = click.option(f"--{name.replace('_', '-')}", help=text, **kinds[name])(command)
    return command


def _kind_of(kind: Any) -> dict[str, Any]:
    """What click takes for a setting of a type."""
    if get_args(kind):
        return {"type": click.Choice(get_args(kind))}
    return {"is_flag": True, "default": None} if kind is bool else {"type": kind}


@commands.command("train")
@click.option("--data", help=f"Data set: {', '.join(data_sets.names())}. [default: digits]")
@click.option(
    "--method", type=click.Choice(methods.names()), help="Training method. [default: triplet]"
)
@click.option("--dimensions", type=int, help="Length of the embedding.")
@click.option("--steps", type=int, help="Optimiser steps.")
@click.option("--batch-size", type=int, help="Images a step.")
@click.option("--samples-per-class", type=int, help="Images of one class in a batch.")
@click.option("--learning-rate", type=float, help="Learning rate of Adam.")
@click.option("--evaluate-every", type=int, help="Steps from one evaluation to the next.")
@click.option(
    "--labelled-per-class", type=int, help="Training images of each class, 0 for all. [default: 0]"
)
@click.option("--seed", type=int, help="Start of every random stream. [default: 0]")
@click.option("--device", help="cpu, cuda or cuda:<number>. [default: cpu]")
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    help="Which implementation of the operators to use.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder. [default: the first free one in runs, named by data, method and seed]",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@method_options
def train_command(out: Path | None, resume: bool, overwrite: bool, **given: Any) -> int:
    """Train an embedding and write the run to a folder.

    A setting that is not given is the default of the data set. Interrupt once (Ctrl-C) to stop
    after the current step with everything saved; --resume goes on from there.
    """
    if resume and out is None:
        raise click.UsageError("--resume needs the run folder: --out.")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other.")
    try:
        config = _resumed(out, given) if resume and out else _resolved(given)
        folder = out or _first_free(Path("runs"), config)
        result = _train(config, folder, resume=resume, overwrite=overwrite)
    except (TrainingError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    return 0 if result.finished else _INTERRUPTED


def _train(config: TrainConfig, folder: Path, *, resume: bool, overwrite: bool) -> TrainResult:
    with interruption() as should_stop, TrainingReport(config) as report:
        result = train(
            config,
            folder,
            resume=resume,
            overwrite=overwrite,
            progress=report.update,
            should_stop=should_stop,
        )
    report.print_metrics(result.metrics)
    click.echo(f"Run folder: {result.folder}")
    if not result.finished:
        click.echo(
            f"Interrupted after step {result.step} of {config.steps}; go on with: "
            f"dmlfast train --resume --out {result.folder}",
            err=True,
        )
    return result


def _resolved(given: dict[str, Any]) -> TrainConfig:
    settings = dict(given)
    data = settings.pop("data") or "digits"
    try:
        return TrainConfig.resolve(data, **settings)
    except ValueError as error:
        raise click.ClickException(f"{error}.") from error


def _resumed(folder: Path, given: dict[str, Any]) -> TrainConfig:
    _, config = RunFolder.open(folder)
    held = config.as_dict()
    for name, value in given.items():
        if value is None or (name in held and value == held[name]):
            continue
        own = f"{name} {held[name]}" if name in held else f"no setting {name}"
        raise click.ClickException(
            f"The run in {folder} has {own}, so it cannot be resumed with "
            f"--{name.replace('_', '-')} {value}."
        )
    return config


def _first_free(parent: Path, config: TrainConfig) -> Path:
    name = f"{config.data}-{config.method.title()}-{config.seed}"
    folder, number = parent / name, 2
    while folder.exists():
        folder, number = parent / f"{name}-{number}", number + 1
    return folder
