"""The pictures: what they refuse, and that no words of the course's map touch."""

from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch

from attn_course.course import pictures
from attn_course.course.course_map import FAMILIES, draw_course_map, draw_where
from test_drawing import assert_words_have_room

MECHANISMS = [mechanism.short for family in FAMILIES for mechanism in family.mechanisms]


@pytest.fixture(autouse=True)
def course_style(monkeypatch: pytest.MonkeyPatch):
    """The course's style, no windows, and nothing left open."""
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    with plt.rc_context():
        pictures.use_style()
        yield
    plt.close("all")


def test_map_shows_the_eight_mechanisms():
    assert sorted(MECHANISMS) == ["CBAM", "DA", "EA", "EPSA", "MHSA", "SE", "SGE", "SK"]


@pytest.mark.parametrize("draw", [draw_course_map, *(partial(draw_where, m) for m in MECHANISMS)])
def test_words_of_the_map_are_apart_and_inside(draw):
    assert_words_have_room(draw().figure)


@pytest.mark.parametrize("here", MECHANISMS)
def test_one_name_is_marked(here: str):
    words = draw_where(here).axes.texts
    bold = [text.get_text().split()[-1] for text in words if text.get_weight() == "bold"]
    assert [name for name in bold if name in MECHANISMS] == [here]


def test_map_names_what_here_may_be():
    with pytest.raises(ValueError, match="here is 'ECA': give one of SE, CBAM"):
        pictures.where("ECA")


def test_maps_share_a_scale_centred_on_zero_for_differences():
    small, large = torch.tensor([[-1.0, 0.5]]), torch.tensor([[0.0, 3.0]])
    pictures.show_images([small, large], cmap=pictures.DIFFERENCES)
    assert [axes.images[0].get_clim() for axes in plt.gcf().axes] == [(-3, 3), (-3, 3)]


def test_photographs_and_maps_stand_in_rows():
    images = [torch.rand(3, 4, 6), torch.rand(4, 6), torch.rand(2, 3)]
    pictures.show_images(images, ["a", "b", "c"], columns=2, colour_bar="gate")
    *cells, bar = plt.gcf().axes
    assert [axes.get_title() for axes in cells] == ["a", "b", "c", ""]
    assert bar.get_ylabel() == "gate"


def test_show_images_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="images is empty"):
        pictures.show_images([])
    with pytest.raises(ValueError, match="titles has 1 entries for 2 images"):
        pictures.show_images([torch.rand(2, 2)] * 2, ["only one"])


def test_attention_lies_over_the_grey_image_with_one_scale():
    maps = {
        "early": torch.tensor([[[[0.0, 0.5]]]] * 2),
        "late": torch.tensor([[[[2.0], [1.0]]]] * 2),
    }
    pictures.show_attention(torch.rand(2, 3, 4, 6), maps)
    *cells, bar = plt.gcf().axes
    assert [axes.get_ylabel() for axes in cells[2:]] == ["early", "", "late", ""]
    assert bar.get_ylabel() == "weight of a position"
    for axes in cells[:2]:
        assert len(axes.images) == 1
    for axes in cells[2:]:
        image, over = axes.images
        assert image.get_extent() == over.get_extent()  # each position where it is in the image
        assert over.get_clim() == (0, 2)


def test_attention_lies_over_its_own_image():
    maps = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    pictures.show_attention([torch.rand(3, 4, 4), torch.rand(3, 4, 4)], {"stage": maps})
    shown = [axes.images[-1].get_array() for axes in plt.gcf().axes[2:4]]
    assert [values.mean() for values in shown] == [0, 1]


def test_attention_lies_over_grey_images():
    pictures.show_attention(
        torch.rand(1, 1, 4, 4), {"stage": torch.rand(1, 1, 2, 2)}, limits=(0, 1)
    )
    assert plt.gcf().axes[1].images[-1].get_clim() == (0, 1)


@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (2, 1, 1, 1), (1, 1, 4, 4), (2, 3, 4, 4), (4, 4)])
def test_show_attention_refuses_what_has_no_positions(shape):
    with pytest.raises(ValueError, match=r"maps\['gate'\] has the shape .* give \(2, 1, h, w\)"):
        pictures.show_attention(torch.rand(2, 3, 8, 8), {"gate": torch.rand(shape)})


def test_show_attention_refuses_nothing():
    with pytest.raises(ValueError, match="images or maps is empty"):
        pictures.show_attention(torch.rand(2, 3, 8, 8), {})
    with pytest.raises(ValueError, match="images or maps is empty"):
        pictures.show_attention([], {"gate": torch.rand(0, 1, 4, 4)})
