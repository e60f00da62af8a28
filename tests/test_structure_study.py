"""The program that measures what a structure embedding is worth; what it shares is tested apart."""

from __future__ import annotations

import json

import paired
import pytest
import structure
from training_runs import without_drawing

from dmlfast.training import TrainConfig

pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def test_every_arm_is_a_configuration_of_its_own():
    configs = [TrainConfig.resolve("glyphs", **arm.settings) for arm in structure.ARMS.values()]
    assert len({config.to_json() for config in configs}) == len(structure.ARMS)


def test_all_arms_are_compared_with_the_base_loss_alone():
    base = TrainConfig.resolve("glyphs", **structure.ARMS["base"].settings)
    assert base.method.weight == base.method.local_weight == 0
    assert {arm.against for name, arm in structure.ARMS.items() if name != "base"} == {"base"}


def test_a_gain_is_a_difference_within_a_run():
    group = {"recall@1": 0.5, "map@r": 0.25}
    metrics = {
        "class": group,
        "structure": {"recall@1": 0.75, "map@r": 0.5},
        "oracle": group,
        "weights": {"deviation": 0.125},
    }
    found = paired.chosen(metrics, structure.METRICS)
    assert found["structure MAP@R"] == 0.5
    assert found["gain in MAP@R"] == found["gain in Recall@1"] == 0.25
    assert found["spread"] == 0.125


def test_the_study_writes_its_runs_and_prints_a_table(tmp_path, capsys, monkeypatch, set_threads):
    set_threads(1)  # which comes back, after runs have set it
    without_drawing(monkeypatch)
    options = [
        *("--data", "digits", "--steps", "2", "--seeds", "2", "--arms", "nasa, structure alone"),
        *("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "structure.json")),
    ]
    assert structure.STUDY.main(options) == 0
    written = json.loads((tmp_path / "structure.json").read_text())
    arms = ["base", "nasa, structure alone"]
    assert list(written["summary"]) == arms
    assert (tmp_path / "runs" / "digits-nasa-structure-alone-2-1").is_dir()
    alone = written["summary"]["nasa, structure alone"]
    # The network of this arm is that of the base loss.
    assert alone["MAP@R"]["difference"] == {"mean": 0, "half_width": 0}
    assert alone["oracle MAP@R"]["difference"]["mean"] == 0
    assert alone["spread"]["mean"] > 0 == written["summary"]["base"]["spread"]["mean"]
    assert capsys.readouterr().out.endswith(structure.STUDY.table(written["summary"]) + "\n")
