"""Training pairs of procedural heads with their exact motion, made once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memcomp.experiments.data.augment import augment_pair
from memcomp.experiments.data.cache import keep, usable
from memcomp.experiments.data.heads import correspondence, landmarks
from memcomp.experiments.data.heads.raster import pixel_centres
from memcomp.experiments.data.heads_set import HeadClips, HeadsSet
from memcomp.experiments.data.motion import LANDMARKS, mirrored, with_motion
from memcomp.experiments.data.pairs import PairSet, seeded
from memcomp.experiments.recipe.sections import AugmentSection

PAIRS = 24  # of each person, kept on disk: a motion takes longer to make than to read
VERSION = 1  # of the files


@dataclass(frozen=True)
class Motions:
    """The motions of N pairs of frames of one person."""

    frames: Tensor  # (N, 2) source and driving frame
    shift: Tensor  # (N, H, W, 2) half precision, flow less the place itself: small, so that its digits count
    visibility: Tensor  # (N, 1, H, W) uint8
    points: Tensor  # (T, 10, 2) landmarks of every frame

    @classmethod
    def make(cls, heads: HeadsSet, i: int) -> Motions:
        """Draw the pairs of clip i, two different frames each in either order, and follow their pixels."""
        draw, length = seeded(0, f"motions {heads.split}", i), heads.length
        first = torch.randint(length, (PAIRS,), generator=draw)
        second = (first + 1 + torch.randint(max(length - 1, 1), (PAIRS,), generator=draw)) % length
        who, poses = heads.identity(i), heads.poses(i)
        found = correspondence(who, poses[first], poses[second], heads.size)
        shift = (found.flow - pixel_centres(heads.size)).half()
        points = landmarks(who, poses, heads.size).points[:, LANDMARKS]
        return cls(torch.stack([first, second], 1), shift, found.visibility.to(torch.uint8), points)

    @classmethod
    def of(cls, heads: HeadsSet, i: int) -> Motions:
        """Read those of clip i from the cache, or make them and keep them there."""
        path = _path(heads, i)
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError):  # none there, or damaged
            made = cls.make(heads, i)
            tensors = {name: value.contiguous() for name, value in vars(made).items()}
            keep(path, lambda temporary: save_file(tensors, temporary))
            return made


class MotionPairs(PairSet):
    """Pair i → {"source": float (7, H, W), "driving": as source, …}; see `PairSet`. Colours are changed here already.

    Of each person `PAIRS` pairs of frames were drawn once, in either order, so that swapping a pair is no augmentation
    here; mirroring and colours are.
    """

    def __init__(self, heads: HeadsSet, seed: int, repeats: int = 1, augment: AugmentSection | None = None) -> None:
        super().__init__(HeadClips(heads), seed, repeats, augment)
        self.heads = heads
        self._motions: dict[int, Motions] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator, person = seeded(self.seed, "pair", index), self._person(index)
        if person not in self._motions:
            self._motions[person] = Motions.of(self.heads, person)
        motions = self._motions[person]
        which = int(torch.randint(len(motions.frames), (), generator=generator))
        first, second = motions.frames[which].tolist()
        pair = self.clips.read(person, [first, second])
        mirror = self.augment is not None and torch.rand((), generator=generator).item() < self.augment.mirror
        if self.augment is not None:
            pair = augment_pair(pair, replace(self.augment, time_flip=0.0, mirror=0.0), generator)
        source, driving = pair.float().div(255)
        places, visibility = pixel_centres(self.heads.size), motions.visibility[which].float()
        source = with_motion(source, places, torch.ones_like(visibility), motions.points[first])
        driving = with_motion(driving, places + motions.shift[which].float(), visibility, motions.points[second])
        if mirror:
            source, driving = mirrored(source), mirrored(driving)
        return {"source": source, "driving": driving, "colours": (), "skipped": [], "converted": ""}

    def make_all(self) -> None:
        """Make the motions of all people that the cache lacks, showing progress."""
        from tqdm import tqdm

        missing = [i for i in range(len(self.heads)) if not _path(self.heads, i).exists()]
        if missing and not usable(self.heads.folder):
            return
        for i in tqdm(missing, unit="clip", desc=f"following {self.heads.split} heads", disable=not missing):
            Motions.of(self.heads, i)


class FollowedPairs(MotionPairs):
    """Pair i → {"source": float (6, H, W), "driving": as source, …}: colours, where the source shows them, and whether.

    That is the flow to the source (x, y) and its visibility, as in `memcomp.adapters.true_motion.pack`.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = super().__getitem__(index)
        return found | {name: found[name][:6] for name in ("source", "driving")}


def _path(heads: HeadsSet, i: int) -> Path:
    return heads.path(i).with_suffix(f".motion{VERSION}")
