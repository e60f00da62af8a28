"""The program that measures how much of retrieval by the structure an index finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_runs import small, without_drawing

from dmlfast.evaluation import adaptive_search, evaluate_adaptive_retrieval
from dmlfast.training import train

faiss = pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import indexes  # noqa: E402


@pytest.fixture(scope="module")
def given() -> indexes.Retrieval:
    return indexes.drawn(300, 8, 1)


@pytest.fixture(scope="module")
def found(given: indexes.Retrieval) -> dict:
    return indexes.study(given)


def test_a_drawn_set_is_that_of_its_seed(given):
    again, other = indexes.drawn(300, 8, 1), indexes.drawn(300, 8, 2)
    assert torch.equal(given.sample, again.sample)
    assert not torch.equal(given.sample, other.sample)
    assert given.sample.shape == given.structure.shape == (300, 8)
    assert given.labels.bincount().tolist() == [12] * 25
    assert 0.5 <= given.structure.min() < given.structure.max() <= 1.5


def test_the_figures_are_those_of_the_evaluation(given, found):
    exact = evaluate_adaptive_retrieval(given.sample, given.structure, given.labels)
    assert found["exact"] == exact.as_dict()
    # The weights are worth something here.
    assert found["exact"]["map@r"] > 1.1 * found["plain"]["map@r"]
    flat = found["indexes"][0]
    for length in indexes.SHORTLISTS:
        short = evaluate_adaptive_retrieval(
            given.sample, given.structure, given.labels, shortlist=length
        )
        share = flat[f"{length} re-ranked"]["map@r"]
        assert share * exact.map_at_r == pytest.approx(short.map_at_r, abs=1e-4)


def test_longer_lists_have_more_of_the_nearest_and_a_flat_index_most(found):
    columns = ["as found", *(f"{length} re-ranked" for length in indexes.SHORTLISTS)]
    first = found["indexes"][0]
    for entry in found["indexes"]:
        shares = [entry[column]["top-1"] for column in columns]
        assert shares == sorted(shares)
        assert entry["32 re-ranked"]["top-1"] <= first["32 re-ranked"]["top-1"]
    assert first["2 re-ranked"]["top-1"] < 1


def test_a_flat_index_of_the_products_is_exact(given, found):
    assert found["inner product"][0]["index"] == "flat"
    assert found["inner product"][0]["top-1"] == pytest.approx(1, abs=0.01)
    assert found["inner product"][0]["map@r"] == pytest.approx(1, abs=1e-3)
    queries, references = indexes.augmented(given.sample, given.structure)
    products = (queries.double() @ references.double().T).fill_diagonal_(-torch.inf)
    exact = adaptive_search(given.sample, given.structure, k=1, shortlist=None).index[:, 0]
    assert torch.equal(products.argmax(1), exact)


def test_with_lengths_evened_out_the_largest_product_is_the_nearest(given):
    queries, references = indexes.augmented(given.sample, given.structure)
    even = indexes.evened(references).double()
    torch.testing.assert_close(even.norm(dim=1), even[0].norm().expand(300), rtol=1e-6, atol=0)
    padded = torch.nn.functional.pad(queries, (0, 1)).double()
    products = queries.double() @ references.double().T
    assert torch.equal(torch.cdist(padded, even).argmin(1), products.argmax(1))


def test_each_row_is_left_out_of_its_own_list():
    rows = torch.tensor([[0.0], [1.0], [1.0], [3.0]])
    index = indexes.BUILDERS["flat"](rows, "euclidean")
    found = indexes.search(index, rows, 3)
    assert found[0].tolist() == [1, 2, 3]
    assert found[1].tolist() == [2, 0, 3]
    assert indexes.search(index, rows, 5)[3].tolist()[-1] == -1


def test_an_index_is_the_same_each_time(given, found):
    assert indexes.study(given) == found


def test_the_program_writes_what_it_prints(tmp_path: Path, capsys, monkeypatch):
    without_drawing(monkeypatch)
    train(small(method="nasa", dimensions=8), tmp_path / "run")
    out = tmp_path / "indexes.json"
    indexes.main(
        ["--rows", "300", "--dimensions", "8", "--run", str(tmp_path / "run"), "--out", str(out)]
    )
    written = json.loads(out.read_text())
    assert list(written) == ["command", "machine", "sets"]
    assert list(written["sets"]) == ["drawn", "run"]
    assert written["sets"]["run"]["source"]["config"]["method"] == "nasa"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for group, name in (("class", "plain"), ("structure", "exact")):
        found = written["sets"]["run"][name]
        assert found == pytest.approx({metric: metrics[group][metric] for metric in found})
        assert "map@r" in found
    assert capsys.readouterr().out == indexes.tables(written) + "\n"


def test_a_run_without_a_structure_is_refused(tmp_path: Path, monkeypatch):
    without_drawing(monkeypatch)
    train(small(), tmp_path)
    with pytest.raises(SystemExit, match="holds a run of triplet without a structure"):
        indexes.of_run(tmp_path)
