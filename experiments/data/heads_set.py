"""A data set of procedural heads: disjoint splits, clips rendered once and kept on disk, pairs with true targets."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from memcomp.experiments.data.cache import cache_folder, keep, usable
from memcomp.experiments.data.heads import FAR, NEAR, RENDERER_VERSION, Identity, Poses, disocclusion, render
from memcomp.experiments.data.heads.pose import FRAME_RATE
from memcomp.experiments.data.motion import pair_with_motion
from memcomp.experiments.errors import UserError

SPLITS = ("train", "val", "test")
MOST_IDENTITIES = 1_000_000  # of one split and seed: keeps the seeds of the splits apart


@dataclass(frozen=True)
class EvalPair:
    """One evaluation pair. Images are (3, H, W) RGB in [0, 1]; of a set with depth, source and driving (4, H, W)."""

    source: Tensor
    driving: Tensor
    target: Tensor  # the source's identity with the driving pose and expression; same identity: the driving frame
    disoccluded: Tensor  # (1, H, W) bool: pixels of the target showing what the source hides
    name: str
    source_angles: Tensor  # (3,) yaw, pitch, roll in degrees
    driving_angles: Tensor  # (3,)
    revealed: Tensor | None = None  # (1, H, W) bool, of a set with motion: background that the source's head covers


class HeadsSet:
    """Clips of seeded identities; `frames(i)` renders clip i or reads it from the cache.

    Args:
        split: "train", "val" or "test"; no identity is in two of them, whatever their sizes.
        identities: how many people, one clip each.
        frames: length of a clip.
        size: height and width of a frame, pixels.
        seed: another seed gives other people.
        cache_dir: where rendered clips are kept; None: $MEMCOMP_CACHE, or ~/.cache/memcomp.
        rate: frames per second of the motion; a low one gives few frames that differ much.
        depth: give pictures a fourth channel, their disparity (see `memcomp.experiments.data.heads.Frames.disparity`).
        motion: give the pictures of evaluation pairs their exact motion (see `memcomp.experiments.data.motion`).

    Raises:
        UserError: unknown split, or a number out of range.
    """

    def __init__(
        self,
        split: str,
        identities: int,
        frames: int,
        size: int,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        rate: float = FRAME_RATE,
        depth: bool = False,
        motion: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"data split {split!r}: expected one of {', '.join(SPLITS)}")
        for name, value, most in (("identities", identities, MOST_IDENTITIES), ("frames", frames, 10**6)):
            if not 1 <= value <= most:
                raise UserError(f"heads: {name} = {value}, expected 1 … {most}")
        if not 16 <= size <= 2048:
            raise UserError(f"heads: size = {size}, expected 16 … 2048 pixels")
        if not 0 < rate <= 1000:
            raise UserError(f"heads: rate = {rate}, expected frames per second in 0 … 1000")
        if seed < 0:
            raise UserError(f"heads: seed = {seed}, expected 0 or more")
        self.split, self.length, self.size, self.seed, self.rate = split, frames, size, seed, rate
        self.depth, self.channels, self.motion = depth, 3 + depth, motion
        self._identities = identities
        self._first = (seed * len(SPLITS) + SPLITS.index(split)) * MOST_IDENTITIES
        self.folder = cache_folder(cache_dir) / "heads"
        self._checked: set[Path] = set()

    def __len__(self) -> int:
        return self._identities

    def identity(self, i: int) -> Identity:
        """The person of clip i."""
        return Identity.sample(self._seed(i))

    def poses(self, i: int, frames: int | None = None, steps: int = 1) -> Poses:
        """Pose and expression in every frame of clip i, or in `frames` frames, `steps` in the time of one."""
        return Poses.trajectory(self._seed(i), frames or self.length, self.rate * steps)

    def angles(self, i: int) -> Tensor:
        """Yaw, pitch and roll of clip i in degrees, (T, 3)."""
        return self.poses(i).angles()

    def frames(self, i: int) -> Tensor:
        """Read clip i, or render it if the cache lacks it or holds it damaged: uint8 (T, 3 or 4, H, W), RGB first."""
        path = self.path(i)
        clip = self._read(path)
        if clip is None:
            clip = self._draw(i, slice(None))
            self._write(path, clip)
        return clip

    def some_frames(self, i: int, which: Sequence[int]) -> Tensor:
        """Render frames of clip i by number, as `frames` would give them: uint8 (len(which), 3 or 4, H, W)."""
        return self._draw(i, torch.tensor(which))

    def render(self, who: Identity, poses: Poses) -> Tensor:
        """Render anyone as this set shows people: (T, 3 or 4, H, W) in [0, 1]."""
        shown = render(who, poses, self.size)
        return shown.rgbd() if self.depth else shown.image

    def clip_name(self, i: int) -> str:
        """File name of clip i among written clips and in lists of pairs: its number is its person in any split."""
        return f"head{self._seed(i):07d}.mp4"

    def path(self, i: int) -> Path:
        """File of clip i in the cache; its name depends on everything that decides the pixels."""
        depth = ("disparity", NEAR, FAR) if self.depth else ()
        key = repr((RENDERER_VERSION, self.identity(i), self.poses(i).as_tensor().tolist(), self.size, *depth))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.rgb{'d' * self.depth}"

    def render_all(self, workers: int = 0) -> None:
        """Render every clip that the cache lacks, in `workers` processes (0: in this one), showing progress."""
        missing = [i for i in range(len(self)) if self._read(self.path(i)) is None]
        if not missing or not usable(self.folder):
            return
        bar = tqdm(total=len(missing), unit="clip", desc=f"rendering {self.split} heads at {self.size} px")
        with bar:
            if workers == 0:
                for i in missing:
                    self.frames(i)
                    bar.update()
                return
            with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
                for done in as_completed([pool.submit(_render_one, self, i) for i in missing]):
                    done.result()
                    bar.update()

    def same_identity(self, n: int, seed: int = 0) -> Sequence[EvalPair]:
        """Draw n pairs of frames of one clip each; the target is the driving frame."""
        return EvalPairs(self, _draw(n, len(self), self.length, seed, cross=False))

    def cross_identity(self, n: int, seed: int = 0) -> Sequence[EvalPair]:
        """Draw n pairs of frames of two people; the target shows the source's person as the driving one is posed."""
        if len(self) < 2:
            raise UserError(f"cross-identity pairs need 2 or more identities, the {self.split} split has {len(self)}")
        return EvalPairs(self, _draw(n, len(self), self.length, seed, cross=True))

    def _draw(self, i: int, which: slice | Tensor) -> Tensor:
        return (self.render(self.identity(i), self.poses(i)[which]) * 255).round_().to(torch.uint8)

    def _seed(self, i: int) -> int:
        return self._first + range(len(self))[i]

    def _read(self, path: Path) -> Tensor | None:
        """Read a clip's file, which ends with the CRC-32 of its pixels; None if it is missing or damaged."""
        shape = (self.length, self.channels, self.size, self.size)
        count = math.prod(shape)
        try:
            content = bytearray(path.read_bytes())
        except OSError:
            return None
        if len(content) != count + 4:
            return None
        if path not in self._checked:
            if zlib.crc32(memoryview(content)[:count]) != int.from_bytes(content[count:], "little"):
                return None
            self._checked.add(path)
        return torch.frombuffer(content, dtype=torch.uint8, count=count).view(shape)

    def _write(self, path: Path, clip: Tensor) -> None:
        pixels = clip.contiguous().numpy().tobytes()
        keep(path, lambda temporary: temporary.write_bytes(pixels + zlib.crc32(pixels).to_bytes(4, "little")))


def _render_one(heads: HeadsSet, i: int) -> None:
    heads.frames(i)


def _draw(n: int, people: int, length: int, seed: int, *, cross: bool) -> list[tuple[int, int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    places = []
    for _ in range(n):
        a, b, s, d = (int(v) for v in torch.randint(2**31, (4,), generator=generator))
        a %= people
        b = (a + 1 + b % (people - 1)) % people if cross else a
        s %= length
        d = d % length if cross or length == 1 else (s + 1 + d % (length - 1)) % length
        places.append((a, s, b, d))
    return places


class HeadClips:
    """Procedural heads as a `ClipSource`: every identity is one person with one clip."""

    def __init__(self, heads: HeadsSet) -> None:
        self.heads = heads
        self._mapped: dict[int, np.ndarray] = {}
        self.people: Sequence[Sequence[int]] = [[identity] for identity in range(len(heads))]

    def name(self, clip: int) -> str:
        """Name of a clip: the number of its identity."""
        return f"head {clip}"

    def notes(self, clip: int) -> str:
        """Nothing: what is rendered needs no conversion."""
        return ""

    def count(self, clip: int) -> int:
        """Number of frames of a clip."""
        return self.heads.length

    def read(self, clip: int, frames: Sequence[int]) -> Tensor:
        """Read frames: uint8 (len(frames), 3, H, W), or (len(frames), 4, H, W) with depth."""
        if clip not in self._mapped:
            self.heads.frames(clip)  # renders what the cache lacks; later reads touch two frames of its file
            if not self.heads.path(clip).is_file():  # there is no cache that could be written
                return self.heads.some_frames(clip, frames)
            shape = (self.heads.length, self.heads.channels, self.heads.size, self.heads.size)
            self._mapped[clip] = np.memmap(self.heads.path(clip), np.uint8, "r", shape=shape)
        return torch.from_numpy(self._mapped[clip][list(frames)])


class EvalPairs(Sequence[EvalPair]):
    """Fixed pairs, each rendered when it is asked for.

    Args:
        heads: whose people these are.
        places: of each pair the source clip and its frame, the driving clip and its frame.
    """

    def __init__(self, heads: HeadsSet, places: Sequence[tuple[int, int, int, int]]) -> None:
        self.heads, self.places = heads, list(places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> EvalPair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EvalPair]: ...
    def __getitem__(self, index: int | slice) -> EvalPair | Sequence[EvalPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        a, s, b, d = self.places[index]
        heads, size = self.heads, self.heads.size
        who, source, driving = heads.identity(a), heads.poses(a)[s], heads.poses(b)[d]
        images = heads.render(who, Poses.cat([source, driving]))
        shown, moving = images[0], images[1] if a == b else heads.render(heads.identity(b), driving)[0]
        revealed = None
        if heads.motion:
            shown, moving, revealed = pair_with_motion(shown, moving, who, source, driving)
        return EvalPair(
            source=shown,
            driving=moving,
            target=images[1, :3],
            disoccluded=disocclusion(who, source, driving, size)[0],
            name=f"{heads.split}{a:05d}-{s:04d}_{heads.split}{b:05d}-{d:04d}",
            source_angles=source.angles()[0],
            driving_angles=driving.angles()[0],
            revealed=revealed,
        )
