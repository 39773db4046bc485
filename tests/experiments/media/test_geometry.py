"""Which way up, and how wide: coloured corners."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from memcomp.experiments.video import Frames, read_picture

CORNERS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230), "grey": (90, 90, 90)}
PLACES = ((4, 4), (4, -5), (-5, 4), (-5, -5))  # upper left, upper right, lower left, lower right


def cornered(height=64, width=96):
    """Red upper left, green upper right, blue lower left, on grey."""
    frame = np.full((height, width, 3), 90, np.uint8)
    half_h, half_w = height // 3, width // 3
    frame[:half_h, :half_w], frame[:half_h, -half_w:], frame[-half_h:, :half_w] = list(CORNERS.values())[:3]
    return frame


def corners(picture):
    """The names of the colours in a picture's corners."""
    nearest = lambda pixel: min(CORNERS, key=lambda name: np.abs(np.array(CORNERS[name]) - pixel.astype(int)).sum())  # noqa: E731
    return [nearest(picture[place]) for place in PLACES]


@pytest.mark.parametrize(
    ("matrix", "expected"),  # (a, b, c, d): column x goes to a x + c y, row y to b x + d y
    [
        ((1, 0, 0, 1), "red green blue grey"),
        ((0, 1, -1, 0), "blue red grey green"),  # a quarter clockwise
        ((-1, 0, 0, -1), "grey blue green red"),
        ((0, -1, 1, 0), "green grey red blue"),
        ((-1, 0, 0, 1), "green red grey blue"),  # a selfie's mirror
        ((1, 0, 0, -1), "blue grey red green"),
        ((0, 1, 1, 0), "red blue green grey"),  # mirror and turn
        ((0, -1, -1, 0), "grey green blue red"),
    ],
)
def test_every_orientation_is_brought_upright(tmp_path, media, matrix, expected):
    path = media.with_matrix(media.write(tmp_path / "a.mp4", [cornered()] * 2), *matrix)
    picture = next(iter(Frames(path)))
    assert picture.shape == ((64, 96, 3) if matrix[0] else (96, 64, 3))
    assert corners(picture) == expected.split()


def test_orientations_of_a_picture(tmp_path):
    for orientation, expected in ((2, "green red grey blue"), (5, "red blue green grey"), (6, "blue red grey green")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(cornered()).save(tmp_path / "a.png", exif=exif)
        assert corners(read_picture(tmp_path / "a.png")) == expected.split()


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("a.mp4", Fraction(4, 3), (64, 128)),
        ("a.mp4", Fraction(1, 2), (128, 96)),
        ("a.mkv", Fraction(2), (64, 192)),
        ("a.ts", Fraction(3, 2), (64, 144)),
        ("a.mp4", Fraction(1), (64, 96)),
    ],
)
def test_pixels_become_square(tmp_path, media, name, shape, expected):
    path = media.write(tmp_path / name, [cornered()] * 9, sample_aspect_ratio=shape)
    said = []
    picture = next(iter(Frames(path, said.append)))
    assert picture.shape[:2] == expected
    assert corners(picture) == ["red", "green", "blue", "grey"]
    assert [f"{shape.numerator}:{shape.denominator}" in note for note in said] == [True] * (shape != 1)


def test_square_pixels_and_a_turn_together(tmp_path, media):
    path = media.write(tmp_path / "a.mp4", [cornered()] * 2, sample_aspect_ratio=Fraction(2))
    picture = next(iter(Frames(media.with_matrix(path, 0, 1, -1, 0))))
    assert picture.shape[:2] == (192, 64)
    assert corners(picture) == ["blue", "red", "grey", "green"]


@pytest.mark.parametrize(("name", "pix"), [("a.mp4", "yuv444p"), ("a.mkv", "yuv444p"), ("b.webm", "yuv420p")])
def test_odd_sizes_are_whole(tmp_path, media, name, pix):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    frame = cornered(63, 95)
    picture = next(iter(Frames(media.write(tmp_path / name, [frame] * 2, codec=codec, pix=pix))))
    assert picture.shape == frame.shape
    assert corners(picture) == ["red", "green", "blue", "grey"]
    assert np.abs(picture.astype(int) - frame).mean() < 4


def test_interlaced_frames_show_one_moment(tmp_path, media):
    """Every second line is filmed later: a bar that moves stands twice in the frame, and once in ours."""
    frames = []
    for i in range(6):
        frame = np.full((64, 96, 3), 40, np.uint8)
        frame[0::2, 8 * i : 8 * i + 16] = 220
        frame[1::2, 8 * i + 30 : 8 * i + 46] = 220
        frames.append(frame)
    options = {"flags": "+ildct+ilme", "x264-params": "interlaced=1:tff=1", "crf": "6"}
    path = media.write(tmp_path / "a.mkv", frames, options=options, pix="yuv444p")
    said = []
    shown = list(Frames(path, said.append))
    assert len(shown) == 6 and "interlaced" in said[0]
    for i, picture in enumerate(shown):
        assert abs(picture[:, 8 * i + 4 : 8 * i + 12].astype(int) - 220).max() < 12
        assert abs(picture[:, 8 * i + 30 : 8 * i + 46].astype(int) - 40).max() < 12
