"""Each policy by itself, on boxes that are made up; squares; the clock."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcomp.experiments.prepare.boxes import Box, square_around
from memcomp.experiments.prepare.follow import Seen, by_clock
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.prepare.segments import END, POLICIES, stretches
from memcomp.experiments.video import Shown

OPTIONS = PrepareOptions(min_frames=3, max_frames=100, least_head=50, gap=2)
HEAD = Box(100, 100, 180, 200)
OTHER = Box(400, 100, 480, 200)


def seen(*boxes: Box, cut: bool = False, whole: bool = True) -> Seen:
    return Seen(boxes, cut, whole)


def found(pictures: list[Seen], options: PrepareOptions = OPTIONS) -> list[tuple[int, int, str, bool]]:
    return [(one.first, one.end, one.why, bool(one.boxes)) for one in stretches(pictures, options)]


HERE, NONE = seen(HEAD), seen()
SMALL = seen(Box(100, 100, 130, 140))
AWAY = seen(Box(150, 160, 230, 260))
CASES = {
    "cut": ([HERE] * 5 + [seen(HEAD, cut=True)] + [HERE] * 4, [(0, 5, "cut", True), (5, 10, END, True)]),
    "no-face": ([HERE] * 5 + [NONE] * 4, [(0, 5, "no-face", True), (5, 9, "no-face", False)]),
    "two-faces": ([HERE] * 5 + [seen(HEAD, OTHER)] * 4, [(0, 5, "two-faces", True), (5, 9, "two-faces", False)]),
    "too-small": ([HERE] * 5 + [SMALL] * 4, [(0, 5, "too-small", True), (5, 9, "too-small", False)]),
    "moved": ([HERE] * 5 + [AWAY] * 4, [(0, 5, "moved", True), (5, 9, END, True)]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_ends_a_segment(name):
    pictures, expected = CASES[name]
    assert found(pictures) == expected


@pytest.mark.parametrize("name", ["cut", "two-faces", "too-small", "moved"])
def test_a_policy_that_is_ignored_does_not(name):
    pictures, _ = CASES[name]
    ignore = (name, "moved") if name == "too-small" else (name,)
    assert found(pictures, replace(OPTIONS, ignore=ignore)) == [(0, len(pictures), END, True)]


def test_a_gap_is_bridged_by_boxes_in_between():
    later = Box(106, 100, 186, 200)
    (one,) = stretches([HERE, HERE, NONE, NONE, seen(later), seen(later)], OPTIONS)
    assert [box.left for box in one.boxes] == pytest.approx([100, 100, 102, 104, 106, 106])
    assert found([HERE] * 3 + [NONE] * 2) == [(0, 3, END, True), (3, 5, "no-face", False)]


def test_a_second_head_ends_the_segment_at_the_look_before():
    pictures = [HERE, seen(HEAD, whole=False), HERE, *[seen(HEAD, whole=False)] * 3, seen(HEAD, OTHER)]
    assert found(pictures) == [(0, 3, "two-faces", True), (3, 7, "two-faces", False)]


def test_a_second_head_that_is_small_does_not_matter():
    assert found([seen(HEAD, Box(400, 100, 420, 140))] * 5) == [(0, 5, END, True)]


def test_a_head_about_as_small_as_allowed_does_not_end_and_begin_all_the_time():
    sizes = [52, 49, 51, 48, 50]
    assert found([seen(Box(100, 100, 140, 100 + size)) for size in sizes]) == [(0, 5, END, True)]


def test_too_short_and_too_long():
    assert found([HERE] * 2) == [(0, 2, f"shorter than 3 frames, ended by: {END}", False)]
    parts = found([HERE] * 9, replace(OPTIONS, max_frames=4))
    assert parts == [
        (0, 4, "4 frames", True),
        (4, 8, "4 frames", True),
        (8, 9, f"shorter than 3 frames, ended by: {END}", False),
    ]


@given(st.lists(st.sampled_from([HERE, NONE, SMALL, AWAY, seen(HEAD, OTHER), seen(HEAD, cut=True)]), max_size=40))
def test_every_picture_is_in_one_stretch(pictures):
    parts = stretches(pictures, replace(OPTIONS, max_frames=7))
    places = [place for part in parts for place in range(part.first, part.end)]
    assert places == list(range(len(pictures)))
    for part in parts:
        assert not part.boxes or len(part.boxes) == part.end - part.first >= 3


edges = st.floats(0, 200, allow_nan=False)


@given(edges, edges, edges, edges, st.floats(0, 1), st.integers(1, 200), st.integers(1, 200))
def test_a_square_holds_the_box_and_lies_in_the_picture(a, b, c, d, increase, width, height):
    box = Box(min(a, b), min(c, d), max(a, b), max(c, d)).within(width, height)
    square = square_around(box, increase, width, height)
    if square is None:
        assert max(box.width, box.height) > min(width, height) - 2
        return
    x, y, side = square
    assert 0 <= x <= x + side <= width and 0 <= y <= y + side <= height
    assert x <= box.left and box.right <= x + side and y <= box.top and box.bottom <= y + side
    assert side <= max(box.width, box.height) * (1 + 2 * increase) + 2


def test_the_square_is_larger_on_each_side():
    assert square_around(Box(100, 100, 180, 200), 0.1, 1000, 1000) == (80, 90, 120)
    assert square_around(Box(0, 5, 80, 105), 0.1, 1000, 1000) == (0, 0, 120)
    assert square_around(Box(0, 5, 80, 105), 0.1, 1000, 110) == (0, 0, 110)
    assert square_around(Box(0, 5, 120, 105), 0.1, 1000, 110) is None


def test_pictures_are_taken_by_the_clock():
    """Whatever the rate of the video, at each tick the picture is taken that is shown then."""
    lengths = [Fraction(1, 50), Fraction(1, 10), Fraction(1, 100), Fraction(1, 100), Fraction(3, 50)]
    time, frames = Fraction(5), []
    for number, length in enumerate(lengths):
        frames.append(Shown(np.full((1, 1, 3), number, np.uint8), time, length))
        time += length
    assert [int(picture[0, 0, 0]) for picture in by_clock(frames, Fraction(25))] == [0, 1, 1, 2, 4]
    assert [int(picture[0, 0, 0]) for picture in by_clock(frames, Fraction(10))] == [0, 1]
