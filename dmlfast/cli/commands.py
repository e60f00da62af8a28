"""The commands and their options; imported only where click and rich are installed."""

from __future__ import annotations

import dataclasses
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click

from dmlfast import data as data_sets
from dmlfast._library import info_text, version
from dmlfast.cli.bench import bench
from dmlfast.cli.index import index
from dmlfast.cli.options import GroupedCommand, GroupedOption
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
from dmlfast.training.config import Backend, default_text

# What a shell reports for a command that SIGINT ended.
_INTERRUPTED = 128 + signal.SIGINT

# Titles in the help of `dmlfast train`.
_RUN, _DATA, _OPTIMISATION, _METHOD = "Run", "Data", "Optimisation", "Method {}"
_TITLES = (_RUN, _DATA, _OPTIMISATION, *map(_METHOD.format, methods.names()))

_Command = TypeVar("_Command", bound=Callable[..., int])


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
commands.add_command(index)


def option(title: str, name: str, text: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """An option that the help lists under a title, with its default where the settings have one."""
    default = default_text(name.removeprefix("--").replace("-", "_"))
    shown = text if default is None else f"{text} [default: {default}]"
    return click.option(name, cls=GroupedOption, groups={title: shown}, **attributes)


def method_options(command: _Command) -> _Command:
    """Every setting of every method as an option, listed under each method that has it."""
    groups: dict[str, dict[str, str]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for method in methods.names():
        settings = methods.settings_of(method)
        types = get_type_hints(settings)
        for field in dataclasses.fields(settings):
            text = f"{field.metadata['help']} [default: {field.default}]"
            groups.setdefault(field.name, {})[_METHOD.format(method)] = text
            kinds[field.name] = _kind_of(types[field.name])
    # The last option that is added is listed first.
    for name in reversed(groups):
        option = name.replace("_", "-")
        option = f"--{option}/--no-{option}" if "is_flag" in kinds[name] else f"--{option}"
        added = click.option(option, cls=GroupedOption, groups=groups[name], **kinds[name])
        command = added(command)
    return command


def _kind_of(kind: Any) -> dict[str, Any]:
    """What click takes for a setting of a type."""
    if get_args(kind):
        return {"type": click.Choice(get_args(kind))}
    return {"is_flag": True, "default": None} if kind is bool else {"type": kind}


@commands.command("train", cls=GroupedCommand, titles=_TITLES)
@option(_DATA, "--data", f"Data set: {', '.join(data_sets.names())}. [default: digits]")
@option(
    _DATA,
    "--labelled-per-class",
    "Training images of each class, 0 for all.",
    type=int,
)
@option(_DATA, "--batch-size", "Images a step.", type=int)
@option(_DATA, "--samples-per-class", "Images of one class in a batch.", type=int)
@option(
    _OPTIMISATION,
    "--method",
    "Training method, with options of its own below. [default: triplet]",
    type=click.Choice(methods.names()),
)
@option(_OPTIMISATION, "--dimensions", "Length of the embedding.", type=int)
@option(_OPTIMISATION, "--steps", "Optimiser steps.", type=int)
@option(_OPTIMISATION, "--learning-rate", "Learning rate of Adam.", type=float)
@option(
    _RUN,
    "--out",
    "Run folder. [default: the first free one in runs, named by data, method and seed]",
    type=click.Path(path_type=Path),
)
@option(_RUN, "--resume", "Go on with the run in --out.", is_flag=True)
@option(_RUN, "--overwrite", "Replace the run in --out.", is_flag=True)
@option(_RUN, "--evaluate-every", "Steps from one evaluation to the next.", type=int)
@option(_RUN, "--seed", "Start of every random stream.", type=int)
@option(_RUN, "--device", "cpu, cuda or cuda:<number>.")
@option(
    _RUN,
    "--backend",
    "Which implementation of the operators to use.",
    type=click.Choice(get_args(Backend)),
)
@method_options
def train_command(out: Path | None, resume: bool, overwrite: bool, **given: Any) -> int:
    """Train an embedding and write the run to a folder.

    Interrupt once (Ctrl-C) to stop after the current step with everything saved; --resume goes on
    from there.
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
    if resume and result.started_at == config.steps:
        click.echo(f"The run was finished: it had done all {config.steps} steps.", err=True)
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
        given_as = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        if not isinstance(value, bool):
            given_as += f" {value}"
        raise click.ClickException(
            f"The run in {folder} has {own}, so it cannot be resumed with {given_as}."
        )
    return config


def _first_free(parent: Path, config: TrainConfig) -> Path:
    name = f"{config.data}-{config.method.title()}-{config.seed}"
    folder, number = parent / name, 2
    while folder.exists():
        folder, number = parent / f"{name}-{number}", number + 1
    return folder
