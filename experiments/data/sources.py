"""The pairs of a recipe, made of procedural heads or of folders of clips."""

from pathlib import Path

from memcomp.experiments.data.cache import cache_folder
from memcomp.experiments.data.clips import Clips, person
from memcomp.experiments.data.heads_set import HeadClips, HeadsSet
from memcomp.experiments.data.pairs import PairSet
from memcomp.experiments.errors import UserError, few
from memcomp.experiments.recipe.sections import AugmentSection, Recipe
from memcomp.experiments.video import ClipFolder

HELD_OUT_PEOPLE = 16  # identities of the held-out heads


def training_pairs(recipe: Recipe) -> PairSet:
    """Make the pairs that a recipe trains on.

    Raises:
        UserError: a person of the clips is in train/ and in test/, and the recipe does not allow it.
    """
    if recipe.data.kind == "clips" and not recipe.data.shared_people:
        _refuse_shared_people(Path(str(recipe.data.root)))
    return _pairs(recipe, "train", recipe.seed, recipe.data.repeats, recipe.data.augment)


def people_on_both_sides(root: Path) -> list[str]:
    """Names of the people of whom clips are in `root`/train and in `root`/test; none if one of these is missing."""
    sides = [root / name for name in ("train", "test")]
    if not all(side.is_dir() for side in sides):
        return []
    train, test = (
        {clip.parent.name if found.by_person else person(clip) for clip in found.clips}
        for found in map(ClipFolder.of, sides)
    )
    return sorted(train & test)


def held_out_pairs(recipe: Recipe) -> PairSet:
    """Make pairs of people that training does not see (heads: split "val"; clips: the folder test/), not augmented.

    They are the same for every seed, so that runs compare.
    """
    return _pairs(recipe, "val" if recipe.data.kind == "heads" else "test", seed=0)


def _refuse_shared_people(root: Path) -> None:
    if shared := people_on_both_sides(root):
        raise UserError(
            f"data.root: {root}: expected nobody in train/ and in test/, {len(shared)} are in both (by folders, or by "
            f"names of clips up to the first # or _): {few(shared)}; data.shared_people=true allows it"
        )


def _pairs(recipe: Recipe, split: str, seed: int, repeats: int = 1, augment: AugmentSection | None = None) -> PairSet:
    data = recipe.data
    cache = cache_folder(data.cache)
    if data.kind == "clips":
        assert data.root is not None  # the recipe's check
        clips = Clips(Path(data.root) / split, recipe.size, cache=cache / "clips", cache_gb=data.cache_gb)
        return PairSet(clips, seed, repeats, augment)
    identities = data.identities if split == "train" else HELD_OUT_PEOPLE
    heads = HeadsSet(split, identities, data.frames, recipe.size, data.seed, cache, data.rate, data.depth)
    heads.render_all(data.workers)
    if data.pose:
        from memcomp.experiments.data.pose_pairs import PosePairs

        return PosePairs(heads, seed, repeats, augment)
    if not data.motion and not data.correspondence:
        return PairSet(HeadClips(heads), seed, repeats, augment)
    from memcomp.experiments.data.motion_pairs import FollowedPairs, MotionPairs

    pairs = (MotionPairs if data.motion else FollowedPairs)(heads, seed, repeats, augment)
    pairs.make_all()
    return pairs
