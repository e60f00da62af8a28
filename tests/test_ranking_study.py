"""What intra-class ranking does, in seconds, and the program that measures what it is worth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import paired
import pytest
import ranking
import torch
from training_runs import without_drawing

from dmlfast.evaluation import evaluate_intensity_ranking
from dmlfast.losses import RankingTerm, Synthesis, SyntheticRankingLoss, SyntheticWeights
from dmlfast.training import TrainConfig

pytest.importorskip("faiss")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


# --- the phenomenon -------------------------------------------------------------------------------


def order_after(steps: int, *, seed: int = 0, quirks: bool = False) -> float:
    """Kendall's tau of synthesised samples, at directions drawn anew, after training.

    Free points of four classes, offsets so short that nothing is in order by itself.
    """
    torch.manual_seed(seed)
    x = torch.randn(40, 8).requires_grad_()
    labels = torch.arange(40) % 4
    loss = SyntheticRankingLoss(
        4,
        8,
        synthesis=Synthesis(radius=0.3, select="all", shuffle="class"),
        ranking=RankingTerm(margin=0.02),
        weights=SyntheticWeights(total=1.0, metric=0.0),
        reference_quirks=quirks,
        generator=torch.Generator().manual_seed(seed),
    )
    optimiser = torch.optim.Adam([x, *loss.parameters()], lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(x, labels).backward()
        optimiser.step()
    units = torch.nn.functional.normalize(x.detach())
    rows = [loss.similarities(units, loss.draw(labels), level=quirks) for _ in range(10)]
    return evaluate_intensity_ranking(torch.cat(rows)).kendall_tau


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_synthesised_at_rising_intensity_come_into_order(seed):
    before, after = order_after(0, seed=seed), order_after(300, seed=seed)
    assert after > 0.94
    assert after >= before


@pytest.mark.parametrize("seed", [0, 1])
def test_offsets_of_one_length_have_no_order_to_learn(seed):
    # Which direction is at which place is drawn anew for every class and step: pure chance.
    # 40 draws; the deviation of tau of one of five items is 0.41, so 0.26 is four of the mean's.
    assert order_after(300, seed=seed, quirks=True) == pytest.approx(0, abs=0.26)


# --- the study ------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A study of two steps on digits."""
    return [
        *("--data", "digits", "--steps", "2", "--seeds", "2", "--arms", "gar"),
        *("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "ranking.json")),
    ]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, set_threads) -> None:
    set_threads(1)  # which comes back, after runs have set it
    without_drawing(monkeypatch)


def test_every_arm_is_a_configuration_of_its_own():
    configs = [TrainConfig.resolve("glyphs", **arm.settings) for arm in ranking.ARMS.values()]
    assert len({config.to_json() for config in configs}) == len(ranking.ARMS)


def test_an_arm_is_compared_with_one_of_as_many_labels():
    for arm in ranking.ARMS.values():
        if arm.against is not None:
            other = ranking.ARMS[arm.against]
            assert other.against is None
            label = "labelled_per_class"
            assert arm.settings.get(label) == other.settings.get(label)


def test_what_an_arm_is_compared_with_runs_too(options):
    arms = ranking.STUDY.parse([*options, "--arms", "few, ssr", "gar"]).arms
    assert arms == ["base", "gar", "few, base", "few, ssr"]


def test_the_study_writes_its_runs_and_prints_a_table(options, tmp_path, capsys):
    assert ranking.STUDY.main(options) == 0
    written = json.loads((tmp_path / "ranking.json").read_text())
    assert list(written) == ["command", "machine", "summary", "runs"]
    assert [(run["arm"], run["config"]["seed"]) for run in written["runs"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("base", "gar")
    ]
    assert {run["config"]["steps"] for run in written["runs"]} == {2}
    out = capsys.readouterr().out
    assert out.endswith(ranking.STUDY.table(written["summary"]) + "\n")
    assert "| gar |" in out


def test_finished_runs_are_read_and_not_done_again(options, tmp_path, monkeypatch):
    ranking.STUDY.main(options)
    first = json.loads((tmp_path / "ranking.json").read_text())
    monkeypatch.delattr(paired, "train")
    assert ranking.STUDY.main(options) == 0
    again = json.loads((tmp_path / "ranking.json").read_text())
    assert again["runs"] == first["runs"]
    assert again["summary"] == first["summary"]


def test_an_interrupted_study_goes_on_to_the_same_numbers(options, tmp_path, monkeypatch):
    ranking.STUDY.main([*options, "--runs", str(tmp_path / "uninterrupted")])
    expected = json.loads((tmp_path / "ranking.json").read_text())
    (tmp_path / "ranking.json").unlink()
    train, calls = paired.train, []

    def interrupted(*arguments, should_stop, **given):
        calls.append(arguments)
        # The second run stops after its first step.
        steps = iter([False, True])
        stop = (lambda: next(steps)) if len(calls) == 2 else should_stop
        return train(*arguments, should_stop=stop, **given)

    monkeypatch.setattr(paired, "train", interrupted)
    assert ranking.STUDY.main(options) == 130
    assert not (tmp_path / "ranking.json").exists()
    assert ranking.STUDY.main(options) == 0
    # One was done, one went on, two were started.
    assert len(calls) == 2 + 3
    assert json.loads((tmp_path / "ranking.json").read_text())["summary"] == expected["summary"]


def test_two_jobs_have_the_numbers_of_one(options, tmp_path):
    ranking.STUDY.main(options)
    one = json.loads((tmp_path / "ranking.json").read_text())
    ranking.STUDY.main([*options, "--runs", str(tmp_path / "others"), "--jobs", "2"])
    two = json.loads((tmp_path / "ranking.json").read_text())
    assert one["runs"] == two["runs"]


def test_a_folder_of_another_configuration_is_refused(options, tmp_path):
    ranking.STUDY.main([*options, "--arms", "base"])
    file = tmp_path / "runs" / "digits-base-2-0" / "config.json"
    file.write_text(file.read_text().replace('"batch_size": 128', '"batch_size": 256'))
    with pytest.raises(SystemExit, match="holds a run of another configuration"):
        ranking.STUDY.main([*options, "--arms", "base"])


def test_a_run_that_was_killed_at_its_start_is_started_again(options, tmp_path):
    ranking.STUDY.main([*options, "--arms", "base"])
    folder = tmp_path / "runs" / "digits-base-2-0"
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    assert ranking.STUDY.main([*options, "--arms", "base"]) == 0
    assert (folder / "metrics.json").exists()


def measured(recall: float) -> dict[str, dict[str, float]]:
    return {
        "class": {"recall@1": recall, "map@r": recall / 2},
        "views": {"order_accuracy": 0.9, "kendall_tau": 0.8},
    }


def test_differences_are_paired_by_seed():
    # The seeds differ far more than the arms: only pairs show the difference.
    done = {("base", 0): measured(0.2), ("base", 1): measured(0.6), ("base", 2): measured(0.4)}
    done |= {("gar", 0): measured(0.21), ("gar", 1): measured(0.62), ("gar", 2): measured(0.43)}
    entry = ranking.STUDY.summarize(done, ["base", "gar"])["gar"]["Recall@1"]
    assert entry["mean"] == pytest.approx(0.42)
    assert entry["difference"]["mean"] == pytest.approx(0.02)
    # The deviation of 0.01, 0.02, 0.03 is 0.01; Student's t of three is 4.303.
    assert entry["difference"]["half_width"] == pytest.approx(4.303 * 0.01 / math.sqrt(3))
    assert entry["half_width"] > 0.4


def test_the_table_marks_what_differs():
    done = {("base", 0): measured(0.2), ("base", 1): measured(0.4)}
    done |= {("gar", 0): measured(0.3), ("gar", 1): measured(0.5002)}
    done |= {("ssr", 0): measured(0.1), ("ssr", 1): measured(0.6)}
    rows = ranking.STUDY.table(ranking.STUDY.summarize(done, ["base", "gar", "ssr"])).splitlines()
    assert rows[0].startswith("| arm | Recall@1 | difference | MAP@R | difference |")
    assert rows[2].startswith("| base | 0.3000 |  | 0.1500 |  | 0.9000 |  |")
    assert rows[3].startswith("| gar | 0.4001 | **+0.1001 ± 0.0013** |")
    assert rows[4].startswith("| ssr | 0.3500 | +0.0500 ± 1.9059 |")
