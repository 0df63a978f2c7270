"""Figures of one style: colours by model, files that appear whole, shared scales."""

import builtins

import pytest

from rt_plugin.console import figures
from rt_plugin.errors import UserError


def test_a_model_has_the_same_colour_in_every_figure():
    several = figures.colours(["roberta_mini", "recurrent_roberta_mini", "recurrent_roberta_mini_alternate"])
    assert figures.colours(["recurrent_roberta_tiny", "roberta_tiny"]) == {
        "recurrent_roberta_tiny": several["recurrent_roberta_mini"],
        "roberta_tiny": several["roberta_mini"],
    }
    assert figures.colours(["alternate"])["alternate"] == several["recurrent_roberta_mini_alternate"]


def test_models_of_one_figure_differ():
    models = ["recurrent-a", "recurrent-b", "mine", "yours", "roberta", "none", "short-conv", "backward", "alternate"]
    chosen = figures.colours(models)
    assert list(chosen) != [] and len(set(chosen.values())) == len(models) == len(chosen)
    assert chosen["recurrent-a"] == figures.colours(["recurrent"])["recurrent"]
    many = figures.colours([f"model {i}" for i in range(40)])  # more than there are colours
    assert len(many) == 40 and len(set(many.values())) > 10


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_figure_is_written_and_is_the_same_every_time(ending, start, tmp_path):
    paths = [tmp_path / folder / f"figure.{ending}" for folder in ("a", "b")]
    for path in paths:
        with figures.panels(path, 4, "Title") as panels:
            assert len(panels) == 4
            panels[3].plot([1, 2], [3, 4], label="model")
        assert path.read_bytes().startswith(start)
    if ending == "png":
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(("number", "rows"), [(1, [1]), (2, [2]), (4, [2, 2]), (5, [3, 2]), (7, [3, 3, 1])])
def test_panels_stand_in_equal_rows(number, rows, tmp_path):
    with figures.panels(tmp_path / "figure.png", number, "Title") as panels:
        places = [axes.get_subplotspec().rowspan.start for axes in panels]
    assert [places.count(row) for row in range(len(rows))] == rows


def test_a_figure_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), figures.panels(path, 1, "Title"):
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_panels_of_different_heights_have_scales_of_one_length(tmp_path):
    with figures.panels(tmp_path / "figure.png", 2, "Title") as (low, high):
        low.plot([0, 1], [0, 1])
        high.plot([0, 1], [50, 90])
        figures.share_span((low, high))
        spans = [top - bottom for bottom, top in (low.get_ylim(), high.get_ylim())]
        assert spans[0] == pytest.approx(spans[1])
        assert low.get_ylim()[0] < 0 < 1 < low.get_ylim()[1] and high.get_ylim()[0] < 50 < 90 < high.get_ylim()[1]


def test_what_cannot_be_drawn_is_named(tmp_path, monkeypatch):
    for name in ("figure.bmp", "figure"):
        with (
            pytest.raises(UserError, match=rf"{name}: expected a name that ends in \.png, \.svg, \.pdf"),
            figures.panels(tmp_path / name, 1, "Title"),
        ):
            raise AssertionError("drawn")
    imported = builtins.__import__

    def without_matplotlib(name, *arguments, **options):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with (
        pytest.raises(UserError, match=r"figure\.png is missing; run: pip install matplotlib"),
        figures.panels(tmp_path / "figure.png", 1, "Title"),
    ):
        raise AssertionError("drawn")


def test_png_has_a_palette(tmp_path):
    """A third of the size, at the same resolution."""
    from PIL import Image

    with figures.panels(tmp_path / "curve.png", 1, "a curve") as (axes,):
        axes.plot([1, 2], [3, 4], label="model")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.mode == "P" and image.width == figures.PAGE_WIDTH * figures.DOTS_PER_INCH
