"""Raw videos made of rendered heads: people move in a larger scene, with all that raw videos bring along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest

from memcomp.experiments.backends.base import NotFound
from memcomp.experiments.backends.dlib_faces import head_box
from memcomp.experiments.data.heads import Identity, Poses, landmarks, render
from memcomp.experiments.prepare import workers
from memcomp.experiments.prepare.boxes import Box
from memcomp.experiments.prepare.work import Tools
from memcomp.experiments.video import Frame, write_video

WIDTH, HEIGHT, RATE = 1280, 720, 25
SIDE = 240  # of the picture with the head in the scene
PERIOD = 8  # pictures rendered of each person, which then come again backwards
PEOPLE = {"anna": 2_005_007, "bert": 2_005_003, "cleo": 2_005_009}  # of no split of the data set


@dataclass(frozen=True)
class Actor:
    """A person's rendered pictures (T, SIDE, SIDE, 3) and the exact boxes of the head in them."""

    pictures: Sequence[Frame]
    boxes: Sequence[Box]

    @classmethod
    def of(cls, seed: int) -> Actor:
        poses = Poses.trajectory(seed, PERIOD)
        mild = {name: 0.4 * getattr(poses, name) for name in ("yaw", "pitch", "roll")}
        poses = Poses.make(**mild, blink=poses.blink, mouth=poses.mouth, smile=poses.smile)
        who = Identity.sample(seed)
        pictures = (render(who, poses, SIDE).image * 255).round().byte().permute(0, 2, 3, 1).numpy()
        points = ((landmarks(who, poses).points + 1) * SIDE / 2).numpy()
        return cls(list(pictures), [Box(*head_box(one).tolist()) for one in points])

    def at(self, frame: int) -> tuple[Frame, Box]:
        place = frame % (2 * PERIOD - 2)
        place = min(place, 2 * PERIOD - 2 - place)
        return self.pictures[place], self.boxes[place]


@dataclass(frozen=True)
class Shot:
    """Some frames of a scene: who is seen, and where each begins and how far each moves, pixels a frame."""

    frames: int
    scene: int
    cast: Sequence[tuple[str, int, int, float]] = ()

    def draw(self, actors: dict[str, Actor]) -> Iterator[tuple[Frame, list[tuple[str, Box]]]]:
        behind = backdrop(self.scene)
        for frame in range(self.frames):
            picture, boxes = behind.copy(), []
            for name, x, y, speed in self.cast:
                head, box = actors[name].at(frame)
                left = x + round(speed * frame)
                picture[y : y + SIDE, left : left + SIDE] = head
                moved = Box(box.left + left, box.top + y, box.right + left, box.bottom + y)
                boxes.append((name, moved.within(WIDTH, HEIGHT)))
            yield picture, boxes


def backdrop(scene: int) -> Frame:
    """A smooth wall with a few panels, another for each scene."""
    generator = np.random.default_rng(scene)
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    first, second = generator.uniform(20, 235, (2, 3))
    wall = first + (second - first) * (0.6 * x + 0.4 * y)[..., None]
    for _ in range(4):
        left, top = generator.integers(0, WIDTH - 300), generator.integers(0, HEIGHT - 200)
        wall[top : top + 150, left : left + 220] = generator.uniform(20, 235, 3)
    return wall.astype(np.uint8)


SHOTS = {  # video → what it shows
    "alone.mp4": [Shot(16, 1, [("anna", 300, 200, 4)])],
    "cut.mp4": [Shot(12, 2, [("anna", 200, 100, 3)]), Shot(12, 3, [("bert", 700, 300, -4)])],
    "away.mp4": [Shot(12, 4, [("bert", 500, 200, 2)]), Shot(8, 4), Shot(10, 4, [("bert", 520, 200, 2)])],
    "second.mp4": [Shot(12, 5, [("cleo", 200, 200, 3)]), Shot(8, 5, [("cleo", 236, 200, 3), ("anna", 800, 200, 0)])],
    "wall.mp4": [Shot(6, 6)],
}


@dataclass(frozen=True)
class Raw:
    """A folder of raw videos, and what each frame of each shows: names with exact boxes."""

    folder: Path
    truth: dict[str, list[list[tuple[str, Box]]]]


@pytest.fixture(scope="session")
def actors() -> dict[str, Actor]:
    pytest.importorskip("dlib")
    if find_spec("face_recognition_models") is None:  # not imported: it needs pkg_resources for that
        pytest.skip("face_recognition_models is missing: pip install 'memcomp[faces]'")
    return {name: Actor.of(seed) for name, seed in PEOPLE.items()}


@pytest.fixture(scope="session")
def raw(actors: dict[str, Actor], tmp_path_factory: pytest.TempPathFactory) -> Raw:
    folder = tmp_path_factory.mktemp("raw")
    truth: dict[str, list[list[tuple[str, Box]]]] = {}
    for name, shots in SHOTS.items():
        truth[name] = []
        with write_video(folder / name, RATE) as append:
            for shot in shots:
                for picture, boxes in shot.draw(actors):
                    append(picture)
                    truth[name].append(boxes)
    _turned(folder / "alone.mp4", folder / "turned.mp4")
    truth["turned.mp4"] = truth["alone.mp4"]
    truth["uneven.mp4"] = _uneven(folder / "uneven.mp4", actors)
    whole = (folder / "alone.mp4").read_bytes()
    (folder / "damaged.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    return Raw(folder, truth)


def _turned(source: Path, target: Path) -> None:
    """The same video stored lying on its side, with a header that turns it upright."""
    with av.open(str(source)) as read:
        pictures = [np.rot90(frame.to_ndarray(format="rgb24")) for frame in read.decode(video=0)]
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "16", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = pictures[0].shape[0], pictures[0].shape[1], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    content = bytearray(target.read_bytes())
    upright = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    place = content.rindex(upright)  # the track's, after the film's
    content[place : place + len(turned)] = turned
    target.write_bytes(content)


def _uneven(target: Path, actors: dict[str, Actor]) -> list[list[tuple[str, Box]]]:
    """Frames that last 1, 2 or 3 clicks of 1/50 s; returns what is seen at 25 a second."""
    shown, time = [], Fraction(0)
    with write_video(target, 50) as append:
        for number, (picture, boxes) in enumerate(Shot(12, 7, [("cleo", 400, 250, 5)]).draw(actors)):
            append(picture, time, Fraction(1 + number % 3, 50))
            shown.append((time, boxes))
            time += Fraction(1 + number % 3, 50)
    ticks = [Fraction(k, RATE) for k in range(-(-time * RATE // 1))]
    return [next(boxes for begins, boxes in reversed(shown) if begins <= tick) for tick in ticks]


class Bright:
    """Finds what is bright, and tells people by the colour in the middle."""

    about = "brightness"

    def __init__(self, coder: bool) -> None:
        self.coder = coder

    def __call__(self, pictures):
        found = []
        for picture in pictures:
            rows, columns = (picture.max(2) > 150).nonzero()
            if len(rows) < 9:
                found.append(NotFound.count(0))
            elif self.coder:
                found.append(picture[round(rows.mean()), round(columns.mean())].astype(float))
            else:
                found.append(np.array([[columns.min(), rows.min(), columns.max(), rows.max()]], float))
        return found


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are what is bright: found in a moment, in pictures of any size."""
    monkeypatch.setattr(workers.Task, "tools", lambda task: Tools(Bright(False), Bright(True)))
