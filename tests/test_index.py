"""Indexes against brute force, and the way from a run to a search by the command line."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from operator_cases import DTYPES
from torch import Tensor
from training_runs import small, without_drawing

import dmlfast.functional as F
from dmlfast.cli import main
from dmlfast.data import Split, read_images
from dmlfast.evaluation import adaptive_search, build_index, index_settings, search_index
from dmlfast.plots import neighbors, plot_neighbors
from dmlfast.training import RunFolderError, train
from dmlfast.training.run_index import RunIndex, recalls
from dmlfast.training.trained import TrainedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

faiss = pytest.importorskip("faiss")
pytest.importorskip("click")
to_hex = pytest.importorskip("matplotlib.colors").to_hex
pytest.importorskip("rich")
pytest.importorskip("sklearn")

KINDS = ("flat", "ivf", "hnsw", "pq")
ROWS, DIMENSIONS = 400, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brute_force(queries: Tensor, rows: Tensor, k: int, metric: str = "euclidean") -> F.Selection:
    return F.nearest_neighbors(queries, rows, k, metric=metric)


# --- build_index and search_index ---


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_flat_index_is_brute_force(dtype: torch.dtype, metric: str) -> None:
    x, queries = randn(ROWS, DIMENSIONS).to(dtype), randn(30, DIMENSIONS, seed=1).to(dtype)
    found = search_index(build_index(x, metric=metric), queries, 9)
    # In float32 both: a tie of rounded rows may come in another order, so distances are compared.
    expected = brute_force(queries.float(), x.float(), 9, metric)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-5, atol=1e-5)
    assert found.distance.dtype == torch.float32
    assert found.index.dtype == torch.int64
    if dtype == torch.float32:
        assert torch.equal(found.index, expected.index)


def test_ivf_that_looks_into_every_cell_is_brute_force() -> None:
    x, queries = randn(ROWS, DIMENSIONS), randn(30, DIMENSIONS, seed=1)
    index = build_index(x, "ivf", generator=seeded(), lists=20, probes=20)
    found, expected = search_index(index, queries, 9), brute_force(queries, x, 9)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-5, atol=1e-5)


def test_the_cells_of_ivf_are_those_of_our_kmeans() -> None:
    x = randn(ROWS, DIMENSIONS)
    index = build_index(x, "ivf", generator=seeded(3), lists=20, iterations=4)
    first = torch.randperm(ROWS, generator=seeded(3))[:20]
    clusters = F.kmeans(x, 20, iterations=4, initial=x[first])
    held = torch.from_numpy(faiss.downcast_index(index.quantizer).reconstruct_n(0, 20))
    assert torch.equal(held, clusters.centers)
    for cell in range(20):
        size = index.invlists.list_size(cell)
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(cell), size).copy()
        assert (clusters.index[torch.from_numpy(ids)] == cell).all()


def test_ivf_finds_more_with_more_probes() -> None:
    x, queries = randn(ROWS, DIMENSIONS), randn(50, DIMENSIONS, seed=1)
    expected = brute_force(queries, x, 10).index
    shares = []
    for probes in (1, 4, 20):
        index = build_index(x, "ivf", generator=seeded(), lists=20, probes=probes)
        found = search_index(index, queries, 10).index
        shares.append((found[:, :, None] == expected[:, None]).any(1).double().mean().item())
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[2] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_the_same_each_time(kind: str) -> None:
    x = randn(ROWS, DIMENSIONS)
    one, other = (faiss.serialize_index(build_index(x, kind, generator=seeded())) for _ in range(2))
    assert (one == other).all()


def test_hnsw_leaves_the_threads_of_faiss_as_they_were() -> None:
    before = faiss.omp_get_max_threads()
    build_index(randn(50, 4), "hnsw")
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1), (3, 5), (60, 7), (300, 12)])
def test_small_and_odd_sizes_are_served_by_default(kind: str, shape: tuple[int, int]) -> None:
    x = randn(*shape)
    index = build_index(x, kind, generator=seeded())
    assert (index.ntotal, index.d) == shape
    found = search_index(index, x, shape[0] + 1)
    assert found.index.shape == (shape[0], shape[0] + 1)
    assert (found.index[:, -1] == -1).all()
    assert (found.distance[:, -1] == math.inf).all()


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_the_own_row_is_left_out_and_its_duplicate_stays(kind: str) -> None:
    x = randn(40, 4)
    x[7] = x[3]
    index = build_index(x, kind, generator=seeded())
    found = search_index(index, x, 5, self_index=torch.arange(40))
    assert not (found.index == torch.arange(40)[:, None]).any()
    assert found.index[3, 0] == 7
    assert found.index[7, 0] == 3
    assert found.distance[3, 0] == 0


def test_one_that_is_no_row_has_nothing_left_out() -> None:
    x = randn(6, 4)
    own = torch.tensor([-1, 1, -1])
    found = search_index(build_index(x), x[:3], 7, self_index=own)
    plain = search_index(build_index(x), x[:3], 7)
    assert torch.equal(found.index[[0, 2]], plain.index[[0, 2]])
    assert found.index[1].tolist() == [*plain.index[1, 1:].tolist(), -1][:7]


@pytest.mark.parametrize(
    ("kind", "rows", "dimensions", "expected"),
    [
        ("flat", 9, 3, {}),
        ("ivf", 10, 3, {"lists": 1, "probes": 1, "iterations": 10}),
        ("ivf", 780, 3, {"lists": 20, "probes": 8, "iterations": 10}),
        ("ivf", 10**6, 3, {"lists": 4000, "probes": 250, "iterations": 10}),
        ("hnsw", 9, 3, {"links": 32, "breadth": 64}),
        ("pq", 9, 64, {"parts": 16}),
        ("pq", 9, 10, {"parts": 2}),
        ("pq", 9, 13, {"parts": 1}),
    ],
)
def test_default_settings(kind: str, rows: int, dimensions: int, expected: dict) -> None:
    assert index_settings(kind, rows, dimensions) == expected


NAN = randn(5, 4)
NAN[2, 1] = math.nan


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"x": torch.ones(3)}, ValueError, "x: expected a 2-D tensor"),
        ({"x": torch.ones(3, 2).long()}, TypeError, "x: expected float16"),
        ({"x": torch.ones(0, 2)}, ValueError, "x: expected a row and a dimension at least"),
        ({"x": NAN}, ValueError, "x: expected values that are finite"),
        ({"x": torch.ones(1, 4), "kind": "pq"}, ValueError, "x: expected at least 2 rows"),
        ({"kind": "tree"}, ValueError, "kind: expected one of .* got 'tree'"),
        ({"metric": "cosine"}, ValueError, "metric: expected one of .* got 'cosine'"),
        ({"kind": "ivf", "metric": "dot"}, ValueError, "metric: expected 'euclidean' with kind"),
        ({"generator": 3}, TypeError, "generator: expected"),
        ({"lists": 3}, ValueError, "lists: expected no setting for an index of kind flat"),
        ({"kind": "pq", "lists": 3}, ValueError, "lists: expected parts for an index of kind pq"),
        ({"kind": "ivf", "lists": 0}, ValueError, "lists: expected 1 to 40, got 0"),
        ({"kind": "ivf", "lists": 41}, ValueError, "lists: expected 1 to 40, got 41"),
        ({"kind": "ivf", "lists": 4, "probes": 5}, ValueError, "probes: expected 1 to 4, got 5"),
        ({"kind": "ivf", "iterations": 1.5}, TypeError, "iterations: expected an integer"),
        ({"kind": "hnsw", "links": 1}, ValueError, "links: expected at least 2, got 1"),
        ({"kind": "pq", "parts": 3}, ValueError, "parts: expected a divisor of 4 dimensions"),
    ],
)
def test_build_index_names_what_is_wrong(
    arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_index(**{"x": randn(40, 4), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"index": object()}, TypeError, "index: expected a faiss index, got object"),
        ({"queries": torch.ones(3, 5)}, ValueError, "queries: expected 4 dimensions"),
        ({"queries": NAN}, ValueError, "queries: expected values that are finite"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"self_index": torch.zeros(2).long()}, ValueError, "self_index: expected shape"),
        ({"self_index": torch.zeros(3)}, TypeError, "self_index: expected an integer dtype"),
    ],
)
def test_search_index_names_what_is_wrong(
    arguments: dict, error: type[Exception], message: str
) -> None:
    given = {"index": build_index(randn(40, 4)), "queries": randn(3, 4), **arguments}
    with pytest.raises(error, match=message):
        search_index(**given)


# --- adaptive_search of some of the rows of an index ---


@pytest.mark.parametrize("shortlist", [12, None])
@pytest.mark.parametrize("indexed", [True, False])
def test_some_rows_find_what_they_find_among_all(shortlist: int | None, indexed: bool) -> None:
    x, structure = randn(60, 8), 0.5 + torch.rand(60, 8, generator=seeded())
    chosen = torch.tensor([4, 9, 30])
    index = build_index(x) if indexed and shortlist else None
    whole = adaptive_search(x, structure, k=5, shortlist=shortlist)
    some = adaptive_search(
        *(x[chosen], structure[chosen], x, 5),
        shortlist=shortlist,
        index=index,
        self_index=chosen,
    )
    assert torch.equal(some.index, whole.index[chosen])
    assert torch.equal(some.distance, whole.distance[chosen])


def test_the_own_row_within_a_batch_is_not_to_be_named() -> None:
    x = randn(5, 3)
    with pytest.raises(ValueError, match="self_index: expected None without references"):
        adaptive_search(x, x.abs(), k=2, self_index=torch.arange(5))


# --- from a run to a search ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of finished runs; tests only read them."""
    parent = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_drawing(monkeypatch)
        for method, settings in (("triplet", {}), ("nasa", {"dimensions": 8})):
            train(small(method=method, **settings), parent / method)
    return {method: parent / method for method in ("triplet", "nasa")}


@pytest.fixture(scope="module")
def indexes(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunIndex]:
    """Flat indexes of the test split; tests only read them."""
    parent = tmp_path_factory.mktemp("indexes")
    for method, run in runs.items():
        assert main(["index", "build", str(run), "--out", str(parent / method)]) == 0
    return {method: RunIndex.open(parent / method) for method in runs}


def command(*arguments: object) -> None:
    assert main(["index", *map(str, arguments)]) == 0


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    assert main(["index", *map(str, arguments)]) == code
    return capsys.readouterr().err


def test_a_run_embeds_by_the_weights_that_validation_selected(runs, tmp_path):
    shutil.copytree(runs["triplet"], tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.pt"
    checkpoint = torch.load(file, weights_only=True)
    for name in ("head.weight", "head.bias"):
        checkpoint["selected_model"][name] = -checkpoint["selected_model"][name]
    torch.save(checkpoint, file)
    run, other = TrainedRun.open(runs["triplet"]), TrainedRun.open(tmp_path / "run")
    images = run.data.test.images[:20]
    torch.testing.assert_close(other.embed(images).sample, -run.embed(images).sample)


@pytest.mark.parametrize("method", ["triplet", "nasa"])
def test_a_search_of_a_run_has_the_recall_that_the_run_reports(runs, indexes, method):
    metrics = json.loads((runs[method] / "metrics.json").read_text())
    index, run = indexes[method], indexes[method].run()
    assert run.step == index.description["step"] == metrics["selected_step"]
    queries = index.queries(run, "test")
    searches = {None: "class"} | ({32: "shortlist"} if method == "nasa" else {})
    for shortlist, group in searches.items():
        found = recalls(index.search(queries, 8, shortlist=shortlist), queries, index)
        for name, value in found["class"].items():
            # Distances that rounding to float32 makes equal come in any order: two queries' worth.
            assert value == pytest.approx(metrics[group][name], abs=2 / len(queries.images))


def test_rows_are_of_unit_length_where_the_run_compares_such(indexes):
    for method, index in indexes.items():
        rows = torch.from_numpy(index.index.reconstruct_n(0, index.index.ntotal))
        is_unit = bool(((rows.norm(dim=1) - 1).abs() < 1e-5).all())
        assert is_unit == index.description["normalized"] == (method == "triplet")


def test_recall_leaves_out_a_query_that_is_alone_in_its_class(indexes):
    index, run = indexes["triplet"], indexes["triplet"].run()
    queries = index.queries(run, "test", 4)
    labels = torch.arange(len(index.labels))
    labels[1] = labels[0]
    split = queries.split
    alone = Split(split.images, labels[:4], labels[:4])
    other = RunIndex(
        index.path,
        index.description,
        None,
        {"ids": index.ids, "labels": labels, "subclasses": labels},
    )
    found = F.Selection(torch.zeros(4, 1), torch.tensor([[1], [2], [0], [0]]))
    # Of the queries 0 and 1, which are alike, the first finds the other.
    scores = recalls(found, queries._replace(split=alone), other)
    assert scores == {"class": {"recall@1": 0.5}, "subclass": {"recall@1": 0.5}}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_built_is_what_is_searched(runs, tmp_path, kind, capsys):
    settings = ["--lists", 12, "--probes", 3] if kind == "ivf" else []
    command("build", runs["triplet"], "--kind", kind, *settings, "--out", tmp_path / "index")
    assert capsys.readouterr().out.splitlines()[-1] == f"Index: {tmp_path / 'index'}"
    command("search", tmp_path / "index", "--k", 3, "--out", tmp_path / "found.csv")
    assert "recall@3" in capsys.readouterr().out
    index = RunIndex.open(tmp_path / "index")
    sample, _ = index.run().embed(index.run().data.test.images)
    chosen = {"lists": 12, "probes": 3, "iterations": 10} if kind == "ivf" else {}
    own = build_index(sample, kind, generator=seeded(), **chosen)
    expected = search_index(own, sample, 3, self_index=torch.arange(len(sample)))
    rows = list(csv.DictReader((tmp_path / "found.csv").open(encoding="utf-8")))
    found = [(row["query"], int(row["rank"]), int(row["neighbor"])) for row in rows]
    assert found == [
        (f"test {query}", rank, neighbor)
        for query, neighbors in enumerate(expected.index.tolist())
        for rank, neighbor in enumerate(neighbors, 1)
        if neighbor >= 0
    ]
    kept = expected.distance[expected.index >= 0]
    torch.testing.assert_close(torch.tensor([float(row["distance"]) for row in rows]), kept)
    labels = index.labels.tolist()
    for row in rows:
        assert int(row["neighbor_class"]) == labels[int(row["neighbor"])]
        assert int(row["query_class"]) == labels[int(row["query"].split()[1])]


def test_the_folder_says_what_it_holds(runs, tmp_path):
    command("build", runs["nasa"], "--kind", "ivf", "--split", "train", "--out", tmp_path / "index")
    described = json.loads((tmp_path / "index" / "index.json").read_text())
    run = TrainedRun.open(runs["nasa"])
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == sorted(RunIndex.FILES)
    assert described["config"] == run.config.as_dict()
    assert described["settings"] == index_settings("ivf", len(run.data.train), 8)
    expected = {
        **{"kind": "ivf", "metric": "euclidean", "normalized": False, "split": "train"},
        **{"rows": len(run.data.train), "dimensions": 8, "step": run.step, "data": "digits"},
    }
    assert expected.items() <= described.items()
    assert (tmp_path / "index" / described["run"]).resolve() == runs["nasa"].resolve()
    assert set(described["versions"]) == {"dmlfast", "torch", "faiss"}


def test_the_default_folder_lies_in_the_run(runs, tmp_path):
    shutil.copytree(runs["triplet"], tmp_path / "run")
    command("build", tmp_path / "run", "--kind", "pq", "--split", "validation")
    (tmp_path / "run").rename(tmp_path / "moved")
    index = RunIndex.open(tmp_path / "moved" / "index-validation-pq")
    assert index.run().path == tmp_path / "moved"


def test_results_by_the_structure_are_those_of_adaptive_search(indexes, tmp_path):
    index, run = indexes["nasa"], indexes["nasa"].run()
    out = tmp_path / "found.json"
    command("search", index.path, "--k", 4, "--shortlist", 9, "--out", out)
    sample, structure = run.embed(run.data.test.images)
    expected = adaptive_search(sample, structure, k=4, shortlist=9, index=index.index)
    rows = json.loads(out.read_text())
    found = torch.tensor([row["neighbor"] for row in rows]).view(-1, 4)
    assert torch.equal(found, expected.index)
    distances = torch.tensor([row["distance"] for row in rows]).view(-1, 4)
    torch.testing.assert_close(distances, expected.distance)


@pytest.mark.parametrize(
    ("options", "same"), [(["--no-structure"], False), (["--structure"], True), ([], True)]
)
def test_a_run_with_a_structure_is_searched_by_it_unless_told(indexes, tmp_path, options, same):
    index = indexes["nasa"]
    command("search", index.path, "--first", 50, *options, "--out", tmp_path / "found.json")
    found = torch.tensor([r["neighbor"] for r in json.loads((tmp_path / "found.json").read_text())])
    queries = index.queries(index.run(), "test", 50)
    plain, structured = index.search(queries), index.search(queries, shortlist=32)
    assert not torch.equal(plain.index, structured.index)
    assert torch.equal(found.view(50, 10), (structured if same else plain).index)


def test_another_split_has_no_row_of_its_own(indexes, tmp_path, capsys):
    index, run = indexes["triplet"], indexes["triplet"].run()
    out = tmp_path / "found.json"
    command("search", index.path, "--queries", "train", "--first", 7, "--k", 2, "--out", out)
    assert "7 queries in" in capsys.readouterr().out
    rows = search_index(index.index, run.embed(run.data.train.images[:7]).sample, 2).index
    assert [r["neighbor"] for r in json.loads(out.read_text())] == rows.flatten().tolist()


@pytest.mark.parametrize("is_inverted", [False, True])
def test_an_image_file_finds_the_image_that_it_is(indexes, tmp_path, is_inverted, capsys):
    image_of = pytest.importorskip("PIL.Image")
    index, run = indexes["triplet"], indexes["triplet"].run()
    files = []
    for number in (3, 90):
        ink = (255 * run.data.test.images[number, 0]).round().byte().numpy()
        files.append(tmp_path / f"{number}.png")
        image_of.fromarray(ink if is_inverted else 255 - ink).save(files[-1])
    options = [part for file in files for part in ("--queries", file)]
    out = tmp_path / "found.json"
    command("search", index.path, *options, "--k", 1, "--out", out)
    # No labels, no recall.
    assert "recall" not in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [row["neighbor"] for row in found] == [3, 90]
    assert [row["query"] for row in found] == [str(file) for file in files]
    assert found[0]["query_class"] is None


def test_images_of_any_shape_and_mode_become_squares(tmp_path):
    image_of = pytest.importorskip("PIL.Image")
    image = image_of.new("RGBA", (20, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (5, 10, 15, 30))
    image.save(tmp_path / "a.png")
    (read,) = read_images([tmp_path / "a.png"], 8)
    expected = torch.zeros(1, 8, 8)
    expected[:, 2:6, 3:5] = 1
    assert torch.equal(read, expected)


def test_a_picture_is_written(indexes, tmp_path):
    command("search", indexes["triplet"].path, "--k", 3, "--picture", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# --- the picture ---


def drawn(**given: object) -> tuple[list, list, list]:
    """The panels of three queries and four places, one of them empty: queries, found, empty."""
    index = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1], [2, 0, 1, -1]])
    labels = torch.tensor([7, 7, 8, 8, 8]), torch.tensor([7, 8, 8])
    figure = neighbors._figure_of(
        torch.rand(3, 1, 6, 6, generator=seeded()),
        torch.rand(5, 1, 6, 6, generator=seeded(1)),
        index,
        given.get("query_labels", labels[1]),
        given.get("reference_labels", labels[0]),
        given.get("class_names"),
        "a title",
    )
    shown = [axes for axes in figure.axes if axes.images]
    queries = [shown[0], shown[5], shown[10]]
    found = [axes for axes in shown if axes not in queries]
    return queries, found, [axes for axes in figure.axes if not axes.images]


def frame_of(axes: Axes) -> str:
    return to_hex(axes.spines["top"].get_edgecolor())


def test_a_picture_has_a_panel_for_each_query_and_each_neighbour():
    queries, found, empty = drawn()
    assert (len(queries), len(found), len(empty)) == (3, 11, 1)
    assert not empty[0].axison
    references = torch.rand(5, 1, 6, 6, generator=seeded(1))
    for axes, row in zip(found, [0, 1, 2, 3, 4, 3, 2, 1, 2, 0, 1], strict=True):
        assert torch.equal(torch.tensor(axes.images[0].get_array()), references[row, 0])
    assert [axes.get_title() for axes in found[:4]] == ["1", "2", "3", "4"]


def test_frames_tell_right_from_wrong_by_colour_and_by_line():
    _, found, _ = drawn()
    right = [True, True, False, False, True, True, True, False, True, False, False]
    green, red = neighbors._RIGHT, neighbors._WRONG
    assert [frame_of(axes) for axes in found] == [green if r else red for r in right]
    assert [axes.spines["top"].get_linestyle() for axes in found] == [
        "-" if r else "--" for r in right
    ]


def test_pictures_have_the_names_of_their_classes():
    queries, found, _ = drawn(class_names={7: "$seven$", 8: "eight"})
    assert [axes.get_xlabel() for axes in queries] == ["$seven$", "eight", "eight"]
    assert [axes.get_xlabel() for axes in found[:3]] == ["$seven$", "$seven$", "eight"]
    # Of characters nothing is read as a formula.
    assert not found[0].xaxis.label.get_parse_math()


def test_without_labels_frames_say_nothing():
    _, found, _ = drawn(query_labels=None)
    assert {frame_of(axes) for axes in found} == {neighbors._UNKNOWN}
    assert {axes.get_xlabel() for axes in found} == {""}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": torch.ones(2, 6, 6)}, ValueError, r"queries: expected shape \(N, 1, H, W\)"),
        ({"references": [1]}, TypeError, "references: expected a floating-point Tensor, got list"),
        ({"index": torch.ones(2, 3)}, TypeError, "index: expected a Tensor of int64"),
        ({"index": torch.ones(3, 3).long()}, ValueError, r"index: expected shape \(2, k\)"),
        ({"index": torch.tensor([[0], [5]])}, ValueError, "index: expected rows from 0 to 4"),
        ({"query_labels": torch.ones(2)}, TypeError, "query_labels: expected a Tensor of an int"),
        ({"reference_labels": torch.arange(3)}, ValueError, r"reference_labels: expected .*\(5,\)"),
        ({"class_names": ["a"]}, ValueError, "class_names: expected a name for every id"),
        ({"path": "a.pdf"}, ValueError, "path: expected a name that ends in .png"),
    ],
)
def test_plot_neighbors_names_what_is_wrong_and_writes_nothing(tmp_path, arguments, error, message):
    given = {
        "queries": torch.rand(2, 1, 6, 6),
        "references": torch.rand(5, 1, 6, 6),
        "index": torch.zeros(2, 3, dtype=torch.int64),
        "query_labels": torch.arange(2),
        "reference_labels": torch.arange(5),
        **arguments,
    }
    given["path"] = tmp_path / given.get("path", "a.png")
    with pytest.raises(error, match=message):
        plot_neighbors(**given)
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_the_readme_run(runs, tmp_path, monkeypatch):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^dmlfast (index .*)$", readme, re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["build", "search"]
    shutil.copytree(runs["triplet"], tmp_path / "runs" / "digits-nearest-0")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert main(line.split()) == 0
    assert (tmp_path / "neighbors.png").exists()


# --- what a command refuses ---


def test_an_index_is_replaced_only_when_told(runs, tmp_path, capsys):
    out = tmp_path / "index"
    command("build", runs["triplet"], "--out", out)
    assert "already holds an index" in error_of(capsys, "build", runs["triplet"], "--out", out)
    command("build", runs["triplet"], "--kind", "pq", "--out", out, "--overwrite")
    assert RunIndex.open(out).description["kind"] == "pq"


def test_another_run_than_was_indexed_is_refused(runs, indexes, capsys):
    error = error_of(capsys, "search", indexes["triplet"].path, "--run", runs["nasa"])
    assert "is not what" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", RunIndex.FILES)
def test_a_damaged_or_missing_file_is_named_or_found(indexes, tmp_path, name):
    shutil.copytree(indexes["triplet"].path, tmp_path / "index")
    file = tmp_path / "index" / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(RunFolderError, match="holds a damaged index"):
        RunIndex.open(tmp_path / "index")
    file.unlink()
    with pytest.raises(RunFolderError, match=f"holds no index: there is no {name}"):
        RunIndex.open(tmp_path / "index")


def test_files_of_two_indexes_are_refused(indexes, tmp_path):
    shutil.copytree(indexes["triplet"].path, tmp_path / "index")
    shutil.copy(indexes["nasa"].path / "index.faiss", tmp_path / "index")
    with pytest.raises(RunFolderError, match="holds files of several indexes"):
        RunIndex.open(tmp_path / "index")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lists", 3], "lists: expected no setting for an index of kind flat, got lists."),
        (["--kind", "ivf", "--lists", 5000], "lists: expected 1 to 674, got 5000."),
        (["--kind", "pq", "--parts", 3], "parts: expected a divisor of 4 dimensions, got 3."),
    ],
)
def test_build_names_the_setting_and_writes_nothing(runs, tmp_path, capsys, options, message):
    out = tmp_path / "index"
    assert message in error_of(capsys, "build", runs["triplet"], *options, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("method", "options", "message", "code"),
    [
        ("triplet", ["--structure"], "structure: expected a run with a structure", 1),
        ("triplet", ["--shortlist", 40], "shortlist: expected a run with a structure", 1),
        ("nasa", ["--shortlist", 5], "shortlist: expected at least k, 10, or None, got 5", 1),
        ("nasa", ["--shortlist", 20, "--no-structure"], "exclude each other", 2),
        ("nasa", ["--queries", "test", "--queries", "train"], "queries: expected one split", 1),
        ("nasa", ["--queries", "none.png"], "files: expected images, got 'none.png'", 1),
        ("nasa", ["--queries", "none.png", "--first", 2], "first: expected none with image", 1),
        ("nasa", ["--out", "a.txt"], "ends in .csv or .json", 2),
        ("nasa", ["--picture", "a.jpg"], "ends in .png", 2),
        ("nasa", ["--picture", "none/a.png"], "an existing folder", 2),
    ],
)
def test_search_names_what_is_wrong(indexes, capsys, method, options, message, code):
    assert message in error_of(capsys, "search", indexes[method].path, *options, code=code)


def test_a_folder_without_a_run_or_an_index_is_one_sentence(tmp_path, capsys):
    assert f"{tmp_path} holds no run" in error_of(capsys, "build", tmp_path)
    assert f"{tmp_path} holds no index" in error_of(capsys, "search", tmp_path)
