"""Tests of dmlfast.training."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import signal
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from training_runs import (
    FILES,
    GROUPS,
    assert_same_bits,
    assert_same_run,
    checkpoint_of,
    small,
    stop_after,
    without_drawing,
)

import dmlfast
from dmlfast import _backend, _library
from dmlfast import data as data_sets
from dmlfast.losses import TripletMarginLoss
from dmlfast.ops import contrast
from dmlfast.training import (
    Progress,
    TrainConfig,
    TrainingError,
    TrainResult,
    interruption,
    summarize,
    train,
)
from dmlfast.training.config import Backend
from dmlfast.training.loop import _Run
from dmlfast.training.methods.triplet import (
    Negatives,
    Positives,
    TripletSettings,
    mean_of_active,
)
from dmlfast.training.state import TrainingState
from dmlfast.training.summary import long_form

pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(small(), folder)
    return folder


@pytest.fixture(autouse=True)
def _quick_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing to the fixture `finished`."""
    without_drawing(monkeypatch)


class TestConfig:
    def test_survives_json(self) -> None:
        config = small(seed=2**63 - 1, margin=0.1, backend="reference")
        assert TrainConfig.from_json(config.to_json()) == config

    @pytest.mark.parametrize("backend", _backend.BACKENDS)
    def test_the_default_backend_is_the_one_in_use(self, backend: str) -> None:
        with dmlfast.use_backend(backend):
            config = TrainConfig.resolve("digits")
        assert config.backend == backend
        assert json.loads(config.to_json())["backend"] == backend

    @pytest.mark.parametrize(
        ("literal", "accepted"),
        [
            (Positives, contrast.POSITIVES),
            # A draw would take a random stream of its own.
            (Negatives, tuple(n for n in contrast.NEGATIVES if n != "distance_weighted")),
            (Backend, _backend.BACKENDS),
        ],
    )
    def test_the_options_are_those_of_the_library(
        self, literal: object, accepted: tuple[str, ...]
    ) -> None:
        assert get_args(literal) == accepted

    @pytest.mark.parametrize("name", data_sets.names())
    def test_every_data_set_has_defaults(self, name: str) -> None:
        config = TrainConfig.resolve(name)
        assert config.data == name
        assert config.method == TripletSettings(positives="nearest", negatives="semihard")

    def test_digits_fill_a_batch_with_their_two_classes(self) -> None:
        config = TrainConfig.resolve("digits")
        assert (config.batch_size, config.samples_per_class) == (128, 64)

    def test_a_given_setting_replaces_the_default(self) -> None:
        assert TrainConfig.resolve("digits", margin=0.5).method.margin == 0.5

    def test_none_leaves_the_default(self) -> None:
        assert TrainConfig.resolve("digits", margin=None) == TrainConfig.resolve("digits")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"positives": "near"},
                "positives: .* all, nearest, farthest, got 'near'",
            ),
            (
                {"negatives": "easy"},
                "negatives: .* all, hardest, semihard, got 'easy'",
            ),
            ({"margin": -0.1}, "margin: expected at least 0, got -0.1"),
            ({"margin": math.nan}, "margin: expected a finite number, got nan"),
            ({"dimensions": 0}, "dimensions: expected at least 1, got 0"),
            ({"steps": 0}, "steps: expected at least 1, got 0"),
            ({"steps": 2.0}, "steps: expected a whole number, got 2.0"),
            ({"samples_per_class": 1}, "samples_per_class: expected at least 2, got 1"),
            ({"batch_size": 16}, "batch_size: expected at least 32, got 16"),
            ({"batch_size": 40}, "batch_size: expected a multiple of samples_per_class"),
            ({"learning_rate": 0.0}, "learning_rate: expected above 0"),
            ({"learning_rate": True}, "learning_rate: expected a finite number, got True"),
            ({"seed": -1}, "seed: expected at least 0, got -1"),
            ({"seed": 2**63}, "seed: expected at most"),
            ({"evaluate_every": 0}, "evaluate_every: expected at least 1, got 0"),
            (
                {"device": "cuda:1000"},
                "device: expected cpu, .*, got 'cuda:1000'",
            ),
            ({"device": "tpu"}, "device: expected cpu, cuda or cuda:<number>, got 'tpu'"),
            ({"backend": "other"}, "backend: expected one of kernel, reference, got 'other'"),
            ({"momentum": 0.9}, "unknown setting: momentum"),
        ],
    )
    def test_a_setting_outside_its_limits_is_refused(
        self, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            small(**settings)

    def test_an_unknown_data_set_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"data: expected one of .*digits.*, got 'letters'"):
            TrainConfig.resolve("letters")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "Expecting"),
            ("[]", "expected a JSON object, got list"),
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
    made: dict[str, float] = {"step": step, "loss": 1.0, "active": 0.5}
    for split, by_class in (("validation", validation), ("test", test)):
        for group, metrics in GROUPS.items():
            for metric in metrics:
                made[f"{split}/{group}/{metric}"] = by_class if group == "class" else subclass
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
        assert len(rows) == 3 * sum(map(len, GROUPS.values()))
        assert rows[0] == {
            "chosen": "selected",
            "step": 2,
            "labels": "class",
            "metric": "recall@1",
            "value": 0.5,
        }


class TestState:
    def state(self) -> TrainingState:
        return TrainingState(small(), (1, 8, 8), torch.device("cpu"), 2)

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
        state.model(torch.rand(2, 1, 8, 8)).sum().backward()
        state.optimizer.step()
        state.record_step(1.0, 1.0)
        state.record_evaluation(row(1, 0.8, 0.1))
        other.restore(state.checkpoint())
        assert_same_bits(other.selected_model, state.selected_model, "selected_model")

    def test_images_that_are_not_square_are_refused(self) -> None:
        with pytest.raises(ValueError, match="image_shape: expected square images, got 8 x 9"):
            TrainingState(small(), (1, 8, 9), torch.device("cpu"), 2)


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

    def test_a_sigint_stops_a_run_that_resumes_to_the_same_numbers(
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


class TestMean:
    """Of the losses that the triplet loss returns without a reduction."""

    @pytest.mark.parametrize("positives", contrast.POSITIVES)
    @pytest.mark.parametrize("negatives", get_args(Negatives))
    def test_is_the_mean_of_the_loss(self, positives: str, negatives: str) -> None:
        x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
        options = {"margin": 0.2, "positives": positives, "negatives": negatives}
        losses = TripletMarginLoss(**options, reduction="none")(x, torch.arange(24) % 3)
        expected = TripletMarginLoss(**options, reduction="mean")(x, torch.arange(24) % 3)
        torch.testing.assert_close(mean_of_active(losses)[0], expected)

    def test_an_anchor_whose_loss_is_nan_is_active(self) -> None:
        mean, active = mean_of_active(torch.tensor([math.nan, 0.0, 0.5, 0.0]))
        assert math.isnan(mean)
        assert active == 0.5


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

    def test_evaluations_change_nothing_that_is_trained_or_drawn(
        self, finished: Path, tmp_path: Path
    ) -> None:
        train(small(evaluate_every=1), tmp_path)
        one, other = checkpoint_of(finished), checkpoint_of(tmp_path)
        for name in ("model", "optimizer", "sampling", "augmentation"):
            assert_same_bits(one[name], other[name], name)
        assert (
            one["history"][-1].items()
            >= {
                name: value
                for name, value in other["history"][-1].items()
                if name.startswith(("validation/", "test/"))
            }.items()
        )

    def test_the_global_random_stream_is_neither_used_nor_changed(
        self, finished: Path, tmp_path: Path
    ) -> None:
        torch.manual_seed(1234)
        before = torch.get_rng_state()
        train(small(), tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
        assert_same_run(tmp_path, finished)

    def test_active_triplets_of_the_evaluation_are_those_of_the_margin(self) -> None:
        shares = [
            _Run(small(margin=margin), torch.device("cpu")).evaluate()[
                "test/collapse/active_triplets"
            ]
            for margin in (0.001, 0.01, 1.0)
        ]
        assert shares == sorted(set(shares))

    def test_the_positives_matter(self, finished: Path, tmp_path: Path) -> None:
        train(small(positives="farthest"), tmp_path)
        one, other = checkpoint_of(finished), checkpoint_of(tmp_path)
        assert not torch.equal(one["model"]["head.weight"], other["model"]["head.weight"])

    def test_the_backend_is_the_configured_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked: list[str] = []
        use_backend = dmlfast.use_backend
        monkeypatch.setattr(
            dmlfast, "use_backend", lambda name: (asked.append(name), use_backend(name))[1]
        )
        train(small(steps=1, backend="reference"), tmp_path)
        assert asked == ["reference"]

    def test_the_picture_names_the_classes(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import dmlfast.plots

        given: dict[str, Any] = {}
        monkeypatch.setattr(
            dmlfast.plots,
            "plot_embedding",
            lambda x, ids, path, **options: (given.update(options), path.write_bytes(b"png")),
        )
        train(small(steps=1), tmp_path)
        assert given["class_names"] == ("even", "odd")

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
