"""Classes that scatter along the axes of their group, and what teaches a structure their shape."""

from __future__ import annotations

import json
from pathlib import Path

import anisotropy
import pytest
import torch
from anisotropy import ARMS, DIMENSIONS, GROUPS, Case

pytest.importorskip("faiss")

AXES, ROTATED = Case(False, True), Case(True, True)


@pytest.fixture(autouse=True)
def _keep_threads(set_threads) -> None:
    """The number of threads after a test is that before it."""
    set_threads(1)


def within(is_rotated: bool) -> torch.Tensor:
    """(GROUPS, DIMENSIONS) the variance within the classes of a group."""
    training, test = anisotropy.samples(0, is_rotated)
    found = torch.zeros(GROUPS, DIMENSIONS)
    for part in (training, test):
        for label in part.labels.unique().tolist():
            rows = part.features[part.labels == label]
            group = int(rows[0, :GROUPS].argmax())
            found[group] += rows[:, GROUPS:].var(0)
    return found * GROUPS / (2 * anisotropy.CLASSES)


def test_classes_scatter_along_the_axes_of_their_group():
    # Variances of 1 and 1/16 from 480 degrees of freedom each: known to 1/15, and four times that.
    wide = torch.eye(GROUPS).repeat_interleave(DIMENSIONS // GROUPS, 1)
    torch.testing.assert_close(within(False), wide * (1 - 1 / 16) + 1 / 16, rtol=0.26, atol=0.0)


def test_rotated_classes_scatter_alike_along_all_axes():
    expected = torch.full((GROUPS, DIMENSIONS), (1 + 3 / 16) / 4)
    torch.testing.assert_close(within(True), expected, rtol=0.26, atol=0.0)


def test_no_rotation_of_all_undoes_those_of_the_groups():
    turned = anisotropy.rotations()
    torch.testing.assert_close(turned @ turned.mT, torch.eye(DIMENSIONS).expand_as(turned))
    own = torch.arange(DIMENSIONS) // (DIMENSIONS // GROUPS) == torch.arange(GROUPS)[:, None]
    covariances = torch.einsum("gik,gk,gjk->gij", turned, own.float(), turned)
    first, second = covariances[:2]
    assert not torch.allclose(first @ second, second @ first)


def test_classes_of_the_test_are_others():
    training, test = anisotropy.samples(0, False)
    assert not torch.equal(training.features, test.features)
    assert torch.equal(training.labels, test.labels)


def map_at_r(arm: str, case: Case) -> tuple[float, float]:
    """Plain, and by the structure that the arm has learnt."""
    found = anisotropy.do(anisotropy.Run(case, arm, 0, 60))
    return found["plain MAP@R"], found["structure MAP@R"]


def test_the_variance_of_the_class_teaches_the_shape_of_a_neighborhood():
    plain, by_structure = map_at_r("local variance, class, 0.05", AXES)
    assert by_structure > plain + 0.1


def test_no_weights_of_single_dimensions_help_where_all_scatter_alike():
    plain, by_structure = map_at_r("local variance, class, 0.05", ROTATED)
    assert by_structure < plain + 0.02


def test_a_given_embedding_is_that_of_no_training():
    assert len({map_at_r(arm, AXES)[0] for arm in ("triplet", "NASA, weight 0.2")}) == 1


def test_the_structure_alone_leaves_the_sample_embedding_to_the_triplet_loss():
    learnt = Case(False, False)
    plain = {arm: map_at_r(arm, learnt)[0] for arm in list(ARMS) if "alone" in arm}
    assert set(plain.values()) == {map_at_r("triplet", learnt)[0]}
    assert map_at_r("NASA, weight 2.0", learnt)[0] not in plain.values()


def test_the_study_is_written_with_paired_differences(tmp_path: Path, capsys):
    out = tmp_path / "anisotropy.json"
    arms = ["--arms", "NASA, weight 2.0", "local variance, class"]
    assert anisotropy.main([*arms, "--seeds", "2", "--steps", "2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    learnt, given = (result["summary"][f"along axes, embedding {x}"] for x in ("learnt", "given"))
    assert list(learnt) == ["triplet", "NASA, weight 2.0", "local variance, class"]
    assert list(given) == ["triplet", "local variance, class"]
    values = {
        (run["arm"], run["seed"]): run["metrics"]
        for run in result["runs"]
        if run["case"] == "along axes, embedding learnt"
    }
    differences = [
        values["NASA, weight 2.0", seed]["plain MAP@R"] - values["triplet", seed]["plain MAP@R"]
        for seed in range(2)
    ]
    entry = learnt["NASA, weight 2.0"]["plain MAP@R against triplet"]
    assert entry["mean"] == pytest.approx(sum(differences) / 2)
    assert f"{entry['mean']:+.4f}" in capsys.readouterr().out
