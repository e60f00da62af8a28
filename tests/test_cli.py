"""Tests of dmlfast.cli."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import without_drawing

import dmlfast
from dmlfast import _backend
from dmlfast._library import info_text
from dmlfast.cli import main
from dmlfast.training import Progress, methods

pytest.importorskip("click")
pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

# Three steps, evaluated after two and three.
SMALL = [
    *("train", "--steps", "3", "--evaluate-every", "2", "--batch-size", "32"),
    *("--samples-per-class", "16", "--dimensions", "4"),
]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """What the command says on stderr when it fails: one line without a traceback."""
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert error.rstrip().endswith(".")
    return error


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _quick_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing to the fixture `finished`."""
    without_drawing(monkeypatch)


@pytest.fixture
def interrupt_after_first_step(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    from dmlfast.cli.report import TrainingReport

    def update(self: TrainingReport, progress: Progress) -> None:
        if progress.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingReport, "update", update)
    return monkeypatch


def test_info_prints_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out.strip() == info_text().strip()


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_info_works_without_the_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["info"]) == 0
    assert capsys.readouterr().out.strip() == info_text().strip()


def test_train_without_the_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    assert main(["train"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'dmlfast[train]'" in error
    assert error.count("\n") == 1


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    # Not in the checkout, whose source folder would hide the installed package.
    done = subprocess.run(
        [sys.executable, "-m", "dmlfast", "info"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == info_text().strip()


@pytest.mark.parametrize("command", ["info", "train", "bench"])
@pytest.mark.parametrize("variable", ["DMLFAST_BACKEND", "DMLFAST_CPU_ISA"])
def test_a_wrong_environment_variable_is_one_sentence(
    command: str,
    variable: str,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    code = f"import sys; from dmlfast.cli import main; sys.exit(main([{command!r}]))"
    done = run_python(code, tmp_path, **{variable: "mmx"})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: {variable}: expected one of ")
    assert done.stderr.endswith("got 'mmx'.\n")
    assert done.stderr.count("\n") == 1


def test_a_failure_to_name_the_backend_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> str:
        raise ValueError("DMLFAST_BACKEND: expected a backend, got 'mmx'")

    monkeypatch.setattr(_backend, "backend_name", fail)
    assert "DMLFAST_BACKEND" in error_of(capsys, "info")


def test_commands_that_do_not_import_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dmlfast.cli.commands", None)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("info", "train", "index", "bench"):
        assert command in out


def test_train_prints_the_metrics_and_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*SMALL, "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    line = next(line for line in out.splitlines() if "map@r" in line)
    assert line.split()[1:] == [
        f"{group[labels]['map@r']:.4f}"
        for group in (metrics, metrics["best_test"])
        for labels in ("class", "subclass")
    ]
    assert out.splitlines()[-1] == f"Run folder: {folder}"


def test_train_writes_no_control_codes_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out
    assert "\r" not in captured.out
    assert not {"\x1b", "\r"} & set(captured.err)


def test_train_prints_a_line_at_each_evaluation_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "run")]) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open(encoding="utf-8")))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["step 2 of 3", "step 3 of 3"]
    for line, row in zip(lines, rows, strict=True):
        by_class, by_subclass = (
            float(row[f"validation/{labels}/map@r"]) for labels in ("class", "subclass")
        )
        assert line.endswith(f"map@r {by_class:.3f} sub-class {by_subclass:.3f}")


def test_options_reach_the_configuration(tmp_path: Path) -> None:
    given = {
        "data": "digits-unseen",
        "method": "triplet",
        "positives": "farthest",
        "negatives": "hardest",
        "margin": 0.3,
        "dimensions": 3,
        "steps": 1,
        "batch_size": 8,
        "samples_per_class": 4,
        "learning_rate": 0.01,
        "evaluate_every": 5,
        "labelled_per_class": 7,
        "seed": 9,
        "device": "cpu",
        "backend": "reference",
    }
    options = [
        text
        for name, value in given.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    assert main(["train", *options, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "config.json").read_text()) == given


@pytest.mark.parametrize(
    ("method", "given", "group", "metric"),
    [
        (
            "gar",
            {"weight": 0.5, "pairs": "adjacent", "intensities": 3, "detach": True},
            "views",
            "order_accuracy",
        ),
        (
            "ssr",
            {"weight": 0.5, "margin": 0.1, "views": 3, "warmup_steps": 1},
            "views",
            "order_accuracy",
        ),
        (
            "namr",
            {"weight": 0.5, "clusters": 3, "include_self": False, "fixed_structure": True},
            "structure",
            "map@r",
        ),
    ],
)
def test_a_method_has_options_of_its_own_and_its_metrics_are_printed(
    method: str,
    given: dict[str, object],
    group: str,
    metric: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = []
    for name, value in given.items():
        option = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        options += [option, *([] if isinstance(value, bool) else [str(value)])]
    assert main([*SMALL, "--method", method, *options, "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == method
    assert given.items() <= config.items()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    out = " ".join(capsys.readouterr().out.split())
    assert f"{group}, selected: " in out
    assert f"{metric} {metrics[group][metric]:.4f}" in out.split(f"{group}, selected: ")[1]


def test_an_option_of_another_method_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, "train", "--method", "gar", "--positives", "all", "--margin", "0.2")
    assert (
        "unknown setting for the method gar: margin, a setting of triplet, ssr, nasa, namr; "
        in error
    )
    assert "positives, a setting of triplet." in error


def test_resume_refuses_an_option_of_another_method(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, "train", "--resume", "--out", str(finished), "--weight", "0.3")
    assert "has no setting weight, so it cannot be resumed with --weight 0.3" in error
    error = error_of(capsys, "train", "--resume", "--out", str(finished), "--no-detach")
    assert "has no setting detach, so it cannot be resumed with --no-detach" in error


def test_the_help_lists_options_under_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    sections = {}
    for paragraph in capsys.readouterr().out.split("\n\n"):
        title, _, text = paragraph.partition(":\n")
        sections[title] = " ".join(text.split())
    titles = [*("Run", "Data", "Optimisation"), *(f"Method {name}" for name in methods.names())]
    assert list(sections)[-len(titles) - 1 :] == [*titles, "Other"]
    assert "--resume Go on with the run in --out." in sections["Run"]
    assert "--batch-size INTEGER Images a step. [default: 128, 256 for glyphs]" in sections["Data"]
    assert "[default: 4, 64 for digits and digits-unseen]" in sections["Data"]
    assert "--learning-rate FLOAT Learning rate of Adam." in sections["Optimisation"]
    for name in methods.names():
        for field in dataclasses.fields(methods.settings_of(name)):
            text = sections[f"Method {name}"]
            assert f"--{field.name.replace('_', '-')} " in text
            assert f"{field.metadata['help']} [default: {field.default}]" in text
    for text in sections.values():
        assert "--positives" not in text or text == sections["Method triplet"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--method", "gar"], "digits-gar-0"),
        (["--method", "gar", "--weight", "0"], "digits-proxy-anchor-0"),
        (["--method", "ssr"], "digits-ssr-0"),
        (["--method", "namr"], "digits-namr-0"),
        (["--method", "namr", "--weight", "0"], "digits-triplet-0"),
    ],
)
def test_the_default_folder_names_the_method(
    options: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--steps", "1", *options]) == 0
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == [name]


def test_the_default_folder_is_the_first_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([*SMALL, "--steps", "1", "--seed", "4"]) == 0
    names = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert names == ["digits-nearest-4", "digits-nearest-4-2"]


def test_an_interrupted_run_is_saved_and_resumes_to_the_same_numbers(
    finished: Path,
    tmp_path: Path,
    interrupt_after_first_step: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(tmp_path / "run")
    assert main([*SMALL, "--out", folder]) == 130
    assert f"dmlfast train --resume --out {folder}" in capsys.readouterr().err
    interrupt_after_first_step.undo()
    without_drawing(interrupt_after_first_step)
    assert main(["train", "--resume", "--out", folder]) == 0
    assert "The run was finished" not in capsys.readouterr().err
    for name in ("metrics.json", "history.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


def test_a_run_resumes_with_the_backend_that_it_was_started_with(
    tmp_path: Path,
    interrupt_after_first_step: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dmlfast.use_backend("reference"):
        assert main([*SMALL, "--out", str(tmp_path)]) == 130
    interrupt_after_first_step.undo()
    asked: list[str] = []
    use_backend = dmlfast.use_backend
    monkeypatch.setattr(
        dmlfast, "use_backend", lambda name: (asked.append(name), use_backend(name))[1]
    )
    without_drawing(monkeypatch)
    with use_backend("kernel"):
        assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert asked == ["reference"]


def test_to_resume_a_finished_run_says_that_it_is(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "--out", str(finished)]) == 0
    assert capsys.readouterr().err == "The run was finished: it had done all 3 steps.\n"


def test_resume_accepts_an_option_that_agrees(finished: Path) -> None:
    assert main(["train", "--resume", "--out", str(finished), "--steps", "3"]) == 0


def test_resume_refuses_an_option_that_differs(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, "train", "--resume", "--out", str(finished), "--margin", "0.3")
    assert "has margin 0.2, so it cannot be resumed with --margin 0.3" in error


def test_resume_refuses_a_folder_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, "train", "--resume", "--out", str(tmp_path))
    assert "holds no run: there is no config" in error


def test_resume_refuses_an_unreadable_checkpoint(
    tmp_path: Path,
    interrupt_after_first_step: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SMALL, "--out", str(tmp_path)]) == 130
    capsys.readouterr()
    (tmp_path / "checkpoint.pt").write_bytes(b"garbage")
    error = error_of(capsys, "train", "--resume", "--out", str(tmp_path))
    assert "checkpoint.pt is damaged" in error


def test_train_refuses_a_folder_that_holds_a_run(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "already holds a run" in error_of(capsys, *SMALL, "--out", str(finished))


def test_overwrite_replaces_a_run(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert main([*SMALL, "--seed", seed, "--out", str(tmp_path), "--overwrite"]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 2


def test_train_refuses_a_folder_that_cannot_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    error = error_of(capsys, *SMALL, "--out", str(tmp_path / "file" / "run"))
    assert "cannot be used: Not a directory" in error


def test_train_refuses_an_unknown_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert "got 'letters'" in error_of(capsys, "train", "--data", "letters")


def test_train_refuses_a_setting_outside_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert "steps: expected at least 1, got 0" in error_of(capsys, "train", "--steps", "0")


def test_train_refuses_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cuda:99 is not available" in error_of(capsys, *SMALL, "--device", "cuda:99")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--resume"],
        ["train", "--resume", "--overwrite", "--out", "run"],
        ["train", "--positives", "near"],
        ["train", "--steps", "many"],
        ["train", "--momentum", "1"],
        ["test"],
    ],
)
def test_wrong_use_has_exit_code_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "Error: " in capsys.readouterr().err
