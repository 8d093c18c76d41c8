"""Charts: every point in its place, round numbers on the axes, nothing drawn outside."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.reports.charts import Chart, Line, draw_svg, left_out, short, smoothed, thinned, ticks

CURVE = [(step, 4 * math.exp(-step / 100) + 1) for step in range(1, 500)]


def chart(points=CURVE, **settings):
    return Chart("Loss", [Line("training", points, "train")], "step", "loss", **settings)


def coordinates(svg, kind="train"):
    """The points of every piece of a line."""
    paths = [p.get("d") for p in ET.fromstring(svg).iter("path") if kind in p.get("class")]
    return [[tuple(map(float, xy.split())) for xy in path[1:].split("L")] for path in paths]


def words(svg, kind="tick"):
    return [text.text for text in ET.fromstring(svg).iter("text") if text.get("class") == kind]


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0"), (0.05, "0.05"), (250, "250"), (1500, "1.5k"), (2_050_000, "2.05M"), (1e-4, "1e-4"),
     (-3000, "-3k"), (7e9, "7G"), (1.2345, "1.23"), (6e-12, "6e-12")],
)  # fmt: skip
def test_numbers_are_short(number, written):
    assert short(number) == written


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6).filter(lambda x: x > 0), st.integers(2, 9))
def test_ticks_are_round_inside_and_not_too_many(low, span, count):
    found = ticks(low, low + span, count)
    assert len(found) <= count + 1
    assert all(low - 1e-6 * span <= tick <= low + span + 1e-6 * span for tick in found)
    steps = {round(b - a, 9 - math.floor(math.log10(span))) for a, b in zip(found, found[1:])}  # noqa: B905, RUF007
    assert len(steps) <= 1 or max(steps) - min(steps) < 1e-6 * span


def test_a_long_curve_is_thinned_to_means_with_its_ends():
    points = [(float(x), float(x % 2)) for x in range(10_001)]
    few = thinned(points, 100)
    assert len(few) == 100 and few[0] == points[0] and few[-1] == points[-1]
    assert all(abs(y - 0.5) < 0.02 for _, y in few[1:-1])
    assert thinned([(1, math.nan), (2, 3.0)]) == [(2, 3.0)]


def test_smoothing_keeps_a_straight_line_and_calms_a_noisy_one():
    line = [(x, 2.0 * x) for x in range(200)]
    assert [y for _, y in smoothed(line)] == pytest.approx([y for _, y in line])
    noisy = [(x, 5.0 + (-1) ** x) for x in range(200)]
    assert max(abs(y - 5) for _, y in smoothed(noisy)[20:-20]) < 0.3


def test_higher_values_lie_higher_and_later_ones_further_right():
    (points,) = coordinates(draw_svg(chart(), 700, 300))
    assert points == sorted(points, key=lambda p: p[0])
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert all(0 <= x <= 700 and 0 <= y <= 300 for x, y in points)


def test_the_second_axis_shows_the_same_heights_in_other_units():
    svg = draw_svg(chart(right=("bits", 10.0)), 700, 300)
    places = {}
    for text in ET.fromstring(svg).iter("text"):
        if text.get("class") == "tick" and text.get("text-anchor") != "middle":
            places.setdefault(text.get("text-anchor"), {})[float(text.text)] = float(text.get("y"))
    left, right = places["end"], places["start"]
    assert len(set(left) & {value / 10 for value in right}) >= 2
    for value, y in right.items():
        if value / 10 in left:
            assert left[value / 10] == pytest.approx(y, abs=0.2)


def test_a_wild_start_leaves_a_cut_picture_and_stays_in_the_other():
    wild = [(1, 7000.0), *CURVE]
    whole, cut = draw_svg(chart(wild), 700, 300), draw_svg(chart(wild, cut=True), 700, 300)
    assert "6k" in words(whole)
    assert not [word for word in words(cut) if word.endswith("k")]
    (points,) = coordinates(cut)
    assert min(y for _, y in points) >= 0


def test_a_curve_that_leaves_the_picture_twice_is_drawn_in_pieces():
    peaks = [(x, 100.0 if x in (3, 40) else 1.0 + x / 100) for x in range(80)]
    pieces = coordinates(draw_svg(chart(peaks, cut=True), 700, 300))
    assert len(pieces) == 3
    assert all(len(piece) > 1 for piece in pieces)


def test_levels_have_their_names_and_those_above_everything_are_left_out():
    svg = draw_svg(chart(levels={"lzma": 1.8, "5-gram": 1.78, "huge": 99.0}), 700, 300)
    assert words(svg, "name") == ["5-gram", "lzma"]
    heights = [
        float(t.get("y")) for t in ET.fromstring(svg).iter("text") if t.get("class") == "name"
    ]
    assert heights[0] - heights[1] >= 12  # they do not lie on each other


def test_levels_do_not_stretch_the_picture_and_those_outside_are_named():
    bare = coordinates(draw_svg(chart(), 700, 300))
    low, high = min(y for _, y in CURVE), max(y for _, y in CURVE)
    far = chart(levels={"low": low - 9, "high": high + 9, "between": (low + high) / 2})
    assert coordinates(draw_svg(far, 700, 300)) == bare
    assert words(draw_svg(far, 700, 300), "name") == ["between"]
    assert left_out(far) == f"Outside the picture: low {low - 9:.2f}, high {high + 9:.2f}."


def test_the_first_loss_of_a_calm_run_is_shown_and_what_is_cut_off_is_said():
    calm = [(x, 1.5 + 2.7 * math.exp(-x / 90)) for x in range(1, 400)]
    (points,) = coordinates(draw_svg(chart(calm, cut=True), 700, 300))
    assert len(points) == len(calm) and left_out(chart(calm, cut=True)) == ""
    assert left_out(chart([(0, 7000.0), *calm], cut=True)) == (
        "Above the picture: values up to 7k."
    )


def test_a_faint_line_below_the_others_stays_inside_the_picture():
    lines = [
        Line("v", [(0, 3.0), (9, 2.0)], "val"),
        Line("t", [(0, 8.0), (9, 1.0)], "x", faint=True),
    ]
    for piece in coordinates(draw_svg(Chart("t", lines, "x", "y"), 700, 300)):
        assert all(0 <= y <= 300 for _, y in piece)


def test_points_tell_their_values_and_names_are_escaped():
    line = Line("a <b> & c", [(100, 2.5), (200, 1.25)], "val", dots=True)
    svg = draw_svg(Chart("x < y", [line], "step", "loss"), 700, 300)
    titles = [title.text for title in ET.fromstring(svg).iter("title")]
    assert titles == ["a <b> & c: 2.5 at step 100", "a <b> & c: 1.25 at step 200"]


def test_a_flat_line_can_be_drawn():
    points = [(1, 2.0), (2, 2.0)]
    ET.fromstring(draw_svg(chart(points), 300, 200))
    ET.fromstring(draw_svg(chart(points, floor=0.0), 300, 200))


def test_nothing_and_a_single_point_give_no_picture():
    assert draw_svg(chart([]), 300, 200) == ""
    assert draw_svg(chart([(1, 2.0)]), 300, 200) == ""
    assert draw_svg(chart([(1, math.nan)]), 300, 200) == ""
