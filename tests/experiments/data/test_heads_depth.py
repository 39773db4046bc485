"""Procedural heads with their disparity as fourth channel: formula, cache, pairs, augmentation, evaluation."""

import hashlib
from pathlib import Path

import pytest
import torch

from memcomp.experiments.data import heads_set
from memcomp.experiments.data.augment import augment_pair
from memcomp.experiments.data.batching import collate
from memcomp.experiments.data.heads import FAR, NEAR, Frames, Identity, Poses, render
from memcomp.experiments.data.heads_set import HeadClips, HeadsSet
from memcomp.experiments.data.pairs import PairSet
from memcomp.experiments.recipe.sections import AugmentSection


def small(tmp_path: Path, *, depth: bool = True) -> HeadsSet:
    return HeadsSet("train", 2, 2, 32, cache_dir=tmp_path, depth=depth)


def test_disparity_is_affine_in_closeness_and_zero_behind_the_person() -> None:
    depth = torch.tensor([NEAR, FAR, float("inf"), 2 / (1 / NEAR + 1 / FAR), NEAR / 2]).view(1, 1, 1, -1)
    shown = Frames(torch.zeros(1, 3, 1, 5), depth, torch.zeros(1, 1, 1, 5, dtype=torch.uint8))
    torch.testing.assert_close(shown.disparity().flatten(), torch.tensor([1.0, 0, 0, 0.5, 1]))


def test_all_of_a_person_lies_between_near_and_far() -> None:
    for seed in range(3):
        shown = render(Identity.sample(seed), Poses.make(yaw=torch.tensor([0.0, 60]), zoom=1.07), 48)
        surface = shown.depth[shown.depth.isfinite()]
        assert surface.min() > NEAR and surface.max() < FAR
        assert torch.equal(shown.disparity() > 0, shown.depth.isfinite())


def test_the_nose_is_nearer_than_the_ears() -> None:
    found = render(Identity.sample(1), Poses.make(), 64).rgbd()[0, 3]
    middle, sides = found[28:40, 30:34].max(), found[28:40, [14, 49]]
    assert middle > sides.max() + 0.1


def test_pictures_are_the_same_with_and_without_depth_and_have_files_of_their_own(tmp_path: Path) -> None:
    plain, deep = small(tmp_path, depth=False), small(tmp_path)
    picture = plain.frames(0)
    with_depth = deep.frames(0)
    assert picture.shape == (2, 3, 32, 32) and with_depth.shape == (2, 4, 32, 32)
    assert torch.equal(picture, with_depth[:, :3])
    assert plain.path(0) != deep.path(0)
    expected = (render(deep.identity(0), deep.poses(0), 32).disparity() * 255).round().byte()
    assert torch.equal(small(tmp_path).frames(0)[:, 3:], expected)


def test_the_cache_of_pictures_without_depth_is_still_found(tmp_path: Path) -> None:
    heads = HeadsSet("val", 1, 2, 16, cache_dir=tmp_path)
    decides = (heads_set.RENDERER_VERSION, heads.identity(0), heads.poses(0).as_tensor().tolist(), 16)  # no depth
    assert heads.path(0).name == hashlib.sha256(repr(decides).encode()).hexdigest()[:32] + ".rgb"


def test_pairs_carry_the_disparity(tmp_path: Path) -> None:
    clips = HeadClips(small(tmp_path))
    batch = collate([PairSet(clips, seed=3)[i] for i in range(2)])
    assert batch["source"].shape == batch["driving"].shape == (2, 4, 32, 32)
    known = {frame.numpy().tobytes() for clip in range(2) for frame in clips.heads.frames(clip)}
    assert {frame.numpy().tobytes() for frame in batch["driving"]} <= known


@pytest.mark.parametrize("settings", [{"time_flip": 1.0}, {"time_flip": 0.0, "mirror": 1.0}])
def test_augmentation_moves_the_disparity_with_the_picture_and_colours_only_the_picture(
    settings: dict[str, float],
) -> None:
    pair = torch.randint(256, (2, 4, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colours = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.3}
    moved = augment_pair(pair, AugmentSection(**settings), torch.Generator().manual_seed(1))
    coloured = augment_pair(pair, AugmentSection(**settings, **colours), torch.Generator().manual_seed(1))
    assert torch.equal(moved, pair.flip(0) if settings["time_flip"] else pair.flip(-1))
    assert torch.equal(coloured[:, 3:], moved[:, 3:]) and not torch.equal(coloured[:, :3], moved[:, :3])
    plain = augment_pair(pair[:, :3], AugmentSection(**settings, **colours), torch.Generator().manual_seed(1))
    assert torch.equal(coloured[:, :3], plain)


@pytest.mark.parametrize("cross", [False, True])
def test_evaluation_pairs_have_a_disparity_but_for_the_target(tmp_path: Path, *, cross: bool) -> None:
    sets = small(tmp_path), small(tmp_path, depth=False)
    pairs = [heads.cross_identity(2) if cross else heads.same_identity(2) for heads in sets]
    for deep, plain in zip(*pairs, strict=True):
        assert deep.source.shape == deep.driving.shape == (4, 32, 32)
        assert torch.equal(deep.target, plain.target)
        assert torch.equal(deep.source[:3], plain.source) and torch.equal(deep.driving[:3], plain.driving)
        assert deep.source[3].max() > 0.3 and deep.driving[3].max() > 0.3
