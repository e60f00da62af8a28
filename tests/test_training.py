"""Tests of dmlfast.training."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlfast import _library
from dmlfast import data as data_sets
from dmlfast.evaluation import embed, evaluate_retrieval
from dmlfast.losses import TripletMarginLoss
from dmlfast.models import ConvolutionalEmbedding
from dmlfast.training import (
    Progress,
    RunFolder,
    RunFolderError,
    TrainConfig,
    TrainingError,
    TrainResult,
    interruption,
    summarize,
    train,
)
from dmlfast.training.state import TrainingState
from dmlfast.training.summary import long_form

pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

FILES = [
    "checkpoint.pt",
    "config.json",
    "curves.png",
    "embedding.png",
    "history.csv",
    "metrics.csv",
    "metrics.json",
]
METRICS = ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r"]


def small(**settings: Any) -> TrainConfig:
    """A run of 7 steps, evaluated after 3, 6 and 7."""
    return TrainConfig.resolve(
        "digits",
        **{
            "steps": 7,
            "evaluate_every": 3,
            "batch_size": 32,
            "samples_per_class": 16,
            "dimensions": 4,
            **settings,
        },
    )


def stop_after(steps: int) -> dict[str, Callable[..., Any]]:
    """Arguments of train that interrupt it after some steps."""
    done = [0]

    def count(progress: Progress) -> None:
        done[0] = progress.step

    return {"progress": count, "should_stop": lambda: done[0] >= steps}


def checkpoint_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return loaded


def assert_same_run(one: Path, other: Path) -> None:
    """The same numbers, weights and state of the optimiser and the generators, bit for bit."""
    for name in ("config.json", "history.csv", "metrics.json", "metrics.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert_same_bits(checkpoint_of(one), checkpoint_of(other), "checkpoint")


def assert_same_bits(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for name in one:
            assert_same_bits(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(left, right, f"{where}/{index}")
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(small(), folder)
    return folder


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The folder of a run that was interrupted between two evaluations."""
    folder = tmp_path / "interrupted"
    train(small(), folder, **stop_after(4))
    return folder


@pytest.fixture(autouse=True)
def _quick_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing, most of the time of a tiny run, to the fixture `finished`."""
    import dmlfast.plots

    for name, position in (("plot_curves", 1), ("plot_embedding", 2)):
        monkeypatch.setattr(
            dmlfast.plots,
            name,
            lambda *arguments, position=position, **_: arguments[position].write_bytes(b"png"),
        )


class TestConfig:
    def test_survives_json(self) -> None:
        config = small(seed=2**63 - 1, margin=0.1, backend="reference")
        assert TrainConfig.from_json(config.to_json()) == config

    @pytest.mark.parametrize("name", data_sets.names())
    def test_every_data_set_has_defaults(self, name: str) -> None:
        config = TrainConfig.resolve(name)
        assert (config.data, config.positives, config.negatives) == (name, "nearest", "semihard")

    def test_digits_fill_a_batch_with_their_two_classes(self) -> None:
        config = TrainConfig.resolve("digits")
        assert (config.batch_size, config.samples_per_class) == (128, 64)

    def test_a_given_setting_replaces_the_default(self) -> None:
        assert TrainConfig.resolve("digits", margin=0.5).margin == 0.5

    def test_none_leaves_the_default(self) -> None:
        assert TrainConfig.resolve("digits", margin=None) == TrainConfig.resolve("digits")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"positives": "near"}, "positives must be one of all, nearest, farthest, got 'near'"),
            ({"negatives": "easy"}, "negatives must be one of all, hardest, semihard, got 'easy'"),
            ({"margin": -0.1}, "margin must be at least 0, got -0.1"),
            ({"margin": math.nan}, "margin must be a finite number, got nan"),
            ({"dimensions": 0}, "dimensions must be at least 1, got 0"),
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"steps": 2.0}, "steps must be a whole number, got 2.0"),
            ({"samples_per_class": 1}, "samples_per_class must be at least 2, got 1"),
            ({"batch_size": 16}, "batch_size must be at least 32, got 16"),
            ({"batch_size": 40}, "batch_size must be a multiple of samples_per_class"),
            ({"learning_rate": 0.0}, "learning_rate must be above 0"),
            ({"learning_rate": True}, "learning_rate must be a finite number, got True"),
            ({"seed": -1}, "seed must be at least 0, got -1"),
            ({"seed": 2**63}, "seed must be at most"),
            ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
            ({"device": "cuda:1000"}, "device must be cpu, cuda or cuda:<number>, got 'cuda:1000'"),
            ({"device": "tpu"}, "device must be cpu, cuda or cuda:<number>, got 'tpu'"),
            ({"backend": "other"}, "backend must be one of kernel, reference, got 'other'"),
            ({"momentum": 0.9}, "unknown setting: momentum"),
        ],
    )
    def test_a_setting_outside_its_limits_is_refused(
        self, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            small(**settings)

    def test_an_unknown_data_set_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"data must be one of .*digits.*, got 'letters'"):
            TrainConfig.resolve("letters")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "Expecting"),
            ("[]", "must be a JSON object"),
            ("{}", "missing setting: backend, batch_size"),
            ('{"momentum": 1, %s', "unknown setting: momentum"),
        ],
    )
    def test_json_that_is_no_configuration_is_refused(self, text: str, message: str) -> None:
        text = text.replace("%s", small().to_json().lstrip("{\n"))
        with pytest.raises(ValueError, match=message):
            TrainConfig.from_json(text)


def row(step: int, validation: float, test: float, subclass: float = 0.0) -> dict[str, float]:
    """An evaluation whose metrics are all alike in a split."""
    made: dict[str, float] = {"step": step, "loss": 1.0}
    for split, by_class in (("validation", validation), ("test", test)):
        for metric in METRICS:
            made[f"{split}/class/{metric}"] = by_class
            made[f"{split}/subclass/{metric}"] = subclass
    return made


class TestSummary:
    def test_validation_selects_and_the_best_test_step_stands_beside_it(self) -> None:
        # The sub-classes are best at the last step, and must not count.
        summary = summarize([row(1, 0.2, 0.9), row(2, 0.8, 0.5), row(3, 0.7, 0.6, subclass=1.0)])
        assert summary["selected_step"] == 2
        assert summary["class"]["map@r"] == 0.5
        assert summary["best_test"]["step"] == 1
        assert summary["best_test"]["class"]["map@r"] == 0.9
        assert summary["last"]["step"] == 3
        assert summary["last"]["subclass"]["map@r"] == 1.0

    def test_the_earliest_of_equals_is_selected(self) -> None:
        summary = summarize([row(1, 0.2, 0.1), row(2, 0.8, 0.2), row(3, 0.8, 0.3)])
        assert summary["selected_step"] == 2

    def test_a_nan_is_not_selected(self) -> None:
        summary = summarize([row(1, math.nan, 0.1), row(2, 0.3, 0.1)])
        assert summary["selected_step"] == 2

    def test_a_nan_becomes_none(self) -> None:
        assert summarize([row(1, 0.5, math.nan)])["class"]["recall@1"] is None

    def test_no_evaluation_is_refused(self) -> None:
        with pytest.raises(ValueError, match="nothing was evaluated"):
            summarize([])

    def test_the_long_form_has_every_number(self) -> None:
        rows = list(long_form(summarize([row(1, 0.2, 0.9), row(2, 0.8, 0.5)])))
        assert len(rows) == 3 * 2 * len(METRICS)
        assert rows[0] == {
            "chosen": "selected",
            "step": 2,
            "labels": "class",
            "metric": "recall@1",
            "value": 0.5,
        }


class TestState:
    def state(self) -> TrainingState:
        return TrainingState(small(), (1, 8, 8), torch.device("cpu"))

    def test_keeps_the_weights_of_the_selected_step_while_training_goes_on(self) -> None:
        state = self.state()
        selected = copy.deepcopy(state.model.state_dict())
        state.record_evaluation(row(1, 0.8, 0.1))
        with torch.no_grad():
            state.model.head.bias.add_(1)
        state.record_evaluation(row(2, 0.5, 0.9))
        assert_same_bits(state.selected_model, dict(selected), "selected_model")

    def test_a_checkpoint_keeps_the_weights_of_the_selected_step(self) -> None:
        state, other = self.state(), self.state()
        state.record_evaluation(row(1, 0.8, 0.1))
        other.restore(state.checkpoint())
        assert_same_bits(other.selected_model, state.selected_model, "selected_model")

    def test_images_that_are_not_square_are_refused(self) -> None:
        with pytest.raises(ValueError, match="must be square, got 8 x 9"):
            TrainingState(small(), (1, 8, 9), torch.device("cpu"))


class TestRunFolder:
    def test_holds_every_file_and_no_other(self, finished: Path) -> None:
        assert sorted(os.listdir(finished)) == FILES

    def test_the_plots_are_pictures(self, finished: Path) -> None:
        for name in ("curves.png", "embedding.png"):
            assert (finished / name).read_bytes().startswith(b"\x89PNG")

    def test_config_json_is_the_resolved_configuration(self, finished: Path) -> None:
        assert TrainConfig.from_json((finished / "config.json").read_text()) == small()

    def test_metrics_json_has_its_layout(self, finished: Path) -> None:
        metrics = json.loads((finished / "metrics.json").read_text())
        top = ["class", "subclass", "selected_step", "selection", "best_test", "last"]
        assert list(metrics) == top
        for group in (metrics, metrics["best_test"], metrics["last"]):
            assert list(group["class"]) == METRICS
            assert list(group["subclass"]) == METRICS
            assert all(0 <= value <= 1 for value in group["class"].values())
        assert "validation" in metrics["selection"]
        assert metrics["last"]["step"] == 7

    def test_metrics_csv_has_the_numbers_of_metrics_json(self, finished: Path) -> None:
        metrics = json.loads((finished / "metrics.json").read_text())
        with open(finished / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        last = {
            (row["labels"], row["metric"]): float(row["value"])
            for row in rows
            if row["chosen"] == "last"
        }
        assert last == {
            (labels, metric): metrics["last"][labels][metric]
            for labels in ("class", "subclass")
            for metric in METRICS
        }

    def test_history_has_a_row_per_evaluation_and_one_for_the_last_step(
        self, finished: Path
    ) -> None:
        with open(finished / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["3", "6", "7"]
        assert all(math.isfinite(float(value)) for row in rows for value in row.values())
        assert "validation/class/map@r" in rows[0]
        assert all(0 < float(row["active"]) <= 1 for row in rows)

    def test_the_checkpoint_holds_the_weights_behind_the_metrics(self, finished: Path) -> None:
        model = ConvolutionalEmbedding(image_size=8, dimensions=4)
        model.load_state_dict(checkpoint_of(finished)["selected_model"])
        test = data_sets.load("digits").test
        embeddings = torch.nn.functional.normalize(embed(model, test.images))
        metrics = json.loads((finished / "metrics.json").read_text())
        assert evaluate_retrieval(embeddings, test.labels).as_dict() == metrics["class"]
        assert evaluate_retrieval(embeddings, test.subclasses).as_dict() == metrics["subclass"]

    def test_a_folder_that_holds_a_run_is_refused(self, finished: Path) -> None:
        before = (finished / "checkpoint.pt").read_bytes()
        with pytest.raises(RunFolderError, match=r"already holds a run \(config.json\)"):
            train(small(), finished)
        assert (finished / "checkpoint.pt").read_bytes() == before

    def test_overwrite_replaces_the_run_and_nothing_else(self, interrupted: Path) -> None:
        (interrupted / "notes.txt").write_text("mine")
        folder = RunFolder.create(interrupted, small(seed=5), overwrite=True)
        assert sorted(os.listdir(folder.path)) == ["config.json", "notes.txt"]
        assert RunFolder.open(interrupted)[1].seed == 5

    def test_a_path_under_a_regular_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunFolderError, match=r"file/run cannot be used: Not a directory\.$"):
            train(small(), tmp_path / "file" / "run")

    def test_a_failed_write_leaves_the_old_file(self, interrupted: Path) -> None:
        folder, _ = RunFolder.open(interrupted)

        def write_half() -> None:
            with folder.replacing("metrics.json") as partial:
                partial.write_text("{")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_half()
        json.loads((interrupted / "metrics.json").read_text())
        assert sorted(os.listdir(interrupted)) == FILES

    def test_a_file_that_cannot_be_written_is_named_with_the_reason(
        self, interrupted: Path
    ) -> None:
        (interrupted / "curves.png").unlink()
        (interrupted / "curves.png").mkdir()
        with pytest.raises(RunFolderError, match=r"curves.png cannot be written: Is a directory"):
            train(small(), interrupted, resume=True)


class TestResume:
    def test_the_interrupted_run_is_usable(self, tmp_path: Path) -> None:
        result = train(small(), tmp_path, **stop_after(4))
        assert result.step == 4
        assert not result.finished
        assert sorted(os.listdir(tmp_path)) == FILES
        assert result.metrics["last"]["step"] == 3

    # Before the first step, before the first evaluation, right after an evaluation, between two.
    @pytest.mark.parametrize("steps", [0, 2, 3, 4])
    def test_reaches_the_numbers_of_an_uninterrupted_run(
        self, steps: int, finished: Path, tmp_path: Path
    ) -> None:
        train(small(), tmp_path, **stop_after(steps))
        result = train(small(), tmp_path, resume=True)
        assert result.finished
        assert_same_run(tmp_path, finished)

    def test_several_interruptions_change_nothing(self, finished: Path, tmp_path: Path) -> None:
        train(small(), tmp_path, **stop_after(1))
        train(small(), tmp_path, resume=True, **stop_after(2))
        train(small(), tmp_path, resume=True, **stop_after(5))
        train(small(), tmp_path, resume=True)
        assert_same_run(tmp_path, finished)

    def test_goes_on_from_the_last_evaluation_after_a_crash(
        self, finished: Path, tmp_path: Path
    ) -> None:
        def crash(progress: Progress) -> None:
            if progress.step == 5:
                raise MemoryError

        with pytest.raises(MemoryError):
            train(small(), tmp_path, progress=crash)
        assert checkpoint_of(tmp_path)["step"] == 3
        train(small(), tmp_path, resume=True)
        assert_same_run(tmp_path, finished)

    def test_without_an_evaluation_the_interrupted_step_is_reported(self, tmp_path: Path) -> None:
        result = train(small(), tmp_path, **stop_after(2))
        assert result.metrics["selected_step"] == 2

    def test_a_finished_run_stays_as_it_is(self, finished: Path, tmp_path: Path) -> None:
        train(small(), tmp_path)
        result = train(small(), tmp_path, resume=True)
        assert result.finished
        assert_same_run(tmp_path, finished)

    def test_a_folder_without_a_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunFolderError, match="holds no run to resume"):
            train(small(), tmp_path / "nothing", resume=True)

    def test_another_configuration_is_refused(self, interrupted: Path) -> None:
        with pytest.raises(RunFolderError, match="holds a run of another configuration"):
            train(small(seed=1), interrupted, resume=True)

    def test_a_damaged_configuration_is_refused(self, interrupted: Path) -> None:
        (interrupted / "config.json").write_bytes(b"\xff\xfe")
        with pytest.raises(RunFolderError, match=r"config.json is not a configuration"):
            train(small(), interrupted, resume=True)

    def test_a_missing_checkpoint_is_refused(self, interrupted: Path) -> None:
        (interrupted / "checkpoint.pt").unlink()
        with pytest.raises(RunFolderError, match=r"holds no checkpoint.pt to resume from"):
            train(small(), interrupted, resume=True)

    def test_a_checkpoint_of_garbage_is_refused(self, interrupted: Path) -> None:
        (interrupted / "checkpoint.pt").write_bytes(b"garbage" * 100)
        with pytest.raises(RunFolderError, match=r"checkpoint.pt is damaged or not a checkpoint"):
            train(small(), interrupted, resume=True)

    @pytest.mark.parametrize("kept", [0, 1, 1000, -1000])
    def test_a_checkpoint_that_was_cut_off_is_refused(self, interrupted: Path, kept: int) -> None:
        file = interrupted / "checkpoint.pt"
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(RunFolderError, match=r"checkpoint.pt is damaged or not a checkpoint"):
            train(small(), interrupted, resume=True)

    def test_a_checkpoint_of_something_else_is_refused(self, interrupted: Path) -> None:
        torch.save({"weights": torch.zeros(2)}, interrupted / "checkpoint.pt")
        with pytest.raises(RunFolderError, match="is not a checkpoint of a training run"):
            train(small(), interrupted, resume=True)

    def test_a_checkpoint_of_another_configuration_is_refused(
        self, interrupted: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        train(small(margin=0.3), other, **stop_after(3))
        (other / "checkpoint.pt").replace(interrupted / "checkpoint.pt")
        with pytest.raises(RunFolderError, match=r"its margin is 0\.3, not 0\.2"):
            train(small(), interrupted, resume=True)

    @pytest.mark.parametrize("name", ["optimizer", "sampling", "history"])
    def test_an_incomplete_checkpoint_is_refused(self, interrupted: Path, name: str) -> None:
        checkpoint = checkpoint_of(interrupted)
        del checkpoint[name]
        torch.save(checkpoint, interrupted / "checkpoint.pt")
        with pytest.raises(RunFolderError, match=f"is incomplete: it has no '{name}'"):
            train(small(), interrupted, resume=True)

    def test_weights_of_another_network_are_refused(self, interrupted: Path) -> None:
        checkpoint = checkpoint_of(interrupted)
        checkpoint["model"]["head.bias"] = torch.zeros(3)
        torch.save(checkpoint, interrupted / "checkpoint.pt")
        with pytest.raises(RunFolderError, match="checkpoint does not fit"):
            train(small(), interrupted, resume=True)


class TestTrain:
    def test_a_seed_repeats_the_run_bit_for_bit(self, finished: Path, tmp_path: Path) -> None:
        train(small(), tmp_path)
        assert_same_run(tmp_path, finished)

    def test_another_seed_is_another_run(self, finished: Path, tmp_path: Path) -> None:
        train(small(seed=1), tmp_path)
        one, other = checkpoint_of(finished), checkpoint_of(tmp_path)
        assert not torch.equal(one["model"]["head.weight"], other["model"]["head.weight"])
        assert not torch.equal(one["sampling"], other["sampling"])
        assert (tmp_path / "metrics.json").read_text() != (finished / "metrics.json").read_text()

    def test_the_global_random_stream_is_neither_used_nor_changed(
        self, finished: Path, tmp_path: Path
    ) -> None:
        torch.manual_seed(1234)
        before = torch.get_rng_state()
        train(small(), tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
        assert_same_run(tmp_path, finished)

    def test_the_positives_matter(self, finished: Path, tmp_path: Path) -> None:
        train(small(positives="farthest"), tmp_path)
        one, other = checkpoint_of(finished), checkpoint_of(tmp_path)
        assert not torch.equal(one["model"]["head.weight"], other["model"]["head.weight"])

    def test_the_backend_is_the_configured_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import dmlfast

        asked: list[str] = []
        use_backend = dmlfast.use_backend
        monkeypatch.setattr(
            dmlfast, "use_backend", lambda name: (asked.append(name), use_backend(name))[1]
        )
        train(small(steps=1, backend="reference"), tmp_path)
        assert asked == ["reference"]

    def test_progress_is_told_after_every_step(self, tmp_path: Path) -> None:
        told: list[Progress] = []
        train(small(), tmp_path, progress=told.append)
        assert [progress.step for progress in told] == list(range(1, 8))
        assert all(math.isfinite(progress.loss) for progress in told)
        evaluated = [progress.evaluation and progress.evaluation["step"] for progress in told]
        assert evaluated == [None, None, 3, 3, 3, 6, 7]

    def test_the_logged_loss_is_the_mean_since_the_last_evaluation(self, tmp_path: Path) -> None:
        told: list[Progress] = []
        train(small(), tmp_path, progress=told.append)
        with open(tmp_path / "history.csv", newline="") as file:
            logged = [float(row["loss"]) for row in csv.DictReader(file)]
        losses = [progress.loss for progress in told]
        assert logged == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]])

    def test_training_separates_the_classes(self, tmp_path: Path) -> None:
        config = small(steps=60, evaluate_every=60, batch_size=64, samples_per_class=32, seed=1)
        untrained = train(config, tmp_path / "untrained", **stop_after(0))
        trained: TrainResult = train(config, tmp_path / "trained")
        assert trained.metrics["class"]["recall@1"] > untrained.metrics["class"]["recall@1"] + 0.1

    def test_a_loss_that_is_not_finite_stops_the_run(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        forward = TripletMarginLoss.forward
        monkeypatch.setattr(
            TripletMarginLoss, "forward", lambda *arguments: forward(*arguments) * math.nan
        )
        with pytest.raises(TrainingError, match="The loss of step 1 is nan: a lower learning"):
            train(small(), tmp_path)

    def test_a_missing_device_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="The device cuda:99 is not available"):
            train(small(device="cuda:99"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_missing_library_is_refused_before_anything_is_written(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        status = _library.LibraryStatus(False, "it was not built")
        monkeypatch.setattr(_library, "cpu_status", status)
        with pytest.raises(TrainingError, match="it was not built"):
            train(small(backend="kernel"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_batches_of_more_classes_than_there_are_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="The data set digits cannot fill the batches"):
            train(small(batch_size=64), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestInterruption:
    def test_the_first_sigint_is_only_remembered(self) -> None:
        with interruption() as should_stop:
            assert not should_stop()
            signal.raise_signal(signal.SIGINT)
            assert should_stop()

    def test_the_second_sigint_interrupts_at_once(self) -> None:
        with interruption():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    def test_the_handler_from_before_comes_back(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        with interruption():
            assert signal.getsignal(signal.SIGINT) is not before
        assert signal.getsignal(signal.SIGINT) is before

    def test_an_interrupted_run_resumes_to_the_same_numbers(
        self, finished: Path, tmp_path: Path
    ) -> None:
        def interrupt(progress: Progress) -> None:
            if progress.step == 4:
                signal.raise_signal(signal.SIGINT)

        with interruption() as should_stop:
            result = train(small(), tmp_path, progress=interrupt, should_stop=should_stop)
        assert result.step == 4
        train(small(), tmp_path, resume=True)
        assert_same_run(tmp_path, finished)
