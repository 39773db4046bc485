"""FOMM's loss terms and the transfer of motion, against other ways of computing them."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from memcomp.adapters import Keypoints
from memcomp.adapters.shared import losses
from memcomp.adapters.shared.blocks import inverse_2x2, matmul_2x2
from memcomp.adapters.shared.losses import RandomTransform
from memcomp.adapters.shared.transfer import hull_area, transfer_motion

TRANSFORM = {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def keypoints(seed, batch=2, count=6):
    generator = seeded(seed)
    jacobian = torch.eye(2) + 0.3 * torch.randn(batch, count, 2, 2, generator=generator)
    return Keypoints(torch.rand(batch, count, 2, generator=generator) * 2 - 1, jacobian)


@pytest.mark.parametrize("params", [TRANSFORM, {"sigma_affine": 0.2}])
def test_the_jacobian_of_a_transform_is_its_derivative(params):
    transform = RandomTransform.draw(torch.zeros(2, 1, dtype=torch.float64), seeded(), **params)
    places = keypoints(1).value.double()
    expected = torch.autograd.functional.jacobian(transform.warp_coordinates, places)  # (B, N, 2, B, N, 2)
    index = torch.arange(6)
    expected = torch.stack([expected[b, index, :, b, index] for b in range(2)])  # each place depends on itself alone
    torch.testing.assert_close(transform.jacobian(places), expected.expand(2, 6, 2, 2))


def test_a_transform_depends_on_its_generator_alone():
    like = torch.zeros(3, 1)
    first, same = (RandomTransform.draw(like, seeded(5), **TRANSFORM) for _ in range(2))
    assert torch.equal(first.theta, same.theta) and torch.equal(first.control_params, same.control_params)
    assert not torch.equal(first.theta, RandomTransform.draw(like, seeded(6), **TRANSFORM).theta)
    many = RandomTransform.draw(torch.zeros(2000, 1), seeded(), **TRANSFORM)
    assert (many.theta - torch.eye(2, 3)).std().item() == pytest.approx(0.05, rel=0.05)
    assert many.control_params.std().item() == pytest.approx(0.005, rel=0.05)


def test_half_a_thin_plate_term_is_refused():
    with pytest.raises(ValueError, match="sigma_tps and points_tps"):
        RandomTransform.draw(torch.zeros(1, 1), seeded(), sigma_tps=0.005)


def test_the_identity_leaves_an_aligned_frame_as_it_is():
    frame = torch.rand(2, 3, 16, 24)
    identity = RandomTransform(torch.eye(2, 3).expand(2, -1, -1), torch.zeros(2, 25))
    torch.testing.assert_close(identity.warp_frame(frame, align_corners=True), frame)


def test_equivariance_is_zero_for_keypoints_that_follow_the_transform():
    transform = RandomTransform.draw(torch.zeros(2, 1), seeded(), **TRANSFORM)
    moved = keypoints(1)
    followed = matmul_2x2(transform.jacobian(moved.value), moved.jacobian)
    kp = Keypoints(transform.warp_coordinates(moved.value), followed)
    assert losses.equivariance_value(kp, moved, transform) == 0
    assert losses.equivariance_jacobian(kp, moved, transform) < 1e-5
    assert losses.equivariance_value(keypoints(2), moved, transform) > 0.1
    assert losses.equivariance_jacobian(keypoints(2), moved, transform) > 0.1


def test_equivariance_of_jacobians_needs_jacobians():
    transform = RandomTransform(torch.eye(2, 3)[None])
    with pytest.raises(ValueError, match="estimate_jacobian"):
        losses.equivariance_jacobian(Keypoints(torch.zeros(1, 2, 2)), keypoints(0, 1, 2), transform)


def test_keypoint_distance_has_the_published_value():
    generator = seeded()
    seen = set()
    for _ in range(60):
        points = torch.rand(1, 4, 2, generator=generator) * 1.2
        distances = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1).add(1e-8).sqrt()
        published = (1 - torch.sign(distances + 0.2 * torch.eye(4) - 0.2)).mean()
        ours = losses.keypoint_distance(Keypoints(points))
        torch.testing.assert_close(ours, published)
        seen.add(bool(published > 0))
    assert seen == {True, False}
    together = losses.keypoint_distance(Keypoints(torch.zeros(1, 4, 2)))
    assert together.item() == pytest.approx(
        2 * 12 / 16, rel=1e-3
    )  # 12 of 16 ordered pairs are not of a point and itself


def test_keypoint_distance_pushes_close_keypoints_apart():
    points = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [0.9, 0.9]]], requires_grad=True)
    losses.keypoint_distance(Keypoints(points)).backward()
    first, second, far = points.grad[0]
    assert first[0] > 0 > second[0] and not far.any()  # a step against the gradient moves them to left and right


def test_adversarial_terms_follow_their_formulas():
    real, fake = (torch.randn(2, 2, 1, 3, 3, generator=seeded(seed)).unbind() for seed in (1, 2))
    assert losses.gan_generator(fake).item() == pytest.approx(sum(float(((1 - f) ** 2).mean()) for f in fake))
    expected = sum(float(((1 - r) ** 2).mean() + (f**2).mean()) for r, f in zip(real, fake, strict=True))
    assert losses.gan_discriminator(real, fake).item() == pytest.approx(expected)
    matched = sum(float((r - f).abs().mean()) for r, f in zip(real, fake, strict=True))
    assert losses.feature_matching([real], [fake]).item() == pytest.approx(matched)


def test_closed_forms_are_those_of_linear_algebra():
    a, b = (keypoints(seed).jacobian.double() for seed in (1, 2))
    torch.testing.assert_close(inverse_2x2(a), torch.linalg.inv(a))
    torch.testing.assert_close(matmul_2x2(a, b), a @ b)


@pytest.mark.parametrize("count", [3, 4, 10, 40])
def test_the_area_of_a_hull_is_scipys(count):
    spatial = pytest.importorskip("scipy.spatial")
    points = keypoints(count, 1, count).value[0]
    assert hull_area(points) == pytest.approx(spatial.ConvexHull(points.double().numpy()).volume)
    assert hull_area(torch.cat([points, points])) == pytest.approx(hull_area(points))


def test_the_area_of_a_line_is_zero_and_cannot_give_a_scale():
    line = torch.linspace(-1, 1, 5)[:, None] * torch.tensor([0.5, 0.25])
    assert hull_area(line) == 0
    initial = Keypoints(line[None])
    with pytest.raises(ValueError, match="lie on one line"):
        transfer_motion(initial, initial, initial)
    assert torch.equal(transfer_motion(initial, initial, initial, adapt_scale=False).value, initial.value)


def test_a_head_of_twice_the_size_moves_half_as_far():
    source, initial = keypoints(1), keypoints(2)
    source = Keypoints(initial.value / 2 + 0.1, source.jacobian)
    driving = Keypoints(initial.value + torch.tensor([0.2, -0.1]), initial.jacobian)
    moved = transfer_motion(source, driving, initial)
    torch.testing.assert_close(moved.value, source.value + torch.tensor([0.1, -0.05]))
    torch.testing.assert_close(moved.jacobian, source.jacobian)
    assert transfer_motion(source, driving, initial, relative=False) is driving
    apart = [transfer_motion(*(Keypoints(kp.value[i : i + 1]) for kp in (source, driving, initial))) for i in (0, 1)]
    torch.testing.assert_close(moved.value, torch.cat([kp.value for kp in apart]))


@pytest.mark.upstream
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("adapt_scale", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_motion_is_transferred_as_upstream_does(relative, adapt_scale):
    path = Path(os.environ["MEMCOMP_UPSTREAM"]) / "first-order-model" / "animate.py"
    functions = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "normalize_kp"]
    scope = {"torch": torch, "np": np, "ConvexHull": pytest.importorskip("scipy.spatial").ConvexHull}
    exec(compile(ast.Module(functions, []), str(path), "exec"), scope)  # without upstream's many imports
    source, driving, initial = (keypoints(seed, batch=1, count=10) for seed in (1, 2, 3))
    expected = scope["normalize_kp"](
        *({"value": kp.value, "jacobian": kp.jacobian} for kp in (source, driving, initial)),
        adapt_movement_scale=adapt_scale,
        use_relative_movement=relative,
        use_relative_jacobian=relative,
    )
    moved = transfer_motion(source, driving, initial, relative=relative, adapt_scale=adapt_scale)
    torch.testing.assert_close(moved.value, expected["value"].float())
    torch.testing.assert_close(moved.jacobian, expected["jacobian"])
