"""Tests of dmlfast.training.RunFolder: the files of a run, and going on from damaged ones."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    CLUSTERING,
    FILES,
    GROUPS,
    METRICS,
    checkpoint_of,
    small,
    stop_after,
    without_drawing,
)

from dmlfast import data as data_sets
from dmlfast.evaluation import (
    embed,
    evaluate_clustering,
    evaluate_collapse,
    evaluate_retrieval,
)
from dmlfast.models import ConvolutionalEmbedding
from dmlfast.training import RunFolder, RunFolderError, TrainConfig, train
from dmlfast.training.summary import ROW_KEYS

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
    """Leave the drawing to the fixtures `finished` and `stopped`."""
    without_drawing(monkeypatch)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted between two evaluations; tests only read it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(small(), folder, **stop_after(4))
    return folder


@pytest.fixture
def interrupted(stopped: Path, tmp_path: Path) -> Path:
    """A copy of `stopped`."""
    return shutil.copytree(stopped, tmp_path / "interrupted")


class TestRunFolder:
    def test_holds_every_file_and_no_other(self, finished: Path) -> None:
        assert sorted(os.listdir(finished)) == FILES

    def test_the_plots_are_pictures(self, finished: Path) -> None:
        for name in ("collapse.png", "curves.png", "embedding.png"):
            assert (finished / name).read_bytes().startswith(b"\x89PNG")

    def test_config_json_is_the_resolved_configuration(self, finished: Path) -> None:
        assert TrainConfig.from_json((finished / "config.json").read_text()) == small()

    def test_metrics_json_has_its_layout(self, finished: Path) -> None:
        metrics = json.loads((finished / "metrics.json").read_text())
        assert list(metrics) == [*GROUPS, "selected_step", "selection", "best_test", "last"]
        for chosen in (metrics, metrics["best_test"], metrics["last"]):
            assert {group: list(chosen[group]) for group in GROUPS} == GROUPS
            assert all(0 <= value <= 1 for value in chosen["class"].values())
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
            (group, metric): metrics["last"][group][metric]
            for group, names in GROUPS.items()
            for metric in names
        }

    def test_history_has_a_row_per_evaluation_and_one_for_the_last_step(
        self, finished: Path
    ) -> None:
        with open(finished / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["3", "6", "7"]
        assert all(math.isfinite(float(value)) for row in rows for value in row.values())
        assert tuple(rows[0]) == ROW_KEYS
        assert all(0 < float(row["active"]) <= 1 for row in rows)

    def test_the_checkpoint_holds_the_weights_behind_the_metrics(self, finished: Path) -> None:
        model = ConvolutionalEmbedding(image_size=8, dimensions=4)
        model.load_state_dict(checkpoint_of(finished)["selected_model"])
        test = data_sets.load("digits").test
        embeddings = torch.nn.functional.normalize(embed(model, test.images))
        metrics = json.loads((finished / "metrics.json").read_text())
        for group, labels in (("class", test.labels), ("subclass", test.subclasses)):
            expected = evaluate_retrieval(embeddings, labels).as_dict()
            assert {name: metrics[group][name] for name in METRICS} == expected
            generator = torch.Generator().manual_seed(small().seed)
            expected = evaluate_clustering(embeddings, labels, generator=generator).as_dict()
            assert {name: metrics[group][name] for name in CLUSTERING} == expected
        collapse = evaluate_collapse(
            embeddings, test.labels, test.subclasses, margin=small().method.margin
        )
        assert metrics["collapse"] == collapse.as_dict()

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


class TestDamage:
    def test_a_folder_without_a_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunFolderError, match="holds no run: there is no config"):
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

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            pytest.param(lambda c: c.update(step="4"), "step: expected a whole .*, got '4'"),
            pytest.param(lambda c: c.update(step=True), "step: expected a whole .*, got True"),
            pytest.param(lambda c: c.update(step=-1), "step: expected .* from 0 to 7, got -1"),
            pytest.param(lambda c: c.update(step=8), "step: expected .* from 0 to 7, got 8"),
            pytest.param(lambda c: c.update(history={}), "history: expected a list, got dict"),
            pytest.param(lambda c: c.update(history=[3]), "history, row 0: expected a dict"),
            pytest.param(
                lambda c: c.update(history=[{"step": 1}]),
                "history, row 0: expected the keys of an evaluation, got no 'loss'",
            ),
            pytest.param(
                lambda c: c["history"][0].pop("validation/class/map@r"),
                "history, row 0: .* got no 'validation/class/map@r'",
            ),
            pytest.param(
                lambda c: c["history"][0].update(more=1.0), "history, row 0: .* got 'more' too"
            ),
            pytest.param(
                lambda c: c["history"][0].update(loss=math.nan),
                "history, row 0: expected a finite number for 'loss', got nan",
            ),
            pytest.param(
                lambda c: c["history"][0].update({"test/class/map@r": "1"}),
                "history, row 0: expected a finite number for 'test/class/map@r', got '1'",
            ),
            pytest.param(
                lambda c: c["history"][0].update({"test/class/map@r": math.inf}),
                "history, row 0: expected a finite number for 'test/class/map@r', got inf",
            ),
            pytest.param(
                lambda c: c["history"][0].update({"test/class/map@r": 10**400}), "too large"
            ),
            pytest.param(
                lambda c: c["history"][0].update(step=5),
                "history, row 0: expected a step from 1 to 4, got 5",
            ),
            pytest.param(
                lambda c: c["history"].append(c["history"][0]),
                "history, row 1: expected a step from 4 to 4, got 3",
            ),
            pytest.param(lambda c: c.update(sums=["a"]), "sums: expected three finite numbers"),
            pytest.param(lambda c: c.update(sums=[1, 2]), "sums: expected three finite numbers"),
            pytest.param(lambda c: c.update(sums=None), "sums: expected three finite numbers"),
            pytest.param(
                lambda c: c.update(sums=[1.0, math.nan, 1.0]), "sums: expected three finite"
            ),
            pytest.param(
                lambda c: c.update(sums=[2.0, 1.0, 1.0]), "sums: expected a count of 1 steps"
            ),
            pytest.param(
                lambda c: c["model"].update({"head.bias": torch.zeros(3)}), "loading state_dict"
            ),
            pytest.param(
                lambda c: c["selected_model"].update({"head.bias": torch.zeros(3)}),
                "loading state_dict",
            ),
            pytest.param(lambda c: c.update(selected_model={}), "loading state_dict"),
            pytest.param(
                lambda c: c["optimizer"]["param_groups"][0].update(lr="a"),
                "optimizer: expected lr 0.001, got a",
            ),
            pytest.param(
                lambda c: c["optimizer"]["state"].clear(), "optimizer: expected step 4, got 0"
            ),
            pytest.param(
                lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
                "optimizer: expected exp_avg of shape",
            ),
            pytest.param(lambda c: c.update(sampling=torch.zeros(3)), "RNG state"),
            pytest.param(lambda c: c.update(augmentation="x"), "augmentation|expected"),
        ],
    )
    def test_a_checkpoint_that_the_run_cannot_have_written_is_refused_in_one_sentence(
        self, interrupted: Path, damage: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        checkpoint = checkpoint_of(interrupted)
        damage(checkpoint)
        torch.save(checkpoint, interrupted / "checkpoint.pt")
        with pytest.raises(RunFolderError, match=message) as caught:
            train(small(), interrupted, resume=True)
        assert str(caught.value).startswith("The checkpoint does not fit its configuration: ")
        assert "\n" not in str(caught.value)

    def test_a_metric_may_be_nan(self, interrupted: Path) -> None:
        checkpoint = checkpoint_of(interrupted)
        checkpoint["history"][0]["test/class/map@r"] = math.nan
        torch.save(checkpoint, interrupted / "checkpoint.pt")
        assert train(small(), interrupted, resume=True).finished
