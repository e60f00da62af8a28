"""The picture of what a search found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dmlfast.plots import neighbors, plot_neighbors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

to_hex = pytest.importorskip("matplotlib.colors").to_hex


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_neighbours_have_names_where_the_classes_of_the_queries_are_unknown():
    queries, found, _ = drawn(query_labels=None, class_names={7: "seven", 8: "eight"})
    assert {frame_of(axes) for axes in found} == {neighbors._UNKNOWN}
    assert {axes.get_xlabel() for axes in queries} == {""}
    assert [axes.get_xlabel() for axes in found[:3]] == ["seven", "seven", "eight"]
    # No legend of colours that are not there.
    assert not found[0].figure.legends


def test_without_labels_pictures_have_neither_colours_nor_names():
    queries, found, _ = drawn(query_labels=None, reference_labels=None)
    assert {frame_of(axes) for axes in found} == {neighbors._UNKNOWN}
    assert {axes.get_xlabel() for axes in [*queries, *found]} == {""}


@pytest.mark.parametrize("title", ["", "of some words, as long as a search of one place needs"])
def test_a_narrow_picture_holds_its_title_and_its_legend(title):
    images, labels = torch.rand(1, 1, 6, 6, generator=seeded()), torch.zeros(1).long()
    figure = neighbors._figure_of(
        images, images, torch.zeros(1, 1).long(), labels, labels, None, title
    )
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert figure.get_suptitle() == title
    for text in filter(None, [figure._suptitle, legend]):
        extent = text.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1


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
