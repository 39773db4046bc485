"""Training pairs: two frames of one person.

Every draw of pair number i derives from (seed, i), so a run can be resumed at any step, with any number of worker
processes, and sees what it would have seen.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from memcomp.experiments.data.augment import Colours, draw_colours, flipped
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.sections import AugmentSection


class DamagedClip(UserError):
    """A clip that cannot be read: named and skipped in training, an error everywhere else."""


class ClipSource(Protocol):
    """Clips grouped by person, such as `Clips` and `HeadClips`."""

    people: Sequence[Sequence[int]]  # person → numbers of the person's clips

    def name(self, clip: int) -> str:
        """The clip's name, for messages."""

    def count(self, clip: int) -> int:
        """Number of frames; may raise `DamagedClip`."""

    def notes(self, clip: int) -> str:
        """What reading the clip converts, in words that name it; empty if nothing."""

    def read(self, clip: int, frames: Sequence[int]) -> Tensor:
        """Read frames: uint8 (len(frames), C, H, W), C = 3 or, with a disparity, 4; may raise `DamagedClip`."""


class PairSet(Dataset[dict[str, Any]]):
    """Training pairs without end.

    Each is {"source": uint8 (C, H, W), "driving": as source, "colours": how `batching.on_device` is to change those of
    both, "skipped": damaged clips, "converted": as `notes`}.

    One epoch of `len(people) * repeats` pairs meets every person `repeats` times, in an order of its own. Of the person
    one clip is drawn, of the clip two frames with replacement, the earlier one being the source.
    """

    def __init__(self, clips: ClipSource, seed: int, repeats: int = 1, augment: AugmentSection | None = None) -> None:
        self.clips, self.seed, self.repeats, self.augment = clips, seed, repeats, augment
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def epoch_length(self) -> int:
        """Pairs in one epoch."""
        return len(self.clips.people) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = seeded(self.seed, "pair", index)
        clips = self.clips.people[self._person(index)]
        skipped: list[str] = []
        for _ in range(100):
            clip = clips[_draw(len(clips), generator)]
            try:
                count = self.clips.count(clip)
                frames = sorted(_draw(count, generator) for _ in range(2))
                pair = self.clips.read(clip, frames)
                break
            except DamagedClip as damage:
                skipped.append(str(damage))
                clips = self.clips.people[_draw(len(self.clips.people), generator)]
        else:
            raise UserError(f"100 damaged clips in a row, the last one {skipped[-1]}")
        colours: Colours = ()
        if self.augment is not None:
            pair, colours = flipped(pair, self.augment, generator), draw_colours(self.augment, generator)
        told = {"skipped": skipped, "converted": self.clips.notes(clip)}
        return {"source": pair[0], "driving": pair[1], "colours": colours, **told}

    def _person(self, index: int) -> int:
        epoch, place = divmod(index, self.epoch_length)
        if self._order[0] != epoch:
            order = torch.randperm(self.epoch_length, generator=seeded(self.seed, "epoch", epoch))
            self._order = (epoch, order % len(self.clips.people))
        return int(self._order[1][place])


def seeded(seed: int, purpose: str, index: int) -> torch.Generator:
    """Make a CPU generator for one draw; different seeds, purposes and indices give unrelated streams."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
