"""Projections are right, pictures are whole PNGs of the stated size, wrong arguments are named."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmlfast.plots import (
    ScalingLine,
    draw_embedding,
    plot_curves,
    plot_embedding,
    plot_intensity,
    plot_scaling,
    projection,
)
from dmlfast.plots.scaling import spread

matplotlib_figure = pytest.importorskip("matplotlib.figure")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG that is complete and has more than a blank page in it."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    assert len(data) > 8000
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def sample(subclasses: int = 12, each: int = 10, columns: int = 8) -> tuple[Tensor, Tensor]:
    ids = torch.arange(subclasses).repeat_interleave(each)
    return 4 * randn(subclasses, columns)[ids] + randn(ids.numel(), columns, seed=1), ids


def test_projection_of_two_columns_keeps_them() -> None:
    x = randn(20, 2)
    assert torch.equal(projection(x), x)


def test_projection_of_one_column_adds_zeros() -> None:
    x = randn(20, 1)
    assert torch.equal(projection(x), torch.cat([x, torch.zeros_like(x)], dim=1))


def test_projection_finds_the_directions_of_largest_variance() -> None:
    scales = torch.tensor([0.1, 5.0, 0.2, 20.0, 0.1])
    points = projection(randn(400, 5) * scales)
    deviations = points.std(dim=0)
    torch.testing.assert_close(deviations, torch.tensor([20.0, 5.0]), rtol=0.15, atol=0)


def test_projection_of_a_plane_keeps_distances() -> None:
    plane = randn(30, 2).double()
    basis = torch.linalg.qr(randn(7, 2, seed=1).double()).Q
    points = projection(plane @ basis.T + 3.0)
    torch.testing.assert_close(torch.pdist(points), torch.pdist(plane.float()))


def test_projection_is_centred_when_it_projects() -> None:
    torch.testing.assert_close(projection(randn(50, 4) + 100).mean(dim=0), torch.zeros(2))


def test_projection_has_the_sign_of_the_largest_coefficient() -> None:
    # One direction dominates; its largest coefficient is the second, so x moves with column 1.
    x = randn(40, 1) @ torch.tensor([[1.0, -3.0, 0.5]]) + 0.01 * randn(40, 3, seed=1)
    points = projection(x)
    assert torch.corrcoef(torch.stack([points[:, 0], x[:, 1]]))[0, 1] > 0.99


def test_projection_does_not_depend_on_the_order_of_rows() -> None:
    x, order = randn(40, 6), torch.randperm(40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(projection(x[order]), projection(x)[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_projection_returns_float32(dtype: torch.dtype) -> None:
    assert projection(randn(9, 4).to(dtype).requires_grad_()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (1, 1)])
def test_projection_of_fewer_rows_than_columns_is_defined(shape: tuple[int, int]) -> None:
    points = projection(randn(*shape))
    assert points.shape == (shape[0], 2)
    assert bool(points.isfinite().all())


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        ([[1.0]], TypeError, "embeddings: expected a floating-point Tensor, got list"),
        (torch.zeros(3, 2).long(), TypeError, "floating-point Tensor, got torch.int64"),
        (torch.zeros(3), ValueError, r"embeddings: expected shape .* got \(3,\)"),
        (torch.zeros(0, 3), ValueError, r"embeddings: expected shape .* got \(0, 3\)"),
        (
            torch.tensor([[math.nan, 1.0]]),
            ValueError,
            "embeddings: expected finite rows, got 1 of 1",
        ),
    ],
)
def test_projection_names_what_is_wrong(
    embeddings: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        projection(embeddings)


@pytest.mark.parametrize("columns", [1, 2, 8])
@pytest.mark.parametrize("subclasses", [1, 12, 20, 21])
def test_plot_embedding_writes_a_png(tmp_path: Path, subclasses: int, columns: int) -> None:
    x, ids = sample(subclasses, columns=columns)
    plot_embedding(x, ids, tmp_path / "e.png", labels=ids // 4, title="a title")
    assert png_size(tmp_path / "e.png") == (1260, 960)
    assert [path.name for path in tmp_path.iterdir()] == ["e.png"]


def test_plot_embedding_writes_the_same_bytes_twice(tmp_path: Path) -> None:
    x, ids = sample()
    for name in ("a.png", "b.png"):
        plot_embedding(x, ids, str(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_plot_embedding_of_equal_rows_is_written(tmp_path: Path) -> None:
    plot_embedding(torch.ones(5, 3), torch.arange(5), tmp_path / "e.png")
    assert png_size(tmp_path / "e.png") == (1260, 960)


def legend(**options: object) -> list[tuple[str, object]]:
    x, ids = sample()
    axes = matplotlib_figure.Figure().add_subplot()
    entries = draw_embedding(axes, x, ids, **options)  # type: ignore[arg-type]
    return [(str(entry.get_label()), entry.get_marker()) for entry in entries]


def test_draw_embedding_lists_each_subclass_once() -> None:
    assert legend() == [(str(i), "o") for i in range(12)]


def test_draw_embedding_marks_classes_by_shape() -> None:
    _, ids = sample()
    entries = legend(labels=ids // 6 + 30)
    assert entries[0][1] == entries[5][1] != entries[6][1]
    assert [text for text, _ in entries[12:]] == ["class 30", "class 31"]


def test_draw_embedding_of_many_classes_has_one_shape() -> None:
    _, ids = sample()
    assert legend(labels=ids) == legend()


@pytest.mark.parametrize("kind", [list, dict])
def test_draw_embedding_names_subclasses_by_id(kind: type) -> None:
    names = [f"letter {i}" for i in range(12)]
    named = kind(enumerate(names)) if kind is dict else names
    assert [text for text, _ in legend(subclass_names=named)] == names


@pytest.mark.parametrize("kind", [list, dict])
def test_draw_embedding_names_classes_by_label(kind: type) -> None:
    _, ids = sample()
    names = ["even", "odd"]
    named = kind(enumerate(names)) if kind is dict else names
    assert [text for text, _ in legend(labels=ids % 2, class_names=named)[12:]] == names


def test_draw_embedding_without_class_markers_needs_no_class_names() -> None:
    _, ids = sample()
    assert legend(labels=ids, class_names=[]) == legend()
    assert legend(class_names=[]) == legend()


def test_draw_embedding_has_no_legend_beyond_twenty_subclasses() -> None:
    x, ids = sample(21)
    assert draw_embedding(matplotlib_figure.Figure().add_subplot(), x, ids) == []


def test_draw_embedding_draws_every_point_once_in_its_colour() -> None:
    x, ids = sample(columns=2)
    axes = matplotlib_figure.Figure().add_subplot()
    entries = draw_embedding(axes, x, ids, labels=ids // 4)
    points = torch.cat([torch.as_tensor(c.get_offsets().data) for c in axes.collections])
    colours = torch.cat([torch.as_tensor(c.get_facecolors()) for c in axes.collections])
    expected = torch.tensor([entry.get_color() for entry in entries[:12]], dtype=torch.float64)
    found = (points.unsqueeze(1) == x).all(dim=2).double().argmax(dim=1)
    assert sorted(found.tolist()) == list(range(120))
    torch.testing.assert_close(colours[:, :3], expected[ids[found]][:, :3])


def test_draw_embedding_states_the_share_of_the_variance() -> None:
    x = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    axes = matplotlib_figure.Figure().add_subplot()
    draw_embedding(axes, x, torch.arange(4))
    assert axes.get_xlabel() == "principal component 1 (90% of the variance)"
    assert axes.get_ylabel() == "principal component 2 (10% of the variance)"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"subclasses": [0] * 120}, TypeError, "subclasses: expected a Tensor, got list"),
        ({"subclasses": torch.zeros(120)}, TypeError, "subclasses: expected an integer dtype"),
        ({"subclasses": torch.arange(3)}, ValueError, r"subclasses: expected shape \(120,\)"),
        ({"labels": torch.arange(3)}, ValueError, r"labels: expected shape \(120,\)"),
        ({"subclass_names": ["a"]}, ValueError, "subclass_names: expected .* none for 1"),
        ({"subclass_names": {0: "a"}}, ValueError, "subclass_names: expected .* none for 1"),
        (
            {"labels": torch.arange(120) % 2, "class_names": ["a"]},
            ValueError,
            "class_names: expected .* none for 1",
        ),
        ({"path": "e.pdf"}, ValueError, r"path: expected .* ends in \.png, got"),
        ({"path": "none/e.png"}, ValueError, "path: expected an existing directory .*, got"),
    ],
)
def test_plot_embedding_names_what_is_wrong_and_writes_nothing(
    tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    x, ids = sample()
    path = tmp_path / str(options.get("path", "e.png"))
    arguments = {"subclasses": ids, **options, "path": path}
    with pytest.raises(error, match=message):
        plot_embedding(x, **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


KEYS = [
    f"{split}/{level}/{metric}"
    for split in ("validation", "test")
    for level in ("class", "subclass")
    for metric in ("map@r", "recall@1")
]


def run(steps: int = 100) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for step in range(steps):
        rows.append({"step": step, "loss": 1 / (step + 1), "active": 0.5})
        if step % 20 == 19:
            rows[-1].update(dict.fromkeys(KEYS, step / steps))
    return rows


@pytest.mark.parametrize(
    ("keep", "panels"),
    [
        (lambda key: True, 3),
        (lambda key: "recall" not in key, 2),
        (lambda key: key in ("step", "loss"), 1),
        (lambda key: key in ("step", "test/subclass/map@r"), 1),
        (lambda key: key == "step" or "/" in key, 2),
    ],
)
def test_plot_curves_has_a_panel_for_what_the_history_holds(
    tmp_path: Path, keep: Callable[[str], bool], panels: int
) -> None:
    history = [{key: value for key, value in row.items() if keep(key)} for row in run()]
    plot_curves(history, tmp_path / "c.png")
    assert png_size(tmp_path / "c.png") == (720 * panels, 660)
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


@pytest.mark.parametrize("steps", [1, 2, 59, 60])
def test_plot_curves_of_a_run_of_any_length_is_written(tmp_path: Path, steps: int) -> None:
    plot_curves(run(steps), tmp_path / "c.png")
    assert png_size(tmp_path / "c.png")[1] == 660


@pytest.mark.parametrize("steps", [[3], [2, 3], [1, 2, 3, 4], [50, 100, 600]])
def test_plot_curves_marks_whole_steps_alone(steps: list[int]) -> None:
    from dmlfast.plots.curves import _draw_loss

    axes = matplotlib_figure.Figure().add_subplot()
    _draw_loss(axes, ([float(step) for step in steps], [1.0] * len(steps)))
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


def test_plot_curves_ignores_the_order_of_rows(tmp_path: Path) -> None:
    plot_curves(run(), tmp_path / "a.png")
    plot_curves(run()[::-1], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_plot_curves_skips_a_missing_value(tmp_path: Path, value: float | None) -> None:
    rows = run(50)
    plot_curves(
        [{**row, "loss": value} if row["step"] == 9 else row for row in rows], tmp_path / "a.png"
    )
    plot_curves([row for row in rows if row["step"] != 9], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("history", "error", "message"),
    [
        ([], ValueError, "got none in 0 rows"),
        ([{"step": 1, "active": 0.5}], ValueError, "got none in 1 rows"),
        ([{"step": 1, "loss": math.nan}], ValueError, "got none in 1 rows"),
        ([{"step": 1, "loss": 1.0}, {"loss": 1.0}], ValueError, "got none in row 1"),
        ([{"step": 1, "loss": "1"}], TypeError, "got str for 'loss' in row 0"),
    ],
)
def test_plot_curves_names_what_is_wrong(
    tmp_path: Path, history: list[dict[str, object]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_curves(history, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def falling(rows: int = 20, columns: int = 4) -> Tensor:
    return torch.linspace(1, 0.2, columns) + 0.1 * randn(rows, columns)


@pytest.mark.parametrize("groups", [["views"], ["views", "synthetic"], ["other"]])
def test_plot_intensity_has_a_panel_for_each_group(tmp_path: Path, groups: list[str]) -> None:
    splits = {"train": falling(), "test": falling(rows=1)}
    plot_intensity(dict.fromkeys(groups, splits), tmp_path / "a.png")
    assert png_size(tmp_path / "a.png") == (720 * len(groups), 660)


def test_plot_intensity_of_one_intensity_is_written(tmp_path: Path) -> None:
    plot_intensity({"views": {"train": falling(columns=1)}}, tmp_path / "a.png")
    assert png_size(tmp_path / "a.png") == (720, 660)


def test_plot_intensity_draws_means_and_the_middle_half() -> None:
    from dmlfast.plots.intensity import _draw

    axes = matplotlib_figure.Figure().add_subplot()
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 4.0], [9.0, 6.0]])
    _draw(axes, "views", {"train": rows.double()})
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [1, 2]
    assert list(line.get_ydata()) == [3.0, 2.0]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == 0
    assert "band: middle half of the samples" in axes.get_legend().get_title().get_text()
    assert {1.0, 3.0, 0.0, 4.0} <= set(corners[:, 1].tolist())


@pytest.mark.parametrize(
    ("similarities", "error", "message"),
    [
        ({}, ValueError, "expected something to draw"),
        ({"views": {}}, ValueError, "expected something to draw"),
        ({"views": {"test": [[1.0]]}}, TypeError, "of views, test: expected a floating-point"),
        ({"views": {"test": torch.ones(2, 2).long()}}, TypeError, "got torch.int64"),
        ({"views": {"test": torch.ones(3)}}, ValueError, r"expected shape \(N, J\)"),
        ({"views": {"test": torch.ones(0, 3)}}, ValueError, r"got \(0, 3\)"),
        ({"views": {"test": torch.full((1, 2), math.nan)}}, ValueError, "expected finite values"),
    ],
)
def test_plot_intensity_names_what_is_wrong(
    tmp_path: Path, similarities: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_intensity(similarities, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "c.png"
    path.mkdir()
    with pytest.raises(OSError, match=rf"\] [^']*'{path}'$"):
        plot_curves(run(), path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_former_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.png"
    path.write_bytes(b"former")

    def fail(self: object, target: Path, **options: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib_figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_curves(run(), path)
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib.layout_engine", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'dmlfast\[train\]'"):
        plot_curves(run(), tmp_path / "c.png")


def test_importing_the_plots_imports_no_matplotlib(tmp_path: Path) -> None:
    code = "import sys, dmlfast.plots; sys.exit('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path)
    assert done.returncode == 0


SCALING = {
    "one": [
        ScalingLine("kernel", [16, 32, 64], [1e-4, 2e-4, 4e-4], [1.0, 2.0, 4.0], role="kernel"),
        ScalingLine("unit", [16, 32, 64], [1e-5, 2e-5, 4e-5], [0.0, 0.0, None], role="yardstick"),
        ScalingLine("peer", [16, 32], [1e-3, 8e-3], [8.0, 64.0], stopped=(64, "out of memory")),
    ],
    "two": [
        ScalingLine("kernel", [16, 32], [1.0, 2.0], [None, None], role="kernel"),
        ScalingLine("slow", [16], [40.0], [1.0], stopped=(32, "too slow")),
        ScalingLine("huge", [], [], [], stopped=(16, "out of memory")),
        ScalingLine("late", [], [], [], stopped=(16, "too slow")),
    ],
}


def test_scaling_is_a_row_of_panels_for_each_workload(tmp_path: Path) -> None:
    heights = []
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        plot_scaling(dict(list(SCALING.items())[:count]), path, budget_mebibytes=128)
        heights.append(png_size(path)[1])
    assert heights[1] > 1.8 * heights[0]


@pytest.mark.parametrize("workloads", [{}, {"none": []}, {"none": SCALING["two"][2:]}])
def test_scaling_without_a_measured_size_is_refused(workloads: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workloads: expected a line with a measured size"):
        plot_scaling(workloads, tmp_path / "scaling.png", budget_mebibytes=128)


def test_names_that_have_room_stay() -> None:
    assert spread([30.0, 0.0, 12.0], 10.0) == [30.0, 0.0, 12.0]


def test_names_in_each_others_way_part_evenly_in_their_order() -> None:
    assert spread([101.0, 50.0, 99.0], 10.0) == [105.0, 50.0, 95.0]


def test_names_pushed_into_others_push_them_on() -> None:
    found = spread([0.0, 1.0, 8.0, 9.0, 9.0], 10.0)
    assert found == pytest.approx([-14.6, -4.6, 5.4, 15.4, 25.4])
    assert sum(found) == pytest.approx(27.0)


def test_names_rise_to_the_floor_and_push_the_others_on() -> None:
    assert spread([50.0, 2.0, 1.0, 12.0], 10.0, floor=5.0) == [50.0, 15.0, 5.0, 25.0]
