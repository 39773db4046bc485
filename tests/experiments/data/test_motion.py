"""Pairs with their exact motion: what the laboratory host is trained and measured on."""

import dataclasses

import pytest
import torch

from memcomp.adapters import create_host
from memcomp.adapters.true_motion import Given
from memcomp.experiments.data.heads import landmarks
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.data.motion import LANDMARKS, mirrored
from memcomp.experiments.data.motion_pairs import FollowedPairs, MotionPairs, Motions, _path
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import AugmentSection

SIZE = 64


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return HeadsSet("train", 2, 4, SIZE, cache_dir=tmp_path_factory.mktemp("cache"), rate=2.0, motion=True)


def warped(source: torch.Tensor, driving: torch.Tensor) -> torch.Tensor:
    flow = Given.unpack(driving[None], len(LANDMARKS)).flow
    return torch.nn.functional.grid_sample(source[None, :3], flow, align_corners=False)[0]


def error_where_visible(source: torch.Tensor, driving: torch.Tensor, picture: torch.Tensor) -> float:
    visible = driving[5] > 0
    return (picture - driving[:3]).abs()[:, visible].mean().item()


def test_a_pair_leads_from_its_source_to_its_driving_frame(heads):
    pairs, moved, copied = MotionPairs(heads, seed=0), 0.0, 0.0
    for i in range(12):
        pair = pairs[i]
        source, driving = pair["source"], pair["driving"]
        assert source.shape == driving.shape == (7, SIZE, SIZE) and not pair["skipped"]
        assert (source[5] == 1).all() and set(driving[5].unique().tolist()) <= {0.0, 1.0}
        moved += error_where_visible(source, driving, warped(source, driving))
        copied += error_where_visible(source, driving, source[:3])
    assert moved < 0.7 * copied


def test_followed_pairs_are_those_with_motion_less_the_landmarks(heads):
    with_motion, followed = MotionPairs(heads, seed=0)[5], FollowedPairs(heads, seed=0)[5]
    for name in ("source", "driving"):
        assert torch.equal(followed[name], with_motion[name][:6])
    assert 0 < followed["driving"][5].mean() < 1 == followed["source"][5].mean()


def test_mirroring_takes_picture_flow_and_landmarks_along(heads):
    plain = MotionPairs(heads, seed=0)[3]
    source, driving = (mirrored(plain[name]) for name in ("source", "driving"))
    torch.testing.assert_close(
        error_where_visible(source, driving, warped(source, driving)),
        error_where_visible(plain["source"], plain["driving"], warped(plain["source"], plain["driving"])),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(mirrored(source), plain["source"])
    there = Given.unpack(source[None], 10).value[0]
    before = Given.unpack(plain["source"][None], 10).value[0]
    torch.testing.assert_close(there[4], before[5] * torch.tensor([-1.0, 1.0]))  # the eyes have changed places


def test_the_augmented_pair_is_the_mirrored_one_and_each_draw_is_its_own(heads):
    settings = AugmentSection(time_flip=0.5, mirror=1.0)
    always, never = MotionPairs(heads, 0, augment=settings), MotionPairs(heads, 0)
    assert torch.equal(always[5]["driving"], always[5]["driving"])
    shown = {tuple(Given.unpack(never[i]["driving"][None], 10).value.flatten().tolist()) for i in range(20)}
    assert len(shown) > 3
    lone = MotionPairs(heads, 0, augment=dataclasses.replace(settings, mirror=0.0))
    assert lone[5]["driving"].shape == (7, SIZE, SIZE)


def test_motions_are_kept_and_a_damaged_file_is_made_anew(heads):
    Motions.of(heads, 0)
    first = Motions.make(heads, 0)
    path = _path(heads, 0)
    assert path.is_file()
    path.write_bytes(path.read_bytes()[:100])
    again = Motions.of(heads, 0)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    torch.testing.assert_close(first.points, landmarks(heads.identity(0), heads.poses(0), SIZE).points[:, LANDMARKS])


def test_evaluation_pairs_of_two_people_lead_to_the_true_target(heads):
    pair = heads.cross_identity(1, seed=3)[0]
    assert pair.source.shape == pair.driving.shape == (7, SIZE, SIZE) and pair.revealed.shape == (1, SIZE, SIZE)
    visible = (pair.driving[5] > 0) & ~pair.disoccluded[0]
    gap = (warped(pair.source, pair.driving) - pair.target).abs()[:, visible].mean()
    assert gap < (pair.source[:3] - pair.target).abs()[:, visible].mean()


@pytest.mark.parametrize("decoder", ["fomm", "tpsm"])
def test_the_upper_bound_starts_as_nothing_and_sees_everything(heads, decoder):
    model = {"decoder": decoder, "generator_params": {"block_expansion": 4, "max_features": 8, "num_down_blocks": 2}}
    if decoder == "fomm":
        model["generator_params"]["num_bottleneck_blocks"] = 1
    torch.manual_seed(0)
    plain = create_host("true_motion", model)
    wide = create_host("true_motion", model | {"completion_width": 8})
    wide.generator.load_state_dict(plain.generator.state_dict(), strict=False)
    pair = MotionPairs(heads, 0)[1]
    source, driving = pair["source"][None], pair["driving"][None]
    assert torch.equal(wide.eval()(source, driving).prediction, plain.eval()(source, driving).prediction)
    wide.train()(source, driving).prediction.mean().backward()
    assert wide.generator.completion.output.weight.grad.abs().sum() > 0


def test_a_recipe_of_the_laboratory_needs_heads():
    from memcomp.experiments.errors import UserError

    assert load_recipe("demo/true_motion").data.channels == 7
    with pytest.raises(UserError, match=r"data.motion: expected false, only procedural heads"):
        load_recipe("demo/true_motion", ["data.kind=clips", "data.root=x"])
