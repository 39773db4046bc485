"""Which pairs a command measures: drawn from a seed, or those of lists; of the recipe's data, or of other clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from memcomp.experiments.data.cache import cache_folder
from memcomp.experiments.data.clips import Clips, held_out_folder
from memcomp.experiments.data.heads_set import EvalPairs, HeadsSet
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.clip_pairs import draw_pairs, is_cross, tell_conversions
from memcomp.experiments.evaluation.options import CROSS, DRAWN, SAME, PairOptions
from memcomp.experiments.evaluation.pair_lists import ListedClips, ListedHeads, ListReport, read_list
from memcomp.experiments.evaluation.scores import Pair
from memcomp.experiments.recipe.sections import Recipe

PEOPLE = 50  # identities of the test split of procedural heads
NO_TRUTH = "pairs of two real people have no truth: name metrics that need none with --metrics"


def at_root(recipe: Recipe, root: Path | None) -> Recipe:
    """The recipe with clips below `root` as its data; unchanged if that is None."""
    if root is None:
        return recipe
    data = dataclasses.replace(recipe.data, kind="clips", root=str(root), depth=False)
    return dataclasses.replace(recipe, data=data)


def heads_size(recipe: Recipe) -> int | None:
    """Side length in pixels if the data are procedural heads, else None; decides which face backend is used."""
    return recipe.size if recipe.data.kind == "heads" else None


def has_truth(recipe: Recipe, kind: str) -> bool:
    """Whether pairs of a kind have a true target: two real people have none."""
    return recipe.data.kind == "heads" or kind == SAME


def evaluation_pairs(
    recipe: Recipe, kinds: Sequence[str], options: PairOptions, report: ListReport | None = None
) -> dict[str, Sequence[Pair]]:
    """Kind → pairs of people that training does not see: the recipe's own data, test split.

    Args:
        recipe: `data`, `size`; see `at_root` for other clips.
        kinds: of `SAME` and `CROSS`.
        options: how many, which.
        report: what became of the rows of lists is added to it.

    Raises:
        UserError: what `HeadsSet` and `Clips` refuse, or a list without a usable row or a pair of these kinds.
    """
    if not options.files:
        data, count = test_split(recipe), DRAWN if options.count is None else options.count
        if isinstance(data, HeadsSet):
            draw = {SAME: data.same_identity, CROSS: data.cross_identity}
            return {kind: draw[kind](count, options.seed) for kind in kinds}
        pairs = {kind: draw_pairs(data, count, options.seed, cross=kind == CROSS) for kind in kinds}
        tell_conversions([pair for drawn in pairs.values() for pair in drawn])
        return dict(pairs)
    listed = listed_pairs(recipe, options.files, options.count, report or ListReport())
    if not any(listed[kind] for kind in kinds):
        found = ", ".join(f"{len(chosen)} of {kind}" for kind, chosen in listed.items())
        files = ", ".join(map(str, options.files))
        raise UserError(f"{files}: expected pairs of {' or '.join(kinds)}, found {found}; {NO_TRUTH}")
    return {kind: listed[kind] for kind in kinds if listed[kind]}


def listed_pairs(
    recipe: Recipe, files: Sequence[Path], count: int | None, report: ListReport
) -> Mapping[str, Sequence[Pair]]:
    """Kind → the pairs of lists, in their order."""
    if recipe.data.kind == "heads":
        heads = ListedHeads(_test_heads(recipe))
        places = [place for file in files for place in read_list(file, heads.pair, count, report)]
        return {
            kind: EvalPairs(heads.heads, [place for place in places if (place[0] != place[2]) == (kind == CROSS)])
            for kind in (SAME, CROSS)
        }
    cache, cache_gb = _cache(recipe) / "clips", recipe.data.cache_gb
    clips = ListedClips(Path(str(recipe.data.root)), recipe.size, cache=cache, cache_gb=cache_gb)
    pairs = [pair for file in files for pair in read_list(file, clips.pair, count, report)]
    tell_conversions(pairs)
    return {kind: [pair for pair in pairs if is_cross(pair) == (kind == CROSS)] for kind in (SAME, CROSS)}


def test_split(recipe: Recipe) -> HeadsSet | Clips:
    """The people of the recipe's own data that training does not see.

    Raises:
        UserError: what `HeadsSet` and `Clips` refuse.
    """
    if recipe.data.kind == "heads":
        return _test_heads(recipe)
    folder = held_out_folder(Path(str(recipe.data.root)))
    return Clips(folder, recipe.size, cache=_cache(recipe) / "clips", cache_gb=recipe.data.cache_gb)


def _test_heads(recipe: Recipe) -> HeadsSet:
    data = recipe.data
    cache = _cache(recipe)
    return HeadsSet(
        "test", PEOPLE, data.frames, recipe.size, data.seed, cache, data.rate, data.depth, motion=data.motion
    )


def _cache(recipe: Recipe) -> Path:
    return cache_folder(recipe.data.cache)
