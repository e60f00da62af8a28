"""From a run to its index and a search, by the command line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import small, without_drawing

import dmlfast.functional as F
from dmlfast.cli import main
from dmlfast.data import Split
from dmlfast.evaluation import (
    INDEX_SETTINGS,
    adaptive_search,
    build_index,
    index_settings,
    search_index,
)
from dmlfast.training import RunFolderError, train
from dmlfast.training.run_index import RunIndex, recalls
from dmlfast.training.trained import TrainedRun

for _package in ("click", "faiss", "matplotlib", "rich", "sklearn"):
    pytest.importorskip(_package)


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


def faiss_rows(flat: Any) -> torch.Tensor:
    """The rows of a flat index, which another index may hold."""
    faiss = pytest.importorskip("faiss")
    return torch.as_tensor(faiss.downcast_index(flat).reconstruct_n(0, flat.ntotal))


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
        rows = torch.as_tensor(index.index.reconstruct_n(0, index.index.ntotal))
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


@pytest.mark.parametrize("kind", INDEX_SETTINGS)
def test_what_is_built_is_what_is_searched(runs, tmp_path, kind, capsys):
    settings = ["--lists", 12, "--probes", 3] if kind == "ivf" else []
    command("build", runs["triplet"], "--kind", kind, *settings, "--out", tmp_path / "index")
    assert capsys.readouterr().out.splitlines()[-1] == f"Index: {tmp_path / 'index'}"
    command("search", tmp_path / "index", "--k", 3, "--out", tmp_path / "found.csv")
    assert "recall@3" in capsys.readouterr().out
    index = RunIndex.open(tmp_path / "index")
    sample, _ = index.run().embed(index.run().data.test.images)
    chosen = {"lists": 12, "probes": 3, "iterations": 10} if kind == "ivf" else {}
    own = build_index(sample, kind, generator=torch.Generator().manual_seed(0), **chosen)
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


def test_by_the_structure_is_ranked_only_what_the_index_finds(runs, tmp_path):
    run = TrainedRun.open(runs["nasa"])
    index = RunIndex.build(run, tmp_path / "index", kind="ivf", lists=40, probes=1)
    queries = index.queries(run, "test")
    sample, structure = queries.embedded
    found = index.search(queries, 10, shortlist=32)
    expected = adaptive_search(sample, structure, k=10, shortlist=32, index=index.index)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.distance, expected.distance)
    # One cell of forty has some 17 rows, and some have fewer than are asked for.
    assert (found.index < 0).any()


def test_the_cells_are_those_of_the_seed(runs, tmp_path):
    run = TrainedRun.open(runs["triplet"])
    sample = run.embed(run.data.test.images).sample
    cells = []
    for seed in (0, 5):
        command("build", runs["triplet"], "--kind", "ivf", "--seed", seed, "--out", tmp_path / "i")
        held = RunIndex.open(tmp_path / "i")
        own = build_index(sample, "ivf", generator=torch.Generator().manual_seed(seed))
        rows = [faiss_rows(index.quantizer) for index in (held.index, own)]
        assert torch.equal(*rows)
        cells.append(rows[0])
        shutil.rmtree(tmp_path / "i")
    assert not torch.equal(*cells)


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


@pytest.mark.parametrize("method", ["triplet", "nasa"])
def test_more_neighbours_than_rows_are_all_rows(indexes, tmp_path, method, capsys):
    index, out = indexes[method], tmp_path / "found.json"
    options = ["--queries", "test", "--first", 2, "--no-structure"]
    command("search", index.path, *options, "--k", 10**11, "--out", out)
    printed = capsys.readouterr().out
    assert printed.startswith("k: 674 rows are indexed, fewer than 100000000000: as many are")
    assert "recall@674" in printed
    found = [row["neighbor"] for row in json.loads(out.read_text())]
    for query in range(2):
        others = [row for row in range(674) if row != query]
        assert sorted(found[query * 673 : (query + 1) * 673]) == others


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
    # No labels, no recall; but the classes of what was found.
    printed = capsys.readouterr().out
    assert "recall" not in printed
    for file, number in zip(files, (3, 90), strict=True):
        name = run.data.class_names[run.data.test.labels[number]]
        assert f"\n{file}: {name} " in printed
    found = json.loads(out.read_text())
    assert [row["neighbor"] for row in found] == [3, 90]
    assert [row["query"] for row in found] == [str(file) for file in files]
    assert found[0]["query_class"] is None


@pytest.mark.parametrize("is_split", [True, False])
def test_a_picture_has_queries_of_the_whole_split_and_what_they_found(
    indexes, tmp_path, monkeypatch, is_split
):
    seen = []

    def plot_neighbors(*given, **named):
        seen.append((given, named))
        given[3].write_bytes(b"png")

    monkeypatch.setattr("dmlfast.plots.plot_neighbors", plot_neighbors)
    index, run = indexes["triplet"], indexes["triplet"].run()
    file = tmp_path / "query.png"
    pytest.importorskip("PIL.Image").new("L", (8, 8), 255).save(file)
    options = [] if is_split else ["--queries", file]
    command("search", index.path, "--k", 15, *options, "--picture", tmp_path / "a.png")
    test = run.data.test
    # Eight at even distances, of twelve places each.
    chosen = torch.arange(8) * len(test) // 8 if is_split else torch.tensor([0])
    queries = index.queries(run, "test") if is_split else index.file_queries(run, [file])
    [((images, references, found, _), named)] = seen
    assert torch.equal(images, queries.images[chosen])
    assert torch.equal(references, test.images)
    assert torch.equal(found, index.search(queries, 15).index[chosen, :12])
    if is_split:
        assert torch.equal(named["query_labels"], test.labels[chosen])
    else:
        assert named["query_labels"] is None
    assert torch.equal(named["reference_labels"], test.labels)
    assert named["class_names"] == run.data.class_names
    assert named["title"] == f"digits, nearest in the test split, step {run.step}"


def test_a_picture_is_written(indexes, tmp_path):
    command("search", indexes["triplet"].path, "--k", 3, "--picture", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_commands_of_the_readme_run(runs, tmp_path, monkeypatch):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^dmlfast (index .*)$", readme, re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["build", "search"]
    shutil.copytree(runs["triplet"], tmp_path / "runs" / "digits-nearest-0")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert main(line.split()) == 0
    assert (tmp_path / "runs" / "neighbors.png").exists()


# --- what a command refuses ---


def test_an_index_is_replaced_only_when_told(runs, tmp_path, capsys):
    out = tmp_path / "index"
    command("build", runs["triplet"], "--out", out)
    assert "already holds an index" in error_of(capsys, "build", runs["triplet"], "--out", out)
    command("build", runs["triplet"], "--kind", "pq", "--out", out, "--overwrite")
    assert RunIndex.open(out).description["kind"] == "pq"


def test_a_run_that_has_moved_is_to_be_named(runs, indexes, tmp_path, capsys):
    index = tmp_path / "deep" / "index"
    shutil.copytree(indexes["triplet"].path, index)
    where = (index / indexes["triplet"].description["run"]).resolve()
    error = error_of(capsys, "search", index)
    assert f"{where}, where the run of {index} was, holds no run: there is no config.json." in error
    assert "name it with --run" in error
    assert error.count("\n") == 1
    command("search", index, "--run", runs["triplet"], "--first", 1)
    # What was named is not said to have moved.
    assert f"Error: {tmp_path} holds no run" in error_of(capsys, "search", index, "--run", tmp_path)


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
        (["--kind", "ivf", "--iterations", 3 * 10**12], "iterations: expected 0 to 1048576, got"),
        (["--kind", "hnsw", "--links", 3 * 10**9], "links: expected 2 to 1024, got 3000000000."),
        (["--kind", "hnsw", "--breadth", 3 * 10**9], "breadth: expected 2 to 1048576, got"),
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
        ("nasa", ["--queries", __file__], f"files: expected images, got '{__file__}'", 1),
        ("nasa", ["--queries", __file__, "--first", 2], "first: expected none with image", 1),
        (
            *("nasa", ["--queries", "valid", "--first", 2]),
            *("queries: expected train, validation, test or image files, got 'valid'.\n", 1),
        ),
        ("nasa", ["--queries", __file__, "--queries", "b.png"], "image files, got 'b.png'.", 1),
        ("nasa", ["--out", "a.txt"], "ends in .csv or .json", 2),
        ("nasa", ["--picture", "a.jpg"], "ends in .png", 2),
        ("nasa", ["--picture", "none/a.png"], "an existing folder", 2),
    ],
)
def test_search_names_what_is_wrong(indexes, capsys, method, options, message, code):
    assert message in error_of(capsys, "search", indexes[method].path, *options, code=code)


def test_a_run_without_weights_is_one_sentence(runs, tmp_path, capsys):
    shutil.copy(runs["triplet"] / "config.json", tmp_path)
    error = error_of(capsys, "build", tmp_path)
    assert f"{tmp_path} holds no trained weights: there is no checkpoint.pt, which a run" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(("option", "ending"), [("--out", ".csv"), ("--picture", ".png")])
def test_a_file_that_cannot_be_written_is_named_after_the_table(
    indexes, tmp_path, capsys, option, ending
):
    # So long that no file beside it can have a longer one.
    file = tmp_path / ("a" * 251 + ending)
    index = indexes["triplet"].path
    assert main(["index", "search", str(index), "--k", "1", option, str(file)]) == 1
    printed = capsys.readouterr()
    assert "recall@1" in printed.out
    assert "Written" not in printed.out
    said = " ".join(printed.err.split())
    assert said == f"Error: {file} cannot be written: File name too long."
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_or_an_index_is_one_sentence(tmp_path, capsys):
    assert f"{tmp_path} holds no run" in error_of(capsys, "build", tmp_path)
    assert f"{tmp_path} holds no index" in error_of(capsys, "search", tmp_path)
