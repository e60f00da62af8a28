"""Tests of dmlfast.plots.plot_collapse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dmlfast.plots import collapse, plot_collapse
from dmlfast.plots.collapse import _PANELS, _draw, _lines

matplotlib_figure = pytest.importorskip("matplotlib.figure")

RATIO, RANK = "test/collapse/class_distance_ratio", "test/collapse/effective_rank"


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def run(steps: int = 6) -> list[dict[str, float]]:
    """A history with every metric of the picture."""
    return [
        {
            "step": 50 * step,
            "active": 1 / step,
            **{
                f"{split}/{group}/{metric}": 0.1 * step + 0.02 * place
                for place, (metric, panel) in enumerate(_PANELS.items())
                for group in panel.groups
                for split in ("validation", "test")
            },
        }
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ([RATIO], (1020, 450)),
        ([RATIO, RANK], (1530, 450)),
        ([RATIO, RANK, "test/class/nmi", "test/class/ami"], (1530, 900)),
    ],
)
def test_there_is_a_panel_for_what_the_history_holds(
    tmp_path: Path, keys: list[str], size: tuple[int, int]
) -> None:
    plot_collapse([{"step": 1, **dict.fromkeys(keys, 0.5)}], tmp_path / "a.png")
    assert png_size(tmp_path / "a.png") == size


@pytest.mark.parametrize("steps", [1, 40])
def test_a_run_of_any_length_has_all_panels(tmp_path: Path, steps: int) -> None:
    plot_collapse(run(steps), tmp_path / "a.png")
    assert png_size(tmp_path / "a.png") == (2040, 900)


def test_a_panel_has_a_line_for_each_group_and_split_and_says_its_unit() -> None:
    axes = matplotlib_figure.Figure().add_subplot()
    entries = _draw(axes, _PANELS["nmi"], _lines(run(2), "nmi"))
    assert list(entries) == [
        *("class, validation", "class, test", "sub-class, validation", "sub-class, test"),
    ]
    assert [list(line.get_xdata()) for line in axes.lines] == [[50, 100]] * 4
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 4
    assert (axes.get_title(), axes.get_xlabel()) == ("NMI of clusters", "step")
    assert axes.get_ylabel() == "share of the entropy"


@pytest.mark.parametrize("values", [[0.3, 0.4], [11.0, 15.9], [-0.2, 0.1], [0.0, 0.0]])
def test_an_axis_holds_0_and_every_value(values: list[float]) -> None:
    axes = matplotlib_figure.Figure().add_subplot()
    history = [{"step": step, RANK: value} for step, value in enumerate(values)]
    _draw(axes, _PANELS["effective_rank"], _lines(history, "effective_rank"))
    low, high = axes.get_ylim()
    assert low < min(0, *values) <= max(values) < high


def test_the_active_share_of_training_is_drawn_where_it_is_of_anchors(tmp_path: Path) -> None:
    for wanted in (False, True):
        plot_collapse(run(), tmp_path / f"{wanted}.png", training_triplets=wanted)
    assert (tmp_path / "True.png").read_bytes() != (tmp_path / "False.png").read_bytes()
    without = [{**row, "active": None} for row in run()]
    plot_collapse(without, tmp_path / "none.png", training_triplets=True)
    assert (tmp_path / "none.png").read_bytes() == (tmp_path / "False.png").read_bytes()


@pytest.mark.parametrize(("steps", "marker"), [(1, "o"), (30, "o"), (31, "")])
def test_training_batches_have_markers_where_the_evaluations_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, marker: str
) -> None:
    saved = []
    monkeypatch.setattr(collapse, "save_png", lambda figure, _: saved.append(figure))
    plot_collapse(run(steps), tmp_path / "a.png", training_triplets=True)
    (figure,) = saved
    (axes,) = [axes for axes in figure.axes if axes.get_title() == "Active triplets"]
    own, *others = axes.lines
    assert own.get_label() == "training batches"
    assert list(own.get_xdata()) == [50 * step for step in range(1, steps + 1)]
    assert {line.get_marker() for line in (own, *others)} == {marker}


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_metric_that_a_data_set_does_not_have_has_no_panel(
    tmp_path: Path, value: float | None
) -> None:
    plot_collapse([{"step": 1, RANK: 3.0, RATIO: value}], tmp_path / "a.png")
    plot_collapse([{"step": 1, RANK: 3.0}], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("history", "error", "message"),
    [
        ([], ValueError, "got none in 0 rows"),
        ([{"step": 1, "active": 0.5, "loss": 1.0}], ValueError, "got none in 1 rows"),
        ([{"step": 1, RANK: 1.0}, {RANK: 1.0}], ValueError, "got none in row 1"),
        ([{"step": 1, RANK: "1"}], TypeError, f"got str for '{RANK}' in row 0"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, history: list[dict[str, object]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_collapse(history, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
