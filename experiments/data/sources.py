"""The pairs of a recipe, made of procedural heads or of folders of clips."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memcomp.experiments.data.clips import Clips, user_cache
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.data.pairs import ClipSource, PairSet
from memcomp.experiments.recipe.sections import Recipe

HELD_OUT_PEOPLE = 16  # identities of the held-out heads


class HeadClips:
    """Procedural heads as a `ClipSource`: every identity is one person with one clip."""

    def __init__(self, heads: HeadsSet) -> None:
        self.heads = heads
        self._mapped: dict[int, np.ndarray] = {}
        self.people: Sequence[Sequence[int]] = [[identity] for identity in range(len(heads))]

    def name(self, clip: int) -> str:
        """Name of a clip: the number of its identity."""
        return f"head {clip}"

    def count(self, clip: int) -> int:
        """Number of frames of a clip."""
        return self.heads.length

    def read(self, clip: int, frames: Sequence[int]) -> Tensor:
        """Read frames: uint8 (len(frames), 3, H, W), or (len(frames), 4, H, W) with depth."""
        if clip not in self._mapped:
            self.heads.frames(clip)  # renders what the cache lacks; later reads touch two frames of its file
            shape = (self.heads.length, self.heads.channels, self.heads.size, self.heads.size)
            self._mapped[clip] = np.memmap(self.heads.path(clip), np.uint8, "r", shape=shape)
        return torch.from_numpy(self._mapped[clip][list(frames)])


def training_pairs(recipe: Recipe) -> PairSet:
    """Make the pairs that a recipe trains on."""
    return PairSet(_clips(recipe, "train"), recipe.seed, recipe.data.repeats, recipe.data.augment)


def held_out_pairs(recipe: Recipe) -> PairSet:
    """Make pairs of people that training does not see (heads: split "val"; clips: the folder test/), not augmented.

    They are the same for every seed, so that runs compare.
    """
    return PairSet(_clips(recipe, "val" if recipe.data.kind == "heads" else "test"), seed=0)


def _clips(recipe: Recipe, split: str) -> ClipSource:
    data = recipe.data
    cache = Path(data.cache) if data.cache else user_cache()
    if data.kind == "clips":
        assert data.root is not None  # the recipe's check
        return Clips(Path(data.root) / split, recipe.size, cache=cache / "clips", cache_gb=data.cache_gb)
    identities = data.identities if split == "train" else HELD_OUT_PEOPLE
    heads = HeadsSet(split, identities, data.frames, recipe.size, data.seed, cache, data.rate, data.depth)
    heads.render_all(data.workers)
    return HeadClips(heads)
