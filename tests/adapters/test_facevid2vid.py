"""face-vid2vid as a host: pose, volumes, outputs, motion transfer, free view, losses, taps, errors."""

import copy
import math
import pickle

import pytest
import torch

from memcomp import CompensationConfig
from memcomp.adapters import FaceVid2Vid, Keypoints, attach, create_host
from memcomp.adapters.facevid2vid.losses import keypoint_prior
from memcomp.adapters.facevid2vid.motion import local_motions
from memcomp.adapters.facevid2vid.pose import HeadPose, PosedKeypoints, pose_of, rotation, with_pose
from memcomp.adapters.facevid2vid.transfer import hull_volume
from memcomp.adapters.facevid2vid.volumes import balls, volume_grid, warp_volume
from memcomp.adapters.shared.transfer import transfer_motion

MODEL = {
    "common_params": {"num_kp": 5, "image_channel": 3, "feature_channel": 4, "estimate_jacobian": False},
    "kp_detector_params": {
        **{"temperature": 0.1, "block_expansion": 4, "max_features": 8, "scale_factor": 0.25, "num_blocks": 2},
        **{"reshape_channel": 32, "reshape_depth": 4},
    },
    "he_estimator_params": {"block_expansion": 4, "max_features": 16, "num_bins": 66, "widths": [8, 8, 12, 16]},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 16, "num_down_blocks": 2, "reshape_channel": 4, "reshape_depth": 4},
        **{"num_resblocks": 1, "estimate_occlusion_map": True},
        "dense_motion_params": {
            **{"block_expansion": 4, "max_features": 8, "num_blocks": 2, "reshape_depth": 4, "compress": 2},
        },
    },
    "discriminator_params": {"scales": [1], "block_expansion": 4, "max_features": 8, "num_blocks": 2, "sn": True},
}
MEMORY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity")


def changed(**entries):
    """A copy of MODEL; `section__key=value` replaces, None takes away."""
    model = copy.deepcopy(MODEL)
    for path, value in entries.items():
        *sections, key = path.split("__")
        place = model
        for section in sections:
            place = place[section]
        place[key] = value
        if value is None:
            del place[key]
    return model


MOTION = "generator_params__dense_motion_params__"
JACOBIANS = changed(
    **{"common_params__estimate_jacobian": True, "generator_params__estimate_occlusion_map": False},
    **{"discriminator_params": None, "kp_detector_params__scale_factor": 1},
)
SPADE = changed(generator_params__block_expansion=64) | {"generator": "spade"}


def make(model=MODEL):
    torch.manual_seed(0)
    host = create_host("facevid2vid", model)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return host


def pictures(batch=2, height=32, width=32):
    return torch.rand(2, batch, 3, height, width, generator=torch.Generator().manual_seed(1)).unbind()


def test_a_rotation_turns_about_each_axis_in_its_order():
    angles = torch.tensor([[20.0, -30.0, 40.0], [0, 0, 0]], dtype=torch.float64)
    yaw, pitch, roll = (x / 180 * 3.14 for x in angles[0].tolist())
    about_x = [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]]
    about_y = [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]]
    about_z = [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]]
    x, y, z = (torch.tensor(rows, dtype=torch.float64) for rows in (about_x, about_y, about_z))
    torch.testing.assert_close(rotation(angles), torch.stack([x @ y @ z, torch.eye(3, dtype=torch.float64)]))


def test_keypoints_are_the_canonical_ones_turned_shifted_and_changed():
    draw = torch.Generator().manual_seed(3)
    value, jacobian = torch.randn(1, 5, 3, generator=draw), torch.randn(1, 5, 3, 3, generator=draw)
    pose = HeadPose(20 * torch.randn(2, 3, generator=draw), torch.randn(2, 3, generator=draw), torch.randn(2, 5, 3))
    kp, turn = PosedKeypoints.make(Keypoints(value, jacobian), pose), rotation(pose.degrees)
    for b in range(2):
        expected = value[0] @ turn[b].T + pose.shift[b] + pose.expression[b]
        torch.testing.assert_close(kp.value[b], expected)
        torch.testing.assert_close(kp.jacobian[b], turn[b] @ jacobian[0])
    assert torch.equal(kp.rest.value, value.expand(2, 5, 3)) and kp.pose.degrees is pose.degrees
    torch.testing.assert_close(kp.turned(torch.tensor([10.0, 0, 0])).degrees, pose.degrees + torch.tensor([10.0, 0, 0]))
    one = kp.each(lambda x: x[:1])
    assert isinstance(one, PosedKeypoints) and one.expression.shape == (1, 5, 3)


def test_a_mirrored_picture_has_a_mirrored_pose():
    degrees = torch.tensor([[10.0, 20.0, 30.0], [-1.0, -2.0, -3.0]])
    for width in (8, 7):
        picture = with_pose(torch.rand(2, 3, 6, width), degrees)
        assert picture.shape == (2, 6, 6, width)
        assert torch.equal(pose_of(picture), degrees)
        assert torch.equal(pose_of(picture.flip(-1)), degrees * torch.tensor([-1.0, 1.0, -1.0]))
    assert pose_of(torch.rand(2, 3, 4, 4)) is None


def test_a_ball_is_a_gaussian_and_a_still_volume_stays():
    points = torch.tensor([[[0.5, -0.25, 0.0]]])
    ball, grid = balls(points, 3, 5, 9, 0.04)[0, 0], volume_grid(3, 5, 9, points)
    torch.testing.assert_close(ball, torch.exp(-((grid - points[0, 0]) ** 2).sum(-1) / 0.08))
    volume = torch.rand(1, 2, 3, 5, 9)
    shrunk = grid * torch.tensor([8 / 9, 4 / 5, 2 / 3])  # cells' centres as grid_sample counts them
    torch.testing.assert_close(warp_volume(volume, shrunk[None]), volume)


def test_a_motion_looks_where_the_source_s_keypoint_is():
    draw = torch.Generator().manual_seed(4)
    source, driving = torch.randn(2, 1, 3, 3, generator=draw).unbind()
    frames = torch.randn(2, 1, 3, 3, 3, generator=draw).unbind()
    grid = volume_grid(2, 3, 4, source)
    plain = local_motions(Keypoints(source), Keypoints(driving), 2, 3, 4)
    assert torch.equal(plain[0, 0], grid)
    torch.testing.assert_close(plain[0, 2], grid - driving[0, 1] + source[0, 1])
    turned = local_motions(Keypoints(source, frames[0]), Keypoints(driving, frames[1]), 2, 3, 4)
    matrix = frames[0][0, 1] @ frames[1][0, 1].inverse()
    expected = (grid - driving[0, 1]) @ matrix.T + source[0, 1]
    torch.testing.assert_close(turned[0, 2], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model", [MODEL, JACOBIANS, SPADE], ids=["original", "jacobians", "spade"])
def test_the_output_has_the_documented_shapes_and_ranges(model, training):
    host = make(model).train(training)
    source, driving = pictures(2, 32, 48)
    with torch.no_grad():
        output = host(source, driving)
    shapes = {"prediction": (2, 3, 32, 48), "deformation": (2, 4, 8, 12, 3), "mask": (2, 6, 4, 8, 12)}
    assert {name: tuple(getattr(output, name).shape) for name in shapes} == shapes
    assert output.deformed is None and output.sparse_deformed is None
    assert (output.occlusion_map is None) == (model is JACOBIANS)
    assert model is JACOBIANS or output.occlusion_map.shape == (2, 1, 8, 12)
    assert output.prediction.min() >= 0 and output.prediction.max() <= 1
    torch.testing.assert_close(output.mask.sum(1), torch.ones(2, 4, 8, 12))
    assert output.kp_source.value.shape == (2, 5, 3)
    assert output.kp_source.canonical.abs().max() <= 1


@torch.no_grad()
def test_the_driving_pose_moves_the_source_s_own_keypoints():
    host = make().eval()
    source, driving = pictures()
    output, of_driving = host(source, driving), host.keypoints(driving)
    assert torch.equal(output.kp_driving.canonical, output.kp_source.canonical)
    assert not torch.equal(of_driving.canonical, output.kp_source.canonical)
    again = host.generate(source, host.keypoints(source), of_driving)
    assert torch.equal(again.prediction, output.prediction)
    posed = with_pose(source, torch.zeros(2, 3)), with_pose(driving, torch.ones(2, 3))
    assert torch.equal(host(*posed).prediction, output.prediction)  # what a teacher sees is for the loss alone


@torch.no_grad()
def test_motion_is_transferred():
    host = make().eval()
    source, driving = pictures(1)
    of_source, of_driving = host.keypoints(source), host.keypoints(driving)
    absolute = host.transfer_motion(of_source, of_driving, of_driving, relative=False)
    assert torch.equal(absolute.value, of_driving.on(of_source).value)
    still = host.transfer_motion(of_source, of_driving, of_driving)
    torch.testing.assert_close(still.value, of_source.value)
    many = host.keypoints(pictures(3)[1])
    moved = host.transfer_motion(of_source, many, of_driving, adapt_scale=False)
    expected = of_source.value + many.on(of_source).value - of_driving.on(of_source).value
    torch.testing.assert_close(moved.value, expected)
    assert not isinstance(moved, PosedKeypoints)  # taken as they are
    larger = Keypoints(2 * of_source.value)
    scaled = host.transfer_motion(larger, many, of_driving).value - larger.value
    ratio = 8 * hull_volume(of_source.value[0]) / hull_volume(of_driving.on(larger).value[0])
    torch.testing.assert_close(scaled, math.sqrt(ratio) * (many.on(larger).value - of_driving.on(larger).value))
    flat = Keypoints(torch.rand(1, 5, 3) * torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="span a volume, these lie on one plane"):
        transfer_motion(flat, flat, flat, hull=hull_volume)


def test_a_hull_has_its_volume():
    cube = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    inside = 0.9 * (2 * torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) - 1)
    assert hull_volume(torch.cat([cube, inside, cube[:2]])) == pytest.approx(8)
    simplex = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    assert hull_volume(3 * simplex + 7) == pytest.approx(27 / 6)
    assert hull_volume(cube[:3]) == 0 and hull_volume(cube[:4]) == 0 and hull_volume(torch.ones(5, 3)) == 0
    scipy = pytest.importorskip("scipy.spatial")
    for seed in range(5):
        points = torch.randn(15, 3, generator=torch.Generator().manual_seed(seed))
        assert hull_volume(points) == pytest.approx(scipy.ConvexHull(points.double().numpy()).volume, rel=1e-6)


@torch.no_grad()
def test_a_head_is_turned():
    host = make().eval()
    kp = host.keypoints(pictures(1)[0])
    turned = host.turned(kp.expand(2), torch.tensor([[30.0, 0, 0], [0.0, 0, 0]]))
    torch.testing.assert_close(turned.value[1], kp.value[0])
    turn = rotation(kp.degrees[0] + torch.tensor([30.0, 0, 0]))
    torch.testing.assert_close(turned.value[0], kp.canonical[0] @ turn.T + kp.shift[0] + kp.expression[0])
    with pytest.raises(ValueError, match="a view is chosen by keypoints with their pose"):
        host.turned(Keypoints(kp.value), torch.zeros(3))
    assert host.free_view


def terms(host, names, posed=True):
    source, driving = pictures()
    target = torch.tensor([[10.0, -5.0, 3.0], [0.0, 7.0, 2.0]])
    driving = with_pose(driving, target) if posed else driving
    output = host.reconstruct(source, driving)
    draw = torch.Generator().manual_seed(0)
    found = host.loss_terms(output, source, driving, names, generator=draw, transform_params={"sigma_affine": 0.05})
    return output, target, found


def test_loss_terms_are_those_asked_for_and_reach_every_network():
    host = make()
    names = [name for name in host.loss_names if name != "equivariance_jacobian"]
    output, target, found = terms(host, names)
    assert found.keys() == set(names) and terms(host, [])[2] == {}
    kp = output.kp_driving
    torch.testing.assert_close(found["headpose"], (kp.degrees - target).abs().sum(1).mean())
    torch.testing.assert_close(found["expression"], kp.expression.abs().sum((1, 2)).mean())
    sum(found.values()).backward()
    for name in (
        "kp_detector.kp",
        "he_estimator.fc_roll",
        "he_estimator.fc_exp",
        "generator.dense_motion_network.mask",
    ):
        assert host.get_submodule(name).weight.grad.abs().sum() > 0, name
    judged = host.discriminator_loss(output, pictures()[1])
    assert judged.requires_grad and judged.ndim == 0
    with pytest.raises(ValueError, match=r"headpose needs the head pose that a teacher sees.*loss.pose_teacher"):
        terms(host, ["headpose"], posed=False)
    with pytest.raises(ValueError, match="no loss 'warp'; it has equivariance_value"):
        terms(host, ["warp"])
    with pytest.raises(ValueError, match="equivariance_jacobian needs Jacobians"):
        terms(host, ["equivariance_jacobian"])
    alone = make(JACOBIANS)
    assert terms(alone, ["equivariance_jacobian"])[2]["equivariance_jacobian"] > 0
    with pytest.raises(ValueError, match="no discriminator: its model lacks discriminator_params"):
        terms(alone, ["generator_gan"])


def test_the_prior_counts_each_pair_both_ways_and_itself():
    apart = torch.tensor([[[0.0, 0, 0.33], [1.0, 0, 0.33]]])
    assert keypoint_prior(Keypoints(apart)).item() == pytest.approx(0.2, abs=1e-5)
    near = torch.tensor([[[0.0, 0, 0.5], [0.1, 0, 0.5]]])
    assert keypoint_prior(Keypoints(near)).item() == pytest.approx(0.2 + 2 * 0.09 + 0.17, abs=1e-5)


@pytest.mark.parametrize("model", [MODEL, SPADE], ids=["original", "spade"])
@torch.no_grad()
def test_every_use_of_the_warped_feature_is_compensated(model):
    """The SPADE decoder takes it as its input and as the guide of every norm."""
    host = make(model).eval()
    source, driving = pictures()
    plain, generator, seen, guides = host(source, driving), host.generator, {}, []
    spade = model is SPADE
    tapped = generator.decoder if spade else generator.resblocks_2d
    handle = attach(host, MEMORY)
    memory = handle.compensation
    assert memory.keypoints == 5 and memory.keypoint_dims == 3
    assert memory.channels == ((256, 256, 64) if spade else (16, 8, 4))
    assert torch.equal(host(source, driving).prediction, plain.prediction)
    for scale in memory.scales:
        scale.gate.fill_(1)
    memory.register_forward_hook(
        lambda module, args, kwargs, output: seen.update({kwargs["scale"]: (args, output)}), with_kwargs=True
    )
    if spade:
        for block in tapped.children():
            if hasattr(block, "norm_0"):
                block.norm_0.register_forward_pre_hook(lambda module, args: guides.append(args[1]))
    output = host(source, driving)
    assert not torch.allclose(output.prediction, plain.prediction, atol=1e-3)
    (feature, keypoints), compensated = seen[0]
    assert torch.equal(keypoints, output.kp_source.value)
    (volume,) = generator.encode(source)
    flat = generator.flatten(warp_volume(volume, output.deformation), output.occlusion_map)
    torch.testing.assert_close(feature, flat)
    assert all(torch.equal(guide, compensated) for guide in guides) and len(guides) == (8 if spade else 0)
    handle.remove()
    assert torch.equal(host(source, driving).prediction, plain.prediction)


WRONG = {
    "missing": (changed(common_params__num_kp=None), "model.common_params.num_kp: this key is missing"),
    "unknown": (changed(num_regions=3), "model.num_regions: unknown key"),
    "generator": (changed(generator="spades"), "model.generator: expected original or spade, got 'spades'"),
    "gan": (changed(gan_mode="lsgan"), "model.gan_mode: expected hinge or ls, got 'lsgan'"),
    "detector": (
        changed(kp_detector_params__reshape_channel=30),
        r"model.kp_detector_params.reshape_channel: expected 8 · reshape_depth 4 = 32, got 30",
    ),
    "feature": (changed(common_params__feature_channel=8), "common_params.feature_channel: expected .*, 4, got 8"),
    "depth": (changed(**{f"{MOTION}reshape_depth": 8}), "dense_motion_params.reshape_depth: expected .* 4, got 8"),
    "widths": (changed(he_estimator_params__widths=[8, 8, 10, 16]), "widths: expected four multiples of 4, got"),
    "spade": (MODEL | {"generator": "spade"}, "expected block_expansion 64 and num_down_blocks 2 .* got 4 and 2"),
    "blocks": (changed(**{f"{MOTION}num_blocks": 0}), "dense_motion_params.num_blocks: expected 1 or more, got 0"),
    "judge": (
        changed(discriminator_params__num_blocks=0),
        "discriminator_params.num_blocks: expected 1 or more",
    ),
    "motion": (changed(**{f"{MOTION}num_block": 3}), "dense_motion_params.num_block: unknown key, did you mean"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_named(name):
    model, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        create_host("facevid2vid", model)


def test_a_picture_that_cannot_be_halved_is_named():
    host = make().eval()
    with pytest.raises(ValueError, match=r"needs height and width in multiples of 4, got .*×9"):
        host.keypoints(torch.rand(1, 3, 32, 36))


def test_a_host_is_copied_and_pickled():
    host = make().eval()
    source, driving = pictures(1)
    with torch.no_grad():
        expected = host(source, driving).prediction
        for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
            assert isinstance(other, FaceVid2Vid) and torch.equal(other(source, driving).prediction, expected)


@torch.no_grad()
def test_under_autocast_coordinates_keep_their_precision():
    host = make().eval()
    source, driving = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        output = host(source, driving)
    assert output.kp_source.value.dtype == output.deformation.dtype == output.mask.dtype == torch.float32
    assert output.kp_driving.degrees.dtype == torch.float32 and output.prediction.isfinite().all()


def test_weights_of_planes_are_laid_out_and_those_of_volumes_stay():
    host = make().eval()
    source, driving = pictures()
    with torch.no_grad():
        expected = host(source, driving).prediction
        host.lay_out(torch.channels_last)
        weight = host.generator.first.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        assert host.generator.dense_motion_network.mask.weight.is_contiguous()
        torch.testing.assert_close(host(source, driving).prediction, expected, atol=1e-5, rtol=0)
