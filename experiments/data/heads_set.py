"""A data set of procedural heads: disjoint splits, clips rendered once and kept on disk, pairs with true targets.

Also the `memcomp heads` command: a contact sheet, or ordinary clips.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from memcomp.experiments.data.heads import FAR, NEAR, RENDERER_VERSION, Identity, Poses, disocclusion, render
from memcomp.experiments.data.heads.pose import FRAME_RATE
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, writable_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        self.depth, self.channels = depth, 3 + depth
        self._identities = identities
        self._first = (seed * len(SPLITS) + SPLITS.index(split)) * MOST_IDENTITIES
        root = cache_dir or os.environ.get("MEMCOMP_CACHE") or Path.home() / ".cache" / "memcomp"
        self.folder = Path(root) / "heads"
        self._checked: set[Path] = set()

    def __len__(self) -> int:
        return self._identities

    def identity(self, i: int) -> Identity:
        """The person of clip i."""
        return Identity.sample(self._seed(i))

    def poses(self, i: int, frames: int | None = None, steps: int = 1) -> Poses:
        """Pose and expression of every frame of clip i; or of `frames` frames, `steps` in the time of one."""
        return Poses.trajectory(self._seed(i), frames or self.length, self.rate * steps)

    def angles(self, i: int) -> Tensor:
        """(T, 3) yaw, pitch, roll of clip i in degrees."""
        return self.poses(i).angles()

    def frames(self, i: int) -> Tensor:
        """Clip i: uint8 (T, 3 or 4, H, W), RGB first. A missing or damaged file of the cache is rendered again."""
        path = self.path(i)
        clip = self._read(path)
        if clip is None:
            clip = (self.render(self.identity(i), self.poses(i)) * 255).round_().to(torch.uint8)
            self._write(path, clip)
        return clip

    def render(self, who: Identity, poses: Poses) -> Tensor:
        """Anyone as this set shows people: (T, 3 or 4, H, W) in [0, 1]."""
        shown = render(who, poses, self.size)
        return shown.rgbd() if self.depth else shown.image

    def clip_name(self, i: int) -> str:
        """File name of clip i among written clips and in lists of pairs: its number is its person in any split."""
        return f"head{self._seed(i):07d}.mp4"

    def path(self, i: int) -> Path:
        """The cache's file of clip i; its name depends on everything that decides the pixels."""
        depth = ("disparity", NEAR, FAR) if self.depth else ()
        key = repr((RENDERER_VERSION, self.identity(i), self.poses(i).as_tensor().tolist(), self.size, *depth))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.rgb{'d' * self.depth}"

    def render_all(self, workers: int = 0) -> None:
        """Render every clip that the cache lacks, in `workers` processes (0: in this one), showing progress."""
        from tqdm import tqdm

        missing = [i for i in range(len(self)) if self._read(self.path(i)) is None]
        if not missing:
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
        """n pairs of frames of one clip each; the target is the driving frame."""
        return EvalPairs(self, _draw(n, len(self), self.length, seed, cross=False))

    def cross_identity(self, n: int, seed: int = 0) -> Sequence[EvalPair]:
        """n pairs of frames of two people each; the target shows the source's person as the driving one is posed."""
        if len(self) < 2:
            raise UserError(f"cross-identity pairs need 2 or more identities, the {self.split} split has {len(self)}")
        return EvalPairs(self, _draw(n, len(self), self.length, seed, cross=True))

    def _seed(self, i: int) -> int:
        return self._first + range(len(self))[i]

    def _read(self, path: Path) -> Tensor | None:
        """The clip of a sound file, None for a missing or damaged one. The file ends with the CRC-32 of its pixels."""
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
        with atomic_write(path) as temporary:
            temporary.write_bytes(pixels + zlib.crc32(pixels).to_bytes(4, "little"))


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
        return EvalPair(
            source=images[0],
            driving=images[1] if a == b else heads.render(heads.identity(b), driving)[0],
            target=images[1, :3],
            disoccluded=disocclusion(who, source, driving, size)[0],
            name=f"{heads.split}{a:05d}-{s:04d}_{heads.split}{b:05d}-{d:04d}",
            source_angles=source.angles()[0],
            driving_angles=driving.angles()[0],
        )


def write_clips(folder: str | os.PathLike[str], heads: HeadsSet, indices: Iterable[int] | None = None) -> list[Path]:
    """Write clips as `folder/<split>/<identity>.mp4` and a CSV of pose and landmarks beside each; returns the videos.

    Raises:
        UserError: the size is odd, or the folder cannot be written.
    """
    import imageio.v3 as imageio
    from tqdm import tqdm

    if heads.size % 2:
        raise UserError(f"heads: size = {heads.size}, expected an even number of pixels for clips")
    target = writable_folder(Path(folder) / heads.split)
    videos = []
    for i in tqdm(list(range(len(heads)) if indices is None else indices), unit="clip", desc=f"writing {target}"):
        video = target / heads.clip_name(i)
        frames = heads.frames(i)[:, :3].permute(0, 2, 3, 1).numpy()
        with atomic_write(video) as temporary:
            imageio.imwrite(temporary, frames, plugin="pyav", codec="libx264", fps=heads.rate)
        with atomic_write(video.with_suffix(".csv")) as temporary:
            temporary.write_text(_table(heads, i))
        videos.append(video)
    return videos


def _table(heads: HeadsSet, i: int) -> str:
    """CSV: one row per frame; pose in the units of `Poses`, then x, y in [-1, 1] and visibility of 68 landmarks."""
    from dataclasses import fields

    from memcomp.experiments.data.heads import landmarks

    poses = heads.poses(i)
    found = landmarks(heads.identity(i), poses)
    head = ["frame", *(f.name for f in fields(Poses)), *(f"{c}{k}" for k in range(68) for c in ("x", "y", "visible"))]
    lines = [",".join(head)]
    points = torch.cat([found.points, found.visible[..., None].float()], -1).flatten(1)
    for t, row in enumerate(torch.cat([poses.as_tensor(), points], 1).tolist()):
        lines.append(",".join([str(t), *(f"{v:.5g}" for v in row)]))
    return "\n".join(lines) + "\n"


def contact_sheet(seed: int, identities: int, size: int, split: str = "test") -> Tensor:
    """(3, identities * size, 8 * size): every row one person in eight poses, RGB in [0, 1]."""
    poses = Poses.make(
        yaw=torch.tensor([0.0, 30, -60, 60, -35, 0, 10, -15]),
        pitch=torch.tensor([0.0, 0, 0, 5, 10, 25, -25, 5]),
        roll=torch.tensor([0.0, 5, 0, 0, 10, 0, 0, -20]),
        mouth=torch.tensor([0.0, 0, 0.2, 0.5, 0, 0, 0, 1]),
        smile=torch.tensor([0.0, 0.8, 0, 0, -0.3, 0.5, 0, 0.4]),
        blink=torch.tensor([0.0, 0, 0, 0, 0, 0, 0.3, 1]),
        brows=torch.tensor([0.0, 0, 0, 1, -1, 0, 0, 0.5]),
        gaze_x=torch.tensor([0.0, 0.5, -0.5, 0, 0.4, 0, 0, 0]),
    )
    heads = HeadsSet(split, identities, 1, size, seed)
    rows = [torch.cat(list(render(heads.identity(i), poses, size).image), 2) for i in range(identities)]
    return torch.cat(rows, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp heads`."""
    parser.add_argument("--output", required=True, metavar="FILE.png|FOLDER", help="contact sheet, or clips")
    parser.add_argument("--split", default="test", choices=SPLITS, help="which people (default: %(default)s)")
    parser.add_argument("--identities", type=int, default=8, metavar="N", help="how many people (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=100, metavar="N", help="frames of a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="height and width (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the contact sheet or the clips, and say where."""
    output = Path(args.output)
    heads = HeadsSet(args.split, args.identities, args.frames, args.size, args.seed)
    if output.suffix.lower() == ".png":
        import imageio.v3 as imageio

        sheet = contact_sheet(args.seed, len(heads), args.size, args.split)
        with atomic_write(output) as temporary:
            imageio.imwrite(temporary, (sheet * 255).round().byte().permute(1, 2, 0).numpy())
        print(f"{output}: {len(heads)} people in 8 poses")
        return
    if output.suffix:
        raise UserError(f"--output {output}: expected a .png file for a contact sheet or a folder for clips")
    with tempfile.TemporaryDirectory() as scratch:  # clips are written once: no need to keep their frames in the cache
        heads.folder = Path(scratch)
        videos = write_clips(output, heads)
    print(f"{output}: {len(videos)} clips of {args.frames} frames")
