"""MRAA as a host: frames, background, outputs, motion transfer, the second training stage, taps, errors."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from memcomp import CompensationConfig
from memcomp.adapters import MRAA, Keypoints, attach, create_host
from memcomp.adapters.mraa.background import BackgroundPredictor, background_motion
from memcomp.adapters.mraa.flow import ellipses
from memcomp.adapters.mraa.regions import Regions, principal_frame

HOURGLASS = {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.25}
MODEL = {
    "num_regions": 3,
    "num_channels": 3,
    "estimate_affine": True,
    "revert_axis_swap": True,
    "bg_predictor_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "bg_type": "affine"},
    "region_predictor_params": {**HOURGLASS, "temperature": 0.1, "pca_based": True, "fast_svd": False},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 16, "num_down_blocks": 2, "num_bottleneck_blocks": 1, "skips": True},
        "pixelwise_flow_predictor_params": {
            **HOURGLASS,
            **{"use_deformed_source": True, "use_covar_heatmap": True, "estimate_occlusion_map": True},
        },
    },
    "avd_network_params": {"id_bottle_size": 4, "pose_bottle_size": 4},
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


FLOW = "generator_params__pixelwise_flow_predictor_params__"
PLAIN = changed(
    **{"estimate_affine": False, "region_predictor_params__pca_based": False, "avd_network_params": None},
    **{"bg_predictor_params": None, f"{FLOW}use_covar_heatmap": False, "generator_params__skips": False},
    **{f"{FLOW}use_deformed_source": False, f"{FLOW}estimate_occlusion_map": False},
)


def make(model=MODEL):
    torch.manual_seed(0)
    return create_host("mraa", model)


def pictures(batch=2, height=32, width=32):
    return torch.rand(2, batch, 3, height, width, generator=torch.Generator().manual_seed(1)).unbind()


def covariances(count):
    factor = torch.randn(count, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return factor @ factor.mT


def test_a_frame_is_what_lapack_gives_signs_included():
    covar = covariances(2000)
    u, s, _ = torch.linalg.svd(covar)
    torch.testing.assert_close(principal_frame(covar), u * s.sqrt().unsqueeze(-2), atol=1e-9, rtol=0)
    assert (u[:, 0, 0] > 0).sum() > 100  # the exception to the rule of signs was met


def test_a_frame_has_a_gradient_and_a_degenerate_one_does_no_harm():
    covar = covariances(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: principal_frame((x + x.mT) / 2), (covar,))
    point, line, circle = torch.zeros(2, 2), torch.diag(torch.tensor([0.0, 0.3])), 0.2 * torch.eye(2)
    for flat in (point, line, circle):
        covar = flat.clone().requires_grad_()
        frame = principal_frame(covar)
        torch.testing.assert_close(frame @ frame.mT, flat, atol=1e-6, rtol=0)
        assert frame.det() < 0
        ellipses(torch.zeros(1, 1, 2), covar.expand(1, 1, 2, 2), 5, 5).sum().backward(retain_graph=True)
        frame.sum().backward()
        assert covar.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-12, 1e-19, 1e-20, 1e-21, 1e-23, 1e-30])
def test_the_frame_of_a_peaked_region_has_a_finite_gradient(scale):
    covar = (covariances(200).float() * scale).requires_grad_()
    principal_frame(covar).sum().backward()
    assert covar.grad.isfinite().all()


def test_an_ellipse_is_the_gaussian_of_its_covariance():
    covar, at = covariances(1)[None], torch.tensor([[[0.2, -0.3]]], dtype=torch.float64)
    found = ellipses(at, covar, 3, 5)[0, 0]
    for (row, column), value in zip(((0, 4), (2, 1)), (found[0, 4], found[2, 1]), strict=True):
        d = torch.tensor([2 * column / 4 - 1, 2 * row / 2 - 1], dtype=torch.float64) - at[0, 0]
        assert value.item() == pytest.approx(math.exp(-0.5 * (d @ covar[0, 0].inverse() @ d)))


@pytest.mark.parametrize(("kind", "numbers"), [("shift", 2), ("affine", 6), ("perspective", 8), ("zero", 0)])
def test_the_background_stands_still_at_the_start_and_moves_as_its_matrix_says(kind, numbers):
    predictor = BackgroundPredictor(3, 4, 8, 2, kind).eval()
    matrix = predictor(*pictures())
    torch.testing.assert_close(matrix, torch.eye(3).expand(2, 3, 3))
    if kind == "zero":
        assert not list(predictor.parameters())
        return
    with torch.no_grad():
        predictor.fc.bias.copy_(torch.arange(1, numbers + 1) / 10)
    matrix = predictor(*pictures())
    moved, place = background_motion(matrix, 4, 5)[1, 2, 3], torch.tensor([2 * 3 / 4 - 1, 2 * 2 / 3 - 1, 1.0])
    there = matrix[1] @ place
    torch.testing.assert_close(moved, there[:2] / there[2])
    expected = {"shift": [[1, 0, 0.1], [0, 1, 0.2], [0, 0, 1]], "affine": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0, 0, 1]]}
    expected["perspective"] = [*expected["affine"][:2], [0.7, 0.8, 1]]
    torch.testing.assert_close(matrix[0], torch.tensor(expected[kind]))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model", [MODEL, PLAIN], ids=["model", "plain"])
def test_the_output_has_the_documented_shapes_and_ranges(model, training):
    host = make(model).train(training)
    source, driving = pictures(3, 32, 48)
    output = host(source, driving)
    shapes = {"prediction": (3, 3, 32, 48), "deformed": (3, 3, 32, 48), "deformation": (3, 8, 12, 2)}
    shapes |= {"mask": (3, 4, 8, 12)}
    if model is MODEL:
        shapes |= {"occlusion_map": (3, 1, 8, 12), "sparse_deformed": (3, 4, 3, 8, 12)}
    else:
        assert output.occlusion_map is None and output.sparse_deformed is None and output.kp_source.jacobian is None
    assert {name: tuple(getattr(output, name).shape) for name in shapes} == shapes
    assert output.prediction.min() >= 0 and output.prediction.max() <= 1
    torch.testing.assert_close(output.mask.sum(1), torch.ones(3, 8, 12))
    assert output.kp_source.value.shape == (3, 3, 2) and output.kp_source.value.abs().max() <= 1


def test_the_background_moves_where_it_is_asked_to():
    host = make().eval()
    with torch.no_grad():
        host.bg_predictor.fc.bias.add_(0.3)
    source, driving = pictures()
    still, moved = host(source, driving), host(source, driving, background=True)
    assert not torch.equal(still.prediction, moved.prediction)
    assert torch.equal(host.reconstruct(source, driving).prediction, moved.prediction)
    plain = make(PLAIN).eval()
    assert torch.equal(plain.reconstruct(source, driving).prediction, plain(source, driving).prediction)
    with pytest.raises(ValueError, match="no background predictor: its model lacks bg_predictor_params"):
        plain(source, driving, background=True)


def test_a_frame_that_flipped_is_flipped_back():
    """Turning one frame by half a turn is no motion, with `revert_axis_swap`; without it, it is one."""
    source, _ = pictures()
    for revert in (True, False):
        host = make(changed(revert_axis_swap=revert)).eval()
        regions = host.keypoints(source)
        turned = Regions(regions.value, -regions.jacobian, regions.covar)
        same = torch.allclose(
            host.generate(source, regions, regions).deformation, host.generate(source, regions, turned).deformation
        )
        assert same == revert


def test_regions_are_made_of_upstream_s_dicts_and_of_plain_keypoints():
    value, affine = torch.rand(2, 3, 2), torch.rand(2, 3, 2, 2)
    plain, named = Regions.of(Keypoints(value, affine)), Regions.of({"shift": value, "affine": affine})
    torch.testing.assert_close(plain.covar, affine @ affine.mT)
    assert torch.equal(named.covar, plain.covar) and torch.equal(named.shift, value)
    assert Regions.of(Keypoints(value)).covar is None and Regions.of(plain) is plain
    assert Regions.of({"shift": value, "affine": affine, "covar": affine}).covar is affine
    assert plain["shift"] is value and plain["affine"] is affine and "covar" in plain
    assert "affine" not in Regions(value) and "each" not in plain
    first = plain.each(lambda x: x[:1])
    assert isinstance(first, Regions) and first.covar.shape == (1, 3, 2, 2)
    host = make().eval()
    source, driving = pictures()
    output = host(source, driving)
    dicts = [{"shift": r.shift, "affine": r.jacobian, "covar": r.covar} for r in (output.kp_driving, output.kp_source)]
    assert torch.equal(host.generator(source, *dicts).prediction, output.prediction)


def test_motion_is_transferred():
    host = make().eval()
    source, driving = pictures(1)
    of_source, of_driving = host.keypoints(source), host.keypoints(driving)
    assert host.transfer_motion(of_source, of_driving, of_driving, relative=False) is of_driving
    still = host.transfer_motion(of_source, of_driving, of_driving)
    torch.testing.assert_close(still.value, of_source.value)
    torch.testing.assert_close(still.jacobian, of_source.jacobian)
    assert torch.equal(still.covar, of_driving.covar)  # as published
    assert torch.equal(host.transfer_motion(of_source, of_driving, of_driving, mode="relative").value, still.value)
    many = host.keypoints(pictures(3)[1])
    moved = host.transfer_motion(of_source, many, of_driving, mode="avd")
    assert moved.value.shape == (3, 3, 2)
    torch.testing.assert_close(moved.covar, moved.jacobian @ moved.jacobian.mT)
    flipped = Regions(of_source.value, -of_source.jacobian, of_source.covar)
    again = host.transfer_motion(flipped, many, of_driving, mode="avd")
    torch.testing.assert_close(again.value, moved.value)  # of the identity only a common sign is unknown, and cancelled
    with pytest.raises(ValueError, match="unknown motion mode 'warp'; the host 'mraa' has relative, absolute, avd"):
        host.transfer_motion(of_source, many, of_driving, mode="warp")
    lacking = make(changed(avd_network_params=None))
    assert lacking.motion_modes == ("relative", "absolute")
    with pytest.raises(ValueError, match="no avd_network: its model lacks avd_network_params"):
        lacking.transfer_motion(of_source, many, of_driving, mode="avd")


def test_the_second_stage_trains_one_network_and_learns():
    host = make()
    attach(host, MEMORY)
    with pytest.raises(ValueError, match="no avd_network"):
        make(changed(avd_network_params=None)).enter_stage("avd")
    assert "avd_network" not in host.optimizer_groups()
    host.enter_stage("avd")
    host.train()
    assert host.optimizer_groups().keys() == {"avd_network"} and not host.region_predictor.training
    source, driving = pictures(4)
    before = {key: value.clone() for key, value in host.state_dict().items()}
    optimizer, losses = torch.optim.Adam(host.avd_network.parameters(), lr=1e-3), []
    for step in range(12):
        loss = host.stage_loss("avd", source, driving, generator=torch.Generator().manual_seed(step % 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    moved = {key.split(".")[0] for key, value in host.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"avd_network"}
    with pytest.raises(ValueError, match="no training stage 'late'; it has avd"):
        host.stage_loss("late", source, driving, generator=torch.Generator())


def test_a_network_that_needs_frames_is_kept_but_not_used_without():
    host = make(PLAIN | {"avd_network_params": MODEL["avd_network_params"]})
    assert "avd_network" in host.sections() and host.motion_modes == ("relative", "absolute")
    with pytest.raises(ValueError, match="its avd_network needs frames: set pca_based or estimate_affine"):
        host.enter_stage("avd")


def terms(host, names, seed=0):
    source, driving = pictures()
    output = host.reconstruct(source, driving)
    draw = torch.Generator().manual_seed(seed)
    return host.loss_terms(output, source, driving, names, generator=draw, transform_params={"sigma_affine": 0.05})


def test_loss_terms_are_those_asked_for_and_reach_the_regions():
    host = make()
    found = terms(host, host.loss_names)
    assert found.keys() == set(host.loss_names) and terms(host, []) == {}
    torch.testing.assert_close(
        terms(host.eval(), ["equivariance_value"]),
        {"equivariance_value": terms(host, host.loss_names)["equivariance_value"]},
    )
    sum(found.values()).backward()
    assert host.region_predictor.regions.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no loss 'warp'; it has equivariance_value, equivariance_jacobian"):
        terms(host, ["warp"])
    with pytest.raises(ValueError, match="equivariance_jacobian needs frames: set pca_based or estimate_affine"):
        terms(make(PLAIN), ["equivariance_jacobian"])


@pytest.mark.parametrize(("skips", "places"), [(True, 4), (False, 3)])
def test_every_use_of_the_warped_feature_is_compensated(skips, places):
    """With skips it is used before the bottleneck and, blended in again, behind it."""
    host = make(changed(generator_params__skips=skips)).eval()
    source, driving = pictures()
    generator, seen = host.generator, {}
    plain = host(source, driving)
    handle = attach(host, MEMORY)
    assert len(handle.taps) == places and handle.compensation.keypoints == 3
    memory = handle.compensation
    memory.register_forward_hook(
        lambda module, args, kwargs, output: seen.update({kwargs["scale"]: (args[0].clone(), output)}), with_kwargs=True
    )
    assert torch.equal(host(source, driving).prediction, plain.prediction)
    with torch.no_grad():
        for scale in memory.scales:
            scale.gate.fill_(1)
    output = host(source, driving)
    assert not torch.allclose(output.prediction, plain.prediction, atol=1e-3)
    if skips:
        warped, decoded = generator.deform_input(generator.encode(source)[0], output.deformation), seen[0][1]
        visible = output.occlusion_map
        torch.testing.assert_close(seen[0][0], warped * visible)
        with handle.disabled():
            behind = warped * visible + generator.bottleneck(decoded) * (1 - visible)
        torch.testing.assert_close(seen[1][0], behind)
        assert not torch.allclose(seen[1][1], behind, atol=1e-3)


WRONG = {
    "num_regions": (changed(num_regions=None), "model.num_regions: this key is missing"),
    "unknown": (changed(num_kp=3), "model.num_kp: unknown key"),
    "bg_type": (changed(bg_predictor_params__bg_type="linear"), "bg_type: expected one of zero, shift, .*got 'linear'"),
    "flow": (
        changed(**{f"{FLOW}num_block": 3}),
        "flow_predictor_params.num_block: unknown key, did you mean",
    ),
    "blocks": (changed(**{f"{FLOW}num_blocks": 0}), "flow_predictor_params.num_blocks: expected 1 or more, got 0"),
    "regions": (changed(num_regions=0), "model.num_regions: expected 1 or more, got 0"),
    "bottleneck": (
        changed(generator_params__num_bottleneck_blocks=-1),
        "bottleneck_blocks: expected 0 or more",
    ),
    "unseen": (changed(**{f"{FLOW}estimate_occlusion_map": False}), "estimate_occlusion_map: expected true with skips"),
    "heatmaps": (PLAIN | {"generator_params": MODEL["generator_params"]}, "use_covar_heatmap: expected false without"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_model_is_named(case):
    model, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_coordinates_precise(dtype):
    host = make().eval()
    source, driving = pictures()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        output = host.reconstruct(source, driving)
    assert output.kp_source.value.dtype == output.kp_source.covar.dtype == output.deformation.dtype == torch.float32
    assert output.prediction.isfinite().all()


@pytest.mark.parametrize("bg_type", ["shift", "affine", "perspective"])
def test_autocast_leaves_the_background_s_numbers_whole(bg_type):
    host = make(changed(bg_predictor_params__bg_type=bg_type)).eval()
    number = 1.013  # bfloat16 knows 1.0156 and 1.0078
    nn.init.constant_(host.bg_predictor.fc.bias, number)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = host.bg_predictor(*pictures())
    assert ((found == number) | (found == 0) | (found == 1)).all() and (found == number).any()


def test_autocast_leaves_disentangled_regions_whole():
    host = make().eval()
    source, driving = pictures()
    of_source, of_driving = host.keypoints(source), host.keypoints(driving)
    expected = host.transfer_motion(of_source, of_driving, of_driving, mode="avd")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = host.transfer_motion(of_source, of_driving, of_driving, mode="avd")
    assert torch.equal(found.value, expected.value) and torch.equal(found.jacobian, expected.jacobian)


def test_a_copy_and_a_pickle_are_the_host():
    host = make().eval()
    source, driving = pictures()
    expected = host(source, driving).prediction
    for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert isinstance(other, MRAA) and torch.equal(other(source, driving).prediction, expected)


def test_a_picture_that_cannot_be_halved_is_named():
    with pytest.raises(
        ValueError, match="a generator of 2 down blocks needs height and width in multiples of 4, got 64×66"
    ):
        make().generator.encode(torch.rand(1, 3, 64, 66))
    plain = make(PLAIN)  # without skips sizes need not meet
    assert plain.generator.encode(torch.rand(1, 3, 64, 66))[0].shape[2:] == (16, 16)
