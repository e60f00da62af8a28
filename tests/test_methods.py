"""Tests of dmlfast.training.methods: what the methods add to a run, and that the rest stays."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
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

from dmlfast import data as data_sets
from dmlfast.evaluation import evaluate_intensity_ranking
from dmlfast.losses import SelfSupervisedRankingLoss, SyntheticRankingLoss
from dmlfast.training import RunFolderError, TrainConfig, methods, train
from dmlfast.training.loop import _Run, labelled
from dmlfast.training.summary import ROW_KEYS

pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

# One of each kind of randomness and of parameters.
RUNS: dict[str, dict[str, Any]] = {
    "gar": {"method": "gar", "shuffle": "class", "warmup_steps": 2},
    "ssr": {"method": "ssr", "sources": 6, "hidden": 8, "task_probability": 0.5},
    "namr": {"method": "namr"},
}
RANKING = ("gar", "ssr")
each_run = pytest.mark.parametrize("name", RUNS)
each_ranking_run = pytest.mark.parametrize("name", RANKING)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of uninterrupted runs; tests only read them."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in RUNS}
    for name, folder in folders.items():
        train(small(**RUNS[name]), folder)
    return folders


@pytest.fixture(autouse=True)
def _quick_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing to the fixture `finished`."""
    without_drawing(monkeypatch)


def steps_of(count: int, **settings: Any) -> _Run:
    run = _Run(small(**settings), torch.device("cpu"))
    for _ in range(count):
        run.train_step()
    return run


class TestSettings:
    @pytest.mark.parametrize("method", methods.names())
    def test_survive_json(self, method: str) -> None:
        config = small(method=method)
        assert TrainConfig.from_json(config.to_json()) == config
        assert json.loads(config.to_json())["method"] == method

    @pytest.mark.parametrize("method", methods.names())
    def test_have_other_names_than_those_of_every_run(self, method: str) -> None:
        own = {field.name for field in dataclasses.fields(methods.settings_of(method))}
        assert not own & {field.name for field in dataclasses.fields(TrainConfig)}

    def test_the_published_constants_are_the_defaults(self) -> None:
        loss, method = SyntheticRankingLoss(3, 4), small(method="gar").method
        assert method.weight == loss.weights.total
        assert method.ranking_ratio == loss.weights.ranking
        assert method.metric_ratio == loss.weights.metric
        assert method.class_reduction == loss.weights.classes
        assert method.intensities == loss.synthesis.count
        for name in ("radius", "select", "threshold", "shuffle", "detach"):
            assert getattr(method, name) == getattr(loss.synthesis, name)
        for name in ("margin", "scale"):
            assert getattr(method, f"ranking_{name}") == getattr(loss.ranking, name)
            assert getattr(method, f"metric_{name}") == getattr(loss.metric, name)
        assert method.pairs == loss.ranking.pairs
        assert (method.base_on, method.reference_quirks) == (loss.base_on, loss.reference_quirks)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"method": "other"}, "method: expected one of triplet, gar, ssr, nasa, namr, got"),
            ({"method": "gar", "positives": "all"}, "setting for the method gar: positives"),
            ({"weight": 0.1}, "unknown setting for the method triplet: weight"),
            ({"method": "gar", "weight": -0.1}, "weight: expected at least 0, got -0.1"),
            ({"method": "gar", "weight": math.inf}, "weight: expected a finite number, got inf"),
            ({"method": "gar", "base": "nca"}, "base: expected one of proxy-anchor, triplet"),
            ({"method": "gar", "proxy_scale": 0.0}, "proxy_scale: expected above 0, got 0.0"),
            ({"method": "gar", "parameter_rate": 0.0}, "parameter_rate: expected above 0"),
            ({"method": "gar", "warmup_steps": -1}, "warmup_steps: expected at least 0, got -1"),
            ({"method": "gar", "gradient_clip": 0.0}, "gradient_clip: expected above 0"),
            ({"method": "gar", "intensities": 0}, "intensities: expected at least 1, got 0"),
            ({"method": "gar", "radius": 0.0}, "radius: expected above 0"),
            ({"method": "gar", "select": "near"}, "select: expected one of raw, cosine, all"),
            ({"method": "gar", "pairs": "some"}, "pairs: expected one of all, adjacent, band"),
            ({"method": "gar", "detach": 1}, "detach: expected true or false, got 1"),
            ({"method": "gar", "threshold": math.nan}, "threshold: expected a finite number"),
            ({"method": "gar", "ranking_ratio": -1.0}, "ranking_ratio: expected at least 0"),
            (
                {"method": "gar", "base_on": "projected", "weight": 0.0},
                "base_on: expected latent without a ranking",
            ),
            (
                {"method": "gar", "base": "triplet", "reference_quirks": True},
                "base: expected proxy-anchor with quirks, got 'triplet'",
            ),
            ({"method": "ssr", "weight": 0.0}, "weight: expected above 0"),
            ({"method": "ssr", "views": 0}, "views: expected at least 1, got 0"),
            ({"method": "ssr", "scale": 0.0}, "scale: expected above 0"),
            ({"method": "ssr", "task_probability": 1.1}, "task_probability: expected at most 1"),
            ({"labelled_per_class": -1}, "labelled_per_class: expected at least 0, got -1"),
        ],
    )
    def test_outside_their_limits_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            small(**settings)


class TestRun:
    @each_ranking_run
    def test_the_folder_holds_a_picture_of_its_own(
        self, name: str, finished: dict[str, Path]
    ) -> None:
        assert sorted(os.listdir(finished[name])) == sorted([*FILES, "intensity.png"])
        assert (finished[name] / "intensity.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("name", "groups"), [("gar", ["views", "synthetic"]), ("ssr", ["views"])]
    )
    def test_the_metrics_hold_the_order(
        self, name: str, groups: list[str], finished: dict[str, Path]
    ) -> None:
        metrics = json.loads((finished[name] / "metrics.json").read_text())
        assert list(metrics["last"]) == [*GROUPS, *groups, "step"]
        for group in groups:
            for place in (metrics, metrics["best_test"], metrics["last"]):
                assert list(place[group]) == ["order_accuracy", "kendall_tau"]
                assert 0 <= place[group]["order_accuracy"] <= 1
        with open(finished[name] / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        added = [
            f"{split}/{group}/{metric}"
            for group in groups
            for split in ("train", "validation", "test")
            for metric in ("order_accuracy", "kendall_tau")
        ]
        assert list(rows[0]) == [*ROW_KEYS, *added]

    def test_the_order_is_that_of_the_selected_weights(self, finished: dict[str, Path]) -> None:
        run = steps_of(0, **RUNS["gar"])
        run.state.restore(checkpoint_of(finished["gar"]))
        metrics = json.loads((finished["gar"] / "metrics.json").read_text())
        with run.state.selected():
            found = run.state.method.similarities(run.state.model, data_sets.load("digits"))
        for group in ("views", "synthetic"):
            order = evaluate_intensity_ranking(found[group]["test"])
            assert order.as_dict() == metrics[group]

    @each_run
    def test_a_seed_repeats_it_bit_for_bit(
        self, name: str, finished: dict[str, Path], tmp_path: Path
    ) -> None:
        torch.manual_seed(99)
        before = torch.get_rng_state()
        train(small(**RUNS[name]), tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
        assert_same_run(tmp_path, finished[name])

    # Before the first step, while the blocks rest, right after an evaluation, between two.
    @each_run
    @pytest.mark.parametrize("steps", [0, 1, 3, 4])
    def test_interrupted_and_resumed_it_has_the_same_bits(
        self, name: str, steps: int, finished: dict[str, Path], tmp_path: Path
    ) -> None:
        train(small(**RUNS[name]), tmp_path, **stop_after(steps))
        train(small(**RUNS[name]), tmp_path, resume=True)
        assert_same_run(tmp_path, finished[name])

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda c: c.pop("method"), "incomplete: it has no 'method'"),
            (lambda c: c["method"].pop("drawing"), "incomplete: it has no 'drawing'"),
            (lambda c: c["method"]["weights"].pop("loss.directions"), "does not fit"),
            (lambda c: c["method"]["selected"].clear(), "does not fit"),
            (lambda c: c["history"][0].pop("test/views/order_accuracy"), "got no 'test/views"),
        ],
    )
    def test_a_damaged_checkpoint_is_refused(
        self, damage: Any, message: str, tmp_path: Path
    ) -> None:
        config = small(**RUNS["gar"])
        train(config, tmp_path, **stop_after(4))
        checkpoint = checkpoint_of(tmp_path)
        damage(checkpoint)
        torch.save(checkpoint, tmp_path / "checkpoint.pt")
        with pytest.raises(RunFolderError, match=message):
            train(config, tmp_path, resume=True)

    def test_a_folder_from_before_there_were_methods_is_resumed(self, tmp_path: Path) -> None:
        train(small(), tmp_path / "new")
        old = tmp_path / "old"
        train(small(), old, **stop_after(4))
        config, checkpoint = json.loads((old / "config.json").read_text()), checkpoint_of(old)
        for settings in (config, checkpoint["config"]):
            del settings["method"], settings["labelled_per_class"]
        del checkpoint["method"]
        (old / "config.json").write_text(json.dumps(config))
        torch.save(checkpoint, old / "checkpoint.pt")
        train(small(), old, resume=True)
        for name in ("history.csv", "metrics.json"):
            assert (old / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


class TestArms:
    """What runs of different methods share, so that their difference is the method's."""

    def network(self, count: int = 4, **settings: Any) -> dict[str, torch.Tensor]:
        return dict(steps_of(count, **settings).state.model.state_dict())

    @pytest.mark.parametrize(
        "settings",
        [
            {"method": "gar", "detach": True, "metric_ratio": 0.0, "select": "all"},
            {"method": "ssr", "task_probability": 0.0},
        ],
        ids=["ranking of detached samples", "ranking in no step"],
    )
    def test_without_an_influence_the_network_is_that_of_the_base_loss(
        self, settings: dict[str, Any]
    ) -> None:
        base = self.network(method="gar", weight=0.0)
        assert_same_bits(self.network(**settings), base, "network")

    @pytest.mark.parametrize(
        "settings",
        [
            {"method": "gar", "select": "all"},
            {"method": "gar", "select": "all", "metric_ratio": 0.0},
            {"method": "gar", "select": "all", "ranking_ratio": 0.0},
            {"method": "gar", "select": "all", "detach": True},
            {"method": "gar", "base_on": "projected"},
            {"method": "gar", "base": "triplet"},
            {"method": "gar", "select": "all", "reference_quirks": True},
            {"method": "ssr", "task_probability": 1.0},
        ],
        ids=str,
    )
    def test_a_ranking_changes_the_network(self, settings: dict[str, Any]) -> None:
        one = self.network(method="gar", weight=0.0)["head.weight"]
        assert not torch.equal(self.network(**settings)["head.weight"], one)

    def test_all_start_from_the_same_network_proxies_and_batches(self) -> None:
        runs = [steps_of(0, method=method) for method in ("gar", "ssr")]
        runs.append(steps_of(0, method="gar", weight=0.0))
        states = [run.state for run in runs]
        for state in states[1:]:
            assert_same_bits(dict(state.model.state_dict()), dict(states[0].model.state_dict()), "")
            assert torch.equal(state.sampling.get_state(), states[0].sampling.get_state())
            assert torch.equal(state.augmentation.get_state(), states[0].augmentation.get_state())
        proxies = [
            next(p for n, p in s.method.named_parameters() if "proxies" in n) for s in states
        ]
        assert torch.equal(proxies[0], proxies[1])
        assert torch.equal(proxies[0], proxies[2])


class TestTraining:
    @each_ranking_run
    def test_own_parameters_have_their_learning_rate(self, name: str) -> None:
        run = steps_of(0, **RUNS[name], parameter_rate=5.0, learning_rate=0.01)
        network, own = run.state.optimizer.param_groups
        assert (network["lr"], own["lr"]) == (0.01, 0.05)
        assert len(network["params"]) == len(list(run.state.model.parameters()))
        assert len(own["params"]) == len(list(run.state.method.parameters()))

    def test_a_base_loss_without_parameters_has_one_group(self) -> None:
        run = steps_of(1, method="gar", weight=0.0, base="triplet")
        assert len(run.state.optimizer.param_groups) == 1

    def test_warm_up_leaves_the_blocks_as_they_are(self) -> None:
        start, warm, after = (
            steps_of(count, method="gar", warmup_steps=2, select="all") for count in (0, 2, 3)
        )

        def same(one: _Run, other: _Run, part: str) -> bool:
            modules = [getattr(run.state, part) for run in (one, other)]
            return all(
                torch.equal(a, b) for a, b in zip(*(m.parameters() for m in modules), strict=True)
            )

        def blocks(run: _Run) -> list[torch.Tensor]:
            return list(run.state.model.features.parameters())

        assert all(map(torch.equal, blocks(start), blocks(warm)))
        assert not torch.equal(start.state.model.head.weight, warm.state.model.head.weight)
        assert not same(start, warm, "method")
        assert not all(map(torch.equal, blocks(warm), blocks(after)))

    @each_ranking_run
    def test_no_number_of_a_gradient_is_beyond_the_clip(self, name: str) -> None:
        settings = {**RUNS[name], "warmup_steps": 0, "gradient_clip": 1e-4}
        run = steps_of(1, **settings)
        found = [
            p.grad.abs().max().item()
            for group in run.state.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        assert max(found) == pytest.approx(1e-4)

    def test_gar_reports_the_share_that_qualifies(self) -> None:
        assert steps_of(2, method="gar", select="all").state.means()[1] == 1
        assert steps_of(2, method="gar", threshold=100.0).state.means()[1] == 0

    def test_ssr_ranks_in_a_share_of_the_steps(self) -> None:
        run = steps_of(7, **RUNS["ssr"])
        share = run.state.means()[1]
        assert 0 < share < 1
        trained = {
            int(run.state.optimizer.state[p]["step"])
            for p in run.state.method.second_head.parameters()
        }
        assert trained == {round(7 * share)}

    def test_ssr_compares_the_views_of_each_source_with_it_by_rising_strength(self) -> None:
        run = steps_of(0, method="ssr", sources=5, views=3, task_probability=1.0)
        model, method, drawing = run.state.model.eval(), run.state.method, run.state.drawing
        images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 2
        before = drawing.get_state()
        loss = method.loss_of(model, methods.Batch(images, labels, torch.device("cpu"))).loss
        drawing.set_state(before)
        torch.rand((), generator=drawing)
        sources = images[torch.randperm(12, generator=drawing)[:5]]
        views = [view(sources, drawing) for view in data_sets.rising_views(3)]
        heads = [method.second_head(model.backbone(x)) for x in (sources, *views)]
        ranked = SelfSupervisedRankingLoss()(heads[0], torch.stack(heads[1:], 1))
        # A batch norm that does not train: what is in one pass does not matter but for rounding.
        torch.testing.assert_close(loss, method.base(model(images), labels) + 0.8 * ranked)

    def test_ssr_views_more_images_than_there_are(self) -> None:
        assert math.isfinite(steps_of(1, method="ssr", sources=1000).state.means()[0])

    @pytest.mark.parametrize("method", ["gar", "ssr", "nasa"])
    def test_separates_the_classes(self, method: str, tmp_path: Path) -> None:
        config = small(
            method=method, steps=60, evaluate_every=60, batch_size=64, samples_per_class=32
        )
        untrained = train(config, tmp_path / "untrained", **stop_after(0))
        trained = train(config, tmp_path / "trained")
        assert trained.metrics["class"]["map@r"] > untrained.metrics["class"]["map@r"] + 0.1


class TestFewLabels:
    def test_so_many_of_each_class_are_kept_spread_over_all(self) -> None:
        split = data_sets.load("digits").train
        kept = labelled(split, 5)
        assert torch.bincount(kept.labels).tolist() == [5, 5]
        members = (split.labels == 0).nonzero().flatten()
        first = [len(members) * i // 5 for i in range(5)]
        assert torch.equal(kept.images[kept.labels == 0], split.images[members[first]])

    def test_a_class_with_fewer_keeps_them_all(self) -> None:
        split = data_sets.load("digits").train
        assert torch.equal(labelled(split, 10**6).images, split.images)
        assert labelled(split, 0) is split

    def test_a_run_trains_on_them_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[torch.Tensor] = []
        data = data_sets.load("digits")
        monkeypatch.setattr(data_sets, "load", lambda name: keeping(data, seen))
        steps_of(3, labelled_per_class=2)
        rows = torch.cat(seen).flatten(1)
        assert len(torch.unique(rows, dim=0)) == 4


def keeping(data: data_sets.DataSet, seen: list[torch.Tensor]) -> data_sets.DataSet:
    """The data set with an augmentation that only remembers the images."""
    return dataclasses.replace(data, augment=lambda images, _: (seen.append(images), images)[1])


def test_a_method_says_what_it_evaluates() -> None:
    for method in methods.names():
        run = steps_of(0, method=method)
        found = run.state.method.evaluate(run.state.model, data_sets.load("digits"))
        assert tuple(found) == run.state.method.evaluated


@pytest.mark.parametrize("method", methods.names())
def test_only_an_active_share_of_anchors_is_drawn_beside_that_of_the_evaluation(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def plot_collapse(_: object, path: Path, *, training_triplets: bool) -> None:
        drawn.append(training_triplets)
        path.write_bytes(b"png")

    monkeypatch.setattr("dmlfast.plots.plot_collapse", plot_collapse)
    train(small(method=method, steps=2), tmp_path / "run")
    # That of NASA and NAMR is of drawn triplets, that of a ranking of its samples or steps.
    assert drawn == [method == "triplet"]


def test_methods_are_modules_whose_state_is_kept() -> None:
    for method in methods.names():
        assert isinstance(steps_of(0, method=method).state.method, nn.Module)
