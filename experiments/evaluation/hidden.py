"""Pairs of procedural heads chosen by how much of the driving frame the source hides, and what models make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.adapters.true_motion import Given
from memcomp.experiments.data.heads import disocclusion
from memcomp.experiments.data.heads_set import EvalPairs, HeadsSet
from memcomp.experiments.evaluation.options import SAME
from memcomp.experiments.evaluation.scores import Model
from memcomp.experiments.output.figures import strips
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.video import to_frame

PEOPLE = 50  # of the test split
EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 1.0)  # shares of hidden pixels: as many pairs are taken of each range
DRAWN = 4000  # pairs to choose from
RULE = "the {} people whose pair hides most, one pair each"


def spread_pairs(recipe: Recipe, seed: int, count: int) -> EvalPairs:
    """Pairs of one person's frames, with their exact motion, as many of each range of hidden shares (`EDGES`).

    Args:
        recipe: whose heads these are; of the test split.
        seed: of the people (in place of `data.seed`) and of the choice.
        count: pairs.
    """
    data = recipe.data
    heads = HeadsSet("test", PEOPLE, data.frames, recipe.size, seed, data.cache, data.rate, motion=True)
    drawn = heads.same_identity(DRAWN, seed)
    assert isinstance(drawn, EvalPairs)
    wanted, taken = -(-count // (len(EDGES) - 1)), [0] * (len(EDGES) - 1)
    places: list[tuple[int, int, int, int]] = []
    for place in drawn.places:
        share = _hidden_share(heads, place)
        which = next(i for i, top in enumerate(EDGES[1:]) if share <= top)
        if taken[which] < wanted:
            taken[which] += 1
            places.append(place)
        if len(places) == count or min(taken) == wanted:
            break
    return EvalPairs(heads, places[:count])


def hidden_strip(path: str | Path, pairs: EvalPairs, models: Mapping[str, Model], count: int) -> str:
    """Draw source, driving frame, what the exact warp leaves, and each model's picture, of the pairs that hide most.

    Args:
        path: of the picture.
        pairs: with their exact motion.
        models: title → model.
        count: rows at most, one for each person.

    Returns:
        the rule by which the rows were chosen.
    """
    order = sorted(pairs.places, key=lambda place: -_hidden_share(pairs.heads, place))
    chosen = list({place[0]: place for place in reversed(order)}.values())  # of each person what hides most
    chosen = sorted(chosen, key=order.index)[:count]
    rows = {}
    for place in chosen:
        pair = EvalPairs(pairs.heads, [place])[0]
        source, driving = pair.source[None], pair.driving[None]
        shown = [source[:, :3], driving[:, :3], left_by_warp(source, driving)]
        shown += [model.predictor(SAME)(source, driving) for model in models.values()]
        label = f"{pair.disoccluded.float().mean().item():.0%} hidden" if pair.disoccluded is not None else ""
        rows[f"{label}\n({pairs.heads.clip_name(place[0])[4:-4]})"] = [to_frame(image[0]) for image in shown]
    strips(path, rows, [fill(title, 16) for title in ("source", "driving", "warped", *models)])
    return RULE.format(len(rows))


def left_by_warp(source: Tensor, driving: Tensor) -> Tensor:
    """The source (B, 7, H, W) warped by the exact motion to the driving frame, grey where it shows nothing."""
    given = Given.unpack(driving, 1)
    assert given.flow is not None and given.visibility is not None
    warped = F.grid_sample(source[:, :3], given.flow, align_corners=False, padding_mode="border")
    return torch.lerp(torch.full_like(warped, 0.5), warped, given.visibility)


def _hidden_share(heads: HeadsSet, place: Sequence[int]) -> float:
    person, source, _, driving = place
    poses = heads.poses(person)
    return disocclusion(heads.identity(person), poses[source], poses[driving], 64).float().mean().item()
