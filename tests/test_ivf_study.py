"""The program that compares the cells of an IVF index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_runs import small, without_drawing

from dmlfast.training import train

faiss = pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import ivf  # noqa: E402


def test_a_mixture_is_that_of_its_seed():
    one, again, other = (ivf.mixture(300, 4, 1.0, seed) for seed in (1, 1, 2))
    assert torch.equal(one.rows, again.rows)
    assert not torch.equal(one.rows, other.rows)
    assert one.rows.shape == (300, 4)
    assert one.queries.shape == (ivf.QUERIES, 4)


@pytest.mark.parametrize("name", ivf.BUILDERS)
def test_with_a_probe_for_every_cell_all_rows_are_read_and_all_nearest_found(name):
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    given = ivf.Rows(rows, rows, torch.arange(400))
    found = ivf.compared(given, 0)[name]
    assert ivf.lists_of(rows) == 10
    assert found.read == sorted(found.read)
    assert found.recall == sorted(found.recall)
    everything = ivf.MEASURED.index(10)
    assert found.recall[0] < found.recall[everything] == 1
    assert found.read[0] < found.read[everything] == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 3])
def test_faiss_has_the_seed_and_as_many_iterations(seed):
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    # The bound keeps faiss from a warning.
    own = faiss.Kmeans(4, 10, niter=10, seed=seed + 1, min_points_per_centroid=1)
    own.train(rows.numpy())
    index = ivf.by_faiss(rows, seed)
    held = faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist)
    assert torch.equal(torch.as_tensor(held), torch.as_tensor(own.centroids))


def test_differences_are_paired_and_at_as_many_rows():
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    curves = {
        "kmeans": ivf.Curve([0.5] * 11, [0.15] * 11, 1.0),
        "k-means++": ivf.Curve([0.7] * 11, [0.3] * 11, 3.0),
        "faiss": ivf.Curve([0.4, *[0.6] * 10], [0.1, *[0.2] * 10], 2.0),
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ivf, "compared", lambda given, seed: curves)
        found = ivf.study(lambda seed: ivf.Rows(rows, rows, torch.arange(400)), 3)
    first = found["probes"][0]
    assert first["kmeans"]["difference"] == {"mean": pytest.approx(0.1), "half_width": 0}
    # Half way between one probe and two of faiss's.
    assert first["kmeans"]["as many rows"]["mean"] == pytest.approx(0)
    assert first["k-means++"]["as many rows"]["mean"] == pytest.approx(0.1)
    assert found["seconds"] == {"kmeans": 1, "k-means++": 3, "faiss": 2}


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Not the one of the study; afterwards as many as before."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def test_the_program_writes_what_it_prints(tmp_path: Path, capsys, monkeypatch, two_threads):
    without_drawing(monkeypatch)
    train(small(), tmp_path / "run")
    sizes = ["--rows", "200", "--dimensions", "4", "--seeds", "2"]
    ivf.main([*sizes, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "ivf.json")])
    written = json.loads((tmp_path / "ivf.json").read_text())
    assert written["machine"]["threads"] == "1" == str(torch.get_num_threads())
    assert faiss.omp_get_max_threads() == 1
    assert list(written["sets"]) == ["overlapping", "separate", "run"]
    assert written["sets"]["run"]["rows"] == 674
    assert capsys.readouterr().out == ivf.tables(written) + "\n"
