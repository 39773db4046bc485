"""Which pairs a command measures: drawn from a seed, or those of lists; of the recipe's data, or of other clips."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memcomp.experiments.data.clips import Clips
    from memcomp.experiments.data.heads_set import HeadsSet
    from memcomp.experiments.evaluation.pair_lists import ListReport
    from memcomp.experiments.evaluation.scores import Pair
    from memcomp.experiments.recipe.sections import Recipe

SAME, CROSS = "same identity", "cross identity"
PEOPLE = 50  # identities of the test split of procedural heads
DRAWN = 100  # pairs of each kind, if nothing else is said
NO_TRUTH = "pairs of two real people have no truth: name metrics that need none with --metrics"
LIST = "pair_list.csv"  # what was measured, for --pairs-file


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that measures pairs."""
    parser.add_argument(
        "--pairs", type=int, metavar="N", help=f"pairs of each kind (default: {DRAWN}, or all of a list)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs (default: %(default)s)")
    parser.add_argument(
        "--pairs-file",
        type=Path,
        action="append",
        default=[],
        metavar="CSV",
        help=f"these pairs: a {LIST} of a former run, or a list of upstream's",
    )
    parser.add_argument(
        "--root", type=Path, metavar="FOLDER", help="measure clips below this folder instead of the recipe's data"
    )


def at_root(recipe: Recipe, root: Path | None) -> Recipe:
    """The recipe with `--root` as its data, if there is one."""
    if root is None:
        return recipe
    data = dataclasses.replace(recipe.data, kind="clips", root=str(root), depth=False)
    return dataclasses.replace(recipe, data=data)


def heads_size(recipe: Recipe) -> int | None:
    """Of the pictures, pixels, if they show procedural heads; else None: what the backends of faces are chosen by."""
    return recipe.size if recipe.data.kind == "heads" else None


def has_truth(recipe: Recipe, kind: str) -> bool:
    """Whether pairs of a kind have a true target: two real people have none."""
    return recipe.data.kind == "heads" or kind == SAME


def evaluation_pairs(
    recipe: Recipe,
    kinds: Sequence[str],
    count: int | None,
    seed: int,
    files: Sequence[Path] = (),
    report: ListReport | None = None,
) -> dict[str, Sequence[Pair]]:
    """Kind → pairs of people that training does not see: the recipe's own data, test split.

    Args:
        recipe: `data`, `size`.
        kinds: of `SAME` and `CROSS`.
        count: pairs of each kind, of lists usable rows of each; None = `DRAWN`, all rows.
        seed: of the draw; the same pairs for every run, whatever its own seed.
        files: lists that name the pairs instead: see `pair_lists.py`.
        report: what became of their rows is added to it.

    Raises:
        UserError: what `HeadsSet` and `Clips` refuse, or a list without a usable row or a pair of these kinds.
    """
    from memcomp.experiments.data.heads_set import HeadsSet
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.evaluation.clip_pairs import draw_pairs
    from memcomp.experiments.evaluation.pair_lists import ListReport

    if not files:
        data, count = test_split(recipe), DRAWN if count is None else count
        if isinstance(data, HeadsSet):
            draw = {SAME: data.same_identity, CROSS: data.cross_identity}
            return {kind: draw[kind](count, seed) for kind in kinds}
        return {kind: draw_pairs(data, count, seed, cross=kind == CROSS) for kind in kinds}
    listed = listed_pairs(recipe, files, count, report or ListReport())
    if not any(listed[kind] for kind in kinds):
        found = ", ".join(f"{len(chosen)} of {kind}" for kind, chosen in listed.items())
        raise UserError(
            f"{', '.join(map(str, files))}: expected pairs of {' or '.join(kinds)}, found {found}; {NO_TRUTH}"
        )
    return {kind: listed[kind] for kind in kinds if listed[kind]}


def listed_pairs(
    recipe: Recipe, files: Sequence[Path], count: int | None, report: ListReport
) -> Mapping[str, Sequence[Pair]]:
    """Kind → the pairs of lists, in their order."""
    from memcomp.experiments.data.heads_set import EvalPairs
    from memcomp.experiments.evaluation.clip_pairs import is_cross
    from memcomp.experiments.evaluation.pair_lists import ListedClips, ListedHeads, read_list

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
    return {kind: [pair for pair in pairs if is_cross(pair) == (kind == CROSS)] for kind in (SAME, CROSS)}


def test_split(recipe: Recipe) -> HeadsSet | Clips:
    """The recipe's own data, people that training does not see.

    Raises:
        UserError: what `HeadsSet` and `Clips` refuse.
    """
    from memcomp.experiments.data.clips import Clips

    if recipe.data.kind == "heads":
        return _test_heads(recipe)
    root = Path(str(recipe.data.root))
    folder = root / "test" if (root / "test").is_dir() else root
    return Clips(folder, recipe.size, cache=_cache(recipe) / "clips", cache_gb=recipe.data.cache_gb)


def _test_heads(recipe: Recipe) -> HeadsSet:
    from memcomp.experiments.data.heads_set import HeadsSet

    data = recipe.data
    return HeadsSet("test", PEOPLE, data.frames, recipe.size, data.seed, _cache(recipe), data.rate, data.depth)


def _cache(recipe: Recipe) -> Path:
    from memcomp.experiments.data.clips import user_cache

    return Path(recipe.data.cache) if recipe.data.cache else user_cache()
