"""Who teaches face-vid2vid the head pose: procedural heads exactly, of faces a network whose weights are in a file."""

import pytest
import torch

from memcomp.adapters.facevid2vid.pose import pose_of, rotation
from memcomp.adapters.shared.resnet import ResNet
from memcomp.experiments.data.heads import Poses
from memcomp.experiments.data.heads.pose import rotation as of_heads
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.data.pairs import PairSet
from memcomp.experiments.data.pose_pairs import PosePairs, host_angles
from memcomp.experiments.data.sources import training_pairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import AugmentSection
from memcomp.experiments.training.pose_teacher import load_teacher


def test_the_host_s_angles_are_the_heads_rotation_with_y_downwards():
    poses = Poses.make(
        yaw=torch.tensor([0.0, 30.0, -55.0]), pitch=torch.tensor([0.0, 10.0, 20.0]), roll=torch.tensor([0.0, -15.0, 25])
    )
    found = host_angles(poses)
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    expected = mirror @ of_heads(*poses.angles().unbind(1)) @ mirror
    torch.testing.assert_close(rotation(found), expected, atol=2e-3, rtol=0)  # the host's half turn is 3.14
    one = [host_angles(Poses.make(**{angle: 20.0}))[0] for angle in ("yaw", "pitch", "roll")]
    torch.testing.assert_close(torch.stack(one), torch.diag(torch.tensor([20.0, 20.0, -20.0])))


@pytest.fixture
def heads(head_cache):
    return HeadsSet("train", 2, 3, 16, cache_dir=head_cache, rate=6)


def test_pairs_carry_their_pose_through_swaps_mirrors_and_colours(heads):
    augment = AugmentSection(time_flip=0.3, mirror=0.8, brightness=0.2)
    posed, plain = PosePairs(heads, 0, augment=augment), PairSet(PosePairs(heads, 0).clips, 0)
    mirrored = 0
    for index in range(12):
        pair, colours = posed[index], plain[index]
        assert pair["colours"] == () and pair["source"].shape == (6, 16, 16) and pair["source"][:3].max() <= 1
        given = {tuple(pose_of(colours[name][None])[0].tolist()) for name in ("source", "driving")}
        found = [pose_of(pair[name][None])[0] for name in ("source", "driving")]
        turned = {tuple((pose * torch.tensor([-1.0, 1.0, -1.0])).tolist()) for pose in found}
        assert {tuple(pose.tolist()) for pose in found} == given or turned == given
        mirrored += turned == given
    assert 0 < mirrored < 12
    angles = host_angles(heads.poses(0))
    clip = plain.clips.read(0, [0, 2])
    torch.testing.assert_close(pose_of(clip), angles[[0, 2]])
    assert torch.equal(clip[:, :3], heads.frames(0)[[0, 2]].float())


def test_a_recipe_of_heads_gives_the_pose(head_cache):
    few = ["data.identities=2", "data.frames=3", "size=16", f"data.cache={head_cache}"]
    recipe = load_recipe("demo/facevid2vid", few)
    assert isinstance(training_pairs(recipe), PosePairs) and recipe.data.channels == 3


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("demo/facevid2vid", "data.pose=false", r"loss.headpose: expected who teaches it: data.pose: true.*Hopenet's"),
        ("facevid2vid", "loss.pose_teacher=null", r"loss.headpose: expected who teaches it.*hopenet_robust_alpha1.pkl"),
        ("facevid2vid", "data.pose=true", "data.pose: expected false, only procedural heads"),
        ("demo/facevid2vid", "data.depth=true", "data.pose: expected false, only procedural heads"),
        ("demo/facevid2vid", "loss.pose_teacher=x", "loss.pose_teacher: expected null with data.pose"),
    ],
)
def test_a_recipe_without_a_teacher_is_refused(name, override, said):
    with pytest.raises(UserError, match=said):
        load_recipe(name, [override])


def test_a_network_teaches_from_its_file(tmp_path):
    torch.manual_seed(0)
    state = ResNet(50).state_dict()
    state = {key: value for key, value in state.items() if not key.startswith("fc.") and "num_batches" not in key}
    for angle, at in (("yaw", 33), ("pitch", 40), ("roll", 20)):
        state |= {f"fc_{angle}.weight": torch.zeros(66, 2048), f"fc_{angle}.bias": 200.0 * torch.eye(66)[at]}
    state |= {"fc_finetune.weight": torch.zeros(3, 2051), "fc_finetune.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "hopenet.pkl")
    teacher = load_teacher(tmp_path / "hopenet.pkl").train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    found = teacher(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(found, torch.tensor([[0.0, 21.0, -39.0]]).expand(2, 3))
    with pytest.raises(UserError, match=r"loss.pose_teacher: .*none.pkl: expected .* Hopenet's format .* no such file"):
        load_teacher(tmp_path / "none.pkl")
    torch.save({key: value for key, value in state.items() if key != "fc_yaw.bias"}, tmp_path / "other.pkl")
    with pytest.raises(UserError, match=r"other.pkl: fc_yaw.bias is missing, expected \(66,\)"):
        load_teacher(tmp_path / "other.pkl")
