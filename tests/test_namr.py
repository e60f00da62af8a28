"""Training with a structure embedding: its settings, its loss, its arms, and retrieval by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import GROUPS, assert_same_bits, checkpoint_of, small, without_drawing

import dmlfast.functional as F
from dmlfast import data as data_sets
from dmlfast.evaluation import evaluate_adaptive_retrieval, evaluate_retrieval, oracle_structure
from dmlfast.losses import LocalVarianceLoss, MultiClusterLoss, TripletMarginLoss
from dmlfast.training import methods, train
from dmlfast.training.loop import _Run
from dmlfast.training.methods.namr import _DrawnTriplets, _spread

pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

each_method = pytest.mark.parametrize("method", ["nasa", "namr"])
METRICS = ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r"]


def steps_of(count: int, **settings: Any) -> _Run:
    run = _Run(small(**{"method": "nasa", **settings}), torch.device("cpu"))
    for _ in range(count):
        run.train_step()
    return run


@pytest.fixture(scope="module")
def trained() -> _Run:
    """A run of a few steps; tests only evaluate it."""
    return steps_of(5, learning_rate=0.01)


# --- settings -------------------------------------------------------------------------------------


@each_method
def test_the_published_constants_are_the_defaults(method):
    loss, settings = MultiClusterLoss(TripletMarginLoss()), small(method=method).method
    assert settings.margin == 0.2
    assert settings.clusters == {"nasa": 2, "namr": 4}[method]
    for name in set(loss.shown) - {"clusters"}:
        assert getattr(settings, name) == getattr(loss, name), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -0.1}, "weight: expected at least 0, got -0.1"),
        ({"clusters": 0}, "clusters: expected at least 1, got 0"),
        ({"margin": -0.1}, "margin: expected at least 0"),
        ({"spread": math.nan}, "spread: expected a finite number"),
        ({"sharpness": -1.0}, "sharpness: expected at least 0"),
        ({"floor": -1.0}, "floor: expected at least 0"),
        ({"floor": 1.5}, "floor: expected at most 1"),
        ({"local_neighbors": 1025}, "local_neighbors: expected at most 1024"),
        ({"order_weight": -1.0}, "order_weight: expected at least 0"),
        ({"order_margin": math.inf}, "order_margin: expected a finite number"),
        ({"include_self": 1}, "include_self: expected true or false, got 1"),
        ({"fixed_structure": 1}, "fixed_structure: expected true or false, got 1"),
        ({"structure_gradient": "sample"}, "structure_gradient: expected one of both, structure"),
        ({"local_weight": -0.1}, "local_weight: expected at least 0"),
        ({"local_neighbors": -1}, "local_neighbors: expected at least 0"),
        ({"least": 0.0}, "least: expected above 0"),
        ({"least": 1.5}, "least: expected at most 1, got 1.5"),
        (
            {"local_weight": 0.1, "fixed_structure": True},
            "local_weight: expected 0 with a fixed structure, got 0.1",
        ),
        (
            {"structure_gradient": "structure", "fixed_structure": True},
            "structure_gradient: expected both with a fixed structure",
        ),
    ],
)
def test_settings_outside_their_limits_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(method="namr", **settings)


# --- the loss -------------------------------------------------------------------------------------


def drawn_triplets(sample, labels, generator):
    """All pairs of one class, a negative drawn for each by the distances of unit vectors."""
    pairs = [(a, p) for a in range(12) for p in range(12) if a != p and labels[a] == labels[p]]
    anchor = torch.tensor([a for a, _ in pairs])
    unit = torch.nn.functional.normalize(sample.detach())
    negative = F.sample_negative(unit[anchor], labels[anchor], unit, labels, generator=generator)
    return [(a, p, n) for (a, p), n in zip(pairs, negative.index.tolist(), strict=True)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": 0.0},
        {"margin": 0.05, "weight": 0.3, "clusters": 3},
        {"spread": 0.5, "sharpness": 3.0, "floor": 0.9, "include_self": False},
        {"order_weight": 0.7, "order_margin": 0.3},
        {"fixed_structure": True},
        {"structure_gradient": "structure"},
        {"weight": 0.0, "local_weight": 0.4},
        {"weight": 0.3, "local_weight": 0.4, "local_neighbors": 2, "least": 0.1},
    ],
    ids=str,
)
def test_the_loss_is_that_of_all_drawn_triplets_and_of_the_structure(settings):
    run = steps_of(0, **settings)
    model, method, drawing = run.state.model, run.state.method, run.state.drawing
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    before = drawing.get_state()
    step = method.loss_of(model, methods.Batch(images, labels, torch.device("cpu")))
    drawing.set_state(before)

    sample, structure = method.head(model.backbone(images))
    margin = settings.get("margin", 0.2)
    losses = [
        ((sample[a] - sample[p]).norm() - (sample[a] - sample[n]).norm() + margin).relu().item()
        for a, p, n in drawn_triplets(sample, labels, drawing)
    ]
    if "fixed_structure" in settings:
        structure = torch.ones_like(sample)
    names = ("clusters", "spread", "sharpness", "floor", "include_self")
    names = (*names, "order_weight", "order_margin")
    options = {name: settings[name] for name in names if name in settings}
    clusters = F.multi_cluster_loss(sample, structure, **options).item()
    local = LocalVarianceLoss(settings.get("local_neighbors"))(sample, labels, structure=structure)
    expected = sum(losses) / len(losses) + settings.get("weight", 2.0) * clusters
    expected += settings.get("local_weight", 0.0) * local.item()
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)
    assert step.active == sum(loss > 0 for loss in losses) / len(losses)
    assert 0 < step.active < 1


def test_a_row_that_is_not_finite_makes_the_loss_nan():
    run = steps_of(0, weight=0.0)
    images = torch.rand(12, 1, 8, 8)
    images[5, 0, 0, 0] = math.nan
    run.state.model.eval()
    batch = methods.Batch(images, torch.arange(12) % 3, torch.device("cpu"))
    assert run.state.method.loss_of(run.state.model, batch).loss.isnan()


# --- arms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3]], ids=["one class", "singletons"])
def test_without_a_triplet_the_base_loss_is_0(labels):
    base = _DrawnTriplets(0.2, torch.Generator().manual_seed(0))
    embeddings = torch.randn(4, 3).requires_grad_()
    loss = base(embeddings, torch.tensor(labels))
    assert loss == 0
    assert base.active == 0
    assert not torch.autograd.grad(loss, embeddings)[0].any()


def network_of(run: _Run) -> dict[str, torch.Tensor]:
    """What retrieval by the Euclidean distance depends on."""
    state = run.state
    return {**state.model.features.state_dict(), **state.method.head.sample.state_dict()}


def structure_of(run: _Run) -> dict[str, torch.Tensor]:
    return dict(run.state.method.head.structure.state_dict())


ARMS: list[dict[str, Any]] = [
    {"weight": 0.0},
    {"weight": 0.2},
    {"method": "namr", "weight": 0.2},
    {"fixed_structure": True},
    {"structure_gradient": "structure"},
    {"weight": 0.0, "local_weight": 0.5, "structure_gradient": "structure"},
]


def test_all_arms_start_alike_and_see_the_same_batches():
    first, *others = [steps_of(0, **arm) for arm in ARMS]
    for run in others:
        assert_same_bits(network_of(run), network_of(first), "network")
        assert_same_bits(structure_of(run), structure_of(first), "structure")
    first, *others = [steps_of(3, **arm) for arm in ARMS]
    for run in others:
        for name in ("sampling", "augmentation", "drawing"):
            states = [getattr(one.state, name).get_state() for one in (first, run)]
            assert torch.equal(*states), name


@pytest.mark.parametrize("arm", ARMS[-2:], ids=str)
def test_a_structure_that_is_trained_alone_leaves_the_network_as_the_base_loss_does(arm):
    base, alone = steps_of(4, weight=0.0), steps_of(4, **arm)
    assert_same_bits(network_of(alone), network_of(base), "network")
    start = structure_of(steps_of(0))
    assert_same_bits(structure_of(base), start, "structure")
    assert all(not torch.equal(new, start[name]) for name, new in trained_of(alone).items())


@pytest.mark.parametrize("settings", [{}, {"method": "namr"}, {"fixed_structure": True}], ids=str)
def test_the_structure_loss_trains_the_network(settings):
    base, run = steps_of(4, weight=0.0), steps_of(4, **settings)
    differ = [not torch.equal(a, b) for a, b in zip(*map(weights_of, (base, run)), strict=True)]
    assert all(differ)


def test_the_least_weight_is_that_of_the_head():
    assert steps_of(0, least=0.2).state.method.head.least == 0.2


def test_a_fixed_structure_stays_as_it_was():
    start = structure_of(steps_of(0))
    assert_same_bits(structure_of(steps_of(3, fixed_structure=True)), start, "structure")
    assert all(not torch.equal(new, start[name]) for name, new in trained_of(steps_of(3)).items())


def trained_of(run: _Run) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in run.state.method.head.structure.named_parameters()}


def weights_of(run: _Run) -> list[torch.Tensor]:
    state = run.state
    return [*state.model.features.parameters(), *state.method.head.sample.parameters()]


@pytest.mark.parametrize("arm", [ARMS[0], *ARMS[3:5]], ids=str)
def test_an_arm_goes_on_after_an_interruption(arm, tmp_path, monkeypatch):
    without_drawing(monkeypatch)
    config = small(**{"method": "nasa", **arm})
    train(config, tmp_path / "whole")
    done = iter([False] * 4 + [True])
    train(config, tmp_path / "cut", should_stop=lambda: next(done))
    train(config, tmp_path / "cut", resume=True)
    assert_same_bits(*(checkpoint_of(tmp_path / name) for name in ("whole", "cut")), "checkpoint")


# --- retrieval ------------------------------------------------------------------------------------


def test_the_sample_embedding_is_as_the_head_gives_it_and_the_modes_come_back(trained):
    state, images = trained.state, data_sets.load("digits").test.images
    found = state.method.embed(state.model, images)
    assert state.model.training
    assert state.method.head.training
    assert not state.method.head.structure.training
    sample, structure = state.method.embed_both(state.model, images)
    assert torch.equal(found, sample)
    assert found.norm(dim=1).std() > 0.01
    state.model.eval(), state.method.eval()
    expected = state.method.head(state.model.backbone(images))
    state.model.train(), state.method.train()
    torch.testing.assert_close(sample, expected.sample)
    torch.testing.assert_close(structure, expected.structure)


def test_the_groups_are_retrieval_by_the_structure_with_a_shortlist_and_by_the_oracle(trained):
    state, data = trained.state, data_sets.load("digits")
    found = state.method.evaluate(state.model, data)
    for name in ("validation", "test"):
        split = getattr(data, name)
        sample, structure = state.method.embed_both(state.model, split.images)
        searches = {
            "structure": (structure, None),
            "shortlist": (structure, 32),
            "oracle": (oracle_structure(sample, split.labels), None),
        }
        for group, (weights, shortlist) in searches.items():
            metrics = evaluate_adaptive_retrieval(
                sample, weights, split.labels, shortlist=shortlist
            ).as_dict()
            assert {metric: found[f"{name}/{group}/{metric}"] for metric in METRICS} == metrics
        assert found[f"{name}/weights/deviation"] == _spread(structure)["deviation"]
    maps = {found[f"test/{group}/map@r"] for group in ("structure", "shortlist", "oracle")}
    assert len(maps) == 3


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"fixed_structure": True}], ids=str)
def test_without_a_structure_retrieval_is_plain(settings):
    run, split = steps_of(2, **settings), data_sets.load("digits").test
    sample, structure = run.state.method.embed_both(run.state.model, split.images)
    assert (structure == 1).all()
    found = run.state.method.evaluate(run.state.model, data_sets.load("digits"))
    plain = evaluate_retrieval(sample, split.labels).as_dict()
    for metric in METRICS:
        # One search is in float32, the other in float64: a pair may change its order.
        assert found[f"test/structure/{metric}"] == pytest.approx(plain[metric], abs=1e-4)
    assert found["test/weights/deviation"] == found["test/weights/variance_share"] == 0


def test_the_run_folder_holds_the_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_drawing(monkeypatch)
    train(small(method="nasa"), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    groups = ["structure", "shortlist", "oracle", "weights"]
    assert list(metrics["last"]) == [*GROUPS, *groups, "step"]
    assert [list(metrics[group]) for group in groups[:-1]] == [METRICS] * 3
    assert list(metrics["weights"]) == ["deviation", "variance_share"]


def test_the_spread_is_the_deviation_over_rows_and_its_share_of_all_variance():
    by_row = torch.tensor([[0.5, 0.5], [1.5, 1.5]])
    assert _spread(by_row) == {"deviation": 0.5, "variance_share": 1.0}
    assert _spread(by_row.T) == {"deviation": 0.0, "variance_share": 0.0}
    half = torch.tensor([[0.5, 1.0], [1.0, 1.5]])
    assert _spread(half) == pytest.approx({"deviation": 0.25, "variance_share": 0.5})
    assert _spread(torch.ones(3, 2)) == {"deviation": 0.0, "variance_share": 0.0}
