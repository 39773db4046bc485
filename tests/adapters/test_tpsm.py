"""TPSM as a host: outputs, background, dropout, motion transfer, the second training stage, errors, loading."""

import copy
import pickle
import re

import pytest
import torch

from memcomp import CompensationConfig
from memcomp.adapters import TPSM, Keypoints, attach, create_host
from memcomp.adapters.shared.losses import equivariance_value
from memcomp.adapters.tpsm import motion, splines
from memcomp.adapters.tpsm.avd import AVDNetwork
from memcomp.adapters.tpsm.keypoints import BackgroundPredictor
from memcomp.adapters.tpsm.schedule import Schedule

MODEL = {
    "common_params": {"num_tps": 2, "num_channels": 3, "bg": True, "multi_mask": True},
    "generator_params": {"block_expansion": 4, "max_features": 16, "num_down_blocks": 3},
    "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.25},
    "avd_network_params": {"id_bottle_size": 4, "pose_bottle_size": 4},
}
SMALL = copy.deepcopy(MODEL) | {"avd_network_params": None}
SMALL["common_params"]["bg"] = False
SINGLE = copy.deepcopy(SMALL)
SINGLE["common_params"]["multi_mask"] = False
SINGLE["generator_params"]["num_down_blocks"] = 2
MEMORY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4))


@pytest.fixture(scope="module")
def whole():
    """A host with all networks, in eval mode; it takes a second to make, so tests must leave it as it is."""
    torch.manual_seed(0)
    host = create_host("tpsm", MODEL).eval()
    # at the start the background stands still and keypoints hardly differ
    torch.nn.init.normal_(host.bg_predictor.bg_encoder.fc.weight, std=0.02)
    torch.nn.init.normal_(host.kp_detector.fg_encoder.fc.weight, std=0.2)
    return host.requires_grad_(False)


@pytest.fixture
def small():
    torch.manual_seed(0)
    host = create_host("tpsm", SMALL)
    torch.nn.init.normal_(host.kp_detector.fg_encoder.fc.weight, std=0.2)
    return host


def pictures(batch=2, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, batch, 3, height, width, generator=generator).unbind()


def keypoints(seed, batch=2, count=10):
    return Keypoints(torch.rand(batch, count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def changed(path, value):
    model = copy.deepcopy(MODEL)
    *sections, key = path.split(".")
    place = model
    for section in sections:
        place = place.setdefault(section, {})
    if value is None:
        del place[key]
    else:
        place[key] = value
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("model", [SMALL, SINGLE])
def test_the_output_has_the_documented_shapes_and_ranges(model, batch, training):
    torch.manual_seed(0)
    host = create_host("tpsm", model).train(training)
    source, driving = pictures(batch, 64, 96)
    output = host(source, driving)
    shapes = {
        "prediction": (batch, 3, 64, 96),
        "deformed": (batch, 3, 64, 96),
        "deformation": (batch, 16, 24, 2),
        "occlusion_map": (batch, 1, 16, 24),
        "mask": (batch, 3, 16, 24),
        "sparse_deformed": (batch, 3, 3, 16, 24),
    }
    assert {name: tuple(getattr(output, name).shape) for name in shapes} == shapes
    sizes = [(8, 12), (16, 24), (32, 48), (64, 96)] if model is SMALL else [(16, 24)]
    assert [tuple(each.shape[2:]) for each in output.occlusion_maps] == sizes
    for value in (output.prediction, output.mask, *output.occlusion_maps):
        assert value.min() >= 0 and value.max() <= 1
    torch.testing.assert_close(output.mask.sum(1), torch.ones(batch, 16, 24))
    assert output.kp_source.value.shape == (batch, 10, 2) and output.kp_source.value.abs().max() <= 1
    assert output.kp_source.jacobian is None and output.background is None
    parts = host.eval().generate(source, output.kp_source, output.kp_driving)
    torch.testing.assert_close(parts.prediction, output.prediction)  # no norm of the generator depends on the batch


def test_a_spline_moves_its_control_points_to_where_they_belong():
    """Not exactly: the ridge on the system's diagonal keeps it from interpolating."""
    torch.manual_seed(0)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    driving = corners.view(1, 1, 5, 2)
    source = driving * 0.6 + 0.1  # affine: it could be met exactly
    looked = splines.spline_motions(source, driving, 3, 3)[0, 0]  # places (-1, 0, 1) × (-1, 0, 1)
    there = torch.stack([looked[0, 0], looked[0, 2], looked[2, 0], looked[2, 2], looked[1, 1]])
    assert 1e-5 < (there - source[0, 0]).abs().max() < 0.02
    swapped = splines.spline_motions(source.roll(1, 2), driving, 5, 7)  # bends: no affine map does that
    rows = swapped[0, 0, 1:] - swapped[0, 0, :-1]
    assert (rows[1:] - rows[:-1]).abs().max() > 0.1


def test_a_spline_is_the_solution_of_its_equations():
    """Against the equations written point by point, on non-square places, where x and y could be mixed up."""
    source, driving = (keypoints(seed, 1, 5).value.double().view(1, 1, 5, 2) for seed in (1, 2))
    d, s = driving[0, 0], source[0, 0]

    def bend(place, point):
        square = ((place - point) ** 2).sum()
        return square * torch.log(square + 1e-9)

    system = torch.zeros(8, 8, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            system[i, j] = bend(d[i], d[j])
        system[i, 5:] = system[5:, i] = torch.tensor([d[i, 0], d[i, 1], 1])
    solved = torch.linalg.inv(system + 0.01 * torch.eye(8)) @ torch.cat([s, torch.zeros(3, 2)])
    looked = splines.spline_motions(source, driving, 3, 5)[0, 0]
    for row, column in ((0, 0), (1, 3), (2, 4)):
        place = torch.tensor([column / 2 - 1, row - 1.0], dtype=torch.float64)
        radial = torch.stack([bend(place, point) for point in d])
        expected = radial @ solved[:5] + place[0] * solved[5] + place[1] * solved[6] + solved[7]
        torch.testing.assert_close(looked[row, column], expected)


def test_the_random_spline_differs_from_the_first_order_models_and_its_jacobian_is_its_derivative():
    params = {"sigma_affine": 0.05, "sigma_tps": 0.5, "points_tps": 3}
    spline = splines.RandomSpline.draw(torch.zeros(2, 1, dtype=torch.float64), seeded(), **params)
    places = keypoints(1, 2, 6).value.double()
    index = torch.arange(6)
    full = torch.autograd.functional.jacobian(spline.warp_coordinates, places)
    expected = torch.stack([full[b, index, :, b, index] for b in range(2)])
    torch.testing.assert_close(spline.jacobian(places), expected)
    other = splines.RandomTransform(spline.theta, spline.control_params)
    assert (other.warp_coordinates(places) - spline.warp_coordinates(places)).abs().max() > 0.1


def test_the_background_moves_only_where_it_should(whole):
    source, driving = pictures()
    still = whole(source, driving)
    moved = whole.reconstruct(source, driving)
    assert still.background is None and moved.background.shape == (2, 3, 3)
    assert torch.equal(moved.background[:, 2], torch.tensor([[0.0, 0.0, 1.0]] * 2))
    assert not torch.equal(still.sparse_deformed[:, 0], moved.sparse_deformed[:, 0])
    assert torch.equal(still.sparse_deformed[:, 1:], moved.sparse_deformed[:, 1:])
    assert torch.equal(whole(source, driving, background=True).prediction, moved.prediction)
    fresh = create_host("tpsm", MODEL).eval()
    identity = fresh.bg_predictor(source, driving)
    assert torch.equal(identity, torch.eye(3).expand(2, -1, -1))


def test_a_host_without_background_predictor_reconstructs_without_and_says_so(small):
    source, driving = pictures()
    small.eval()
    assert list(small.sections()) == ["kp_detector", "dense_motion_network", "inpainting_network"]
    assert torch.equal(small.reconstruct(source, driving).prediction, small(source, driving).prediction)
    with pytest.raises(ValueError, match=r"no background predictor: its model sets common_params\.bg to false"):
        small(source, driving, background=True)
    output = small.training_output(source, driving, epoch=50, generator=seeded())
    terms = small.loss_terms(output, source, driving, ["background"], generator=seeded(), transform_params={})
    assert terms["background"] == 0


def test_training_follows_the_schedule(whole):
    source, driving = pictures()

    def output(epoch, seed=0):
        return whole.training_output(source, driving, epoch=epoch, generator=seeded(seed))

    early, same, other = output(9.9), output(9.9), output(9.9, seed=5)
    assert early.background is None and torch.equal(early.mask, same.mask)
    assert not torch.equal(early.mask, other.mask)
    assert output(10).background is not None
    late = output(35)
    assert torch.equal(late.prediction, whole.reconstruct(source, driving).prediction)


def test_dropout_leaves_motions_out_and_the_rest_in_proportion():
    logits = torch.randn(2, 4, 3, 5, generator=seeded())
    kept = torch.tensor([[True, True, False, True], [True, False, False, False]])
    dropped, full = motion.contributions(logits, kept), motion.contributions(logits, None)
    assert not dropped[0, 2].any() and not dropped[1, 1:].any()
    torch.testing.assert_close(dropped.sum(1), torch.ones(2, 3, 5), atol=1e-4, rtol=0)  # the published 1e-6
    torch.testing.assert_close(dropped[0, 1] / dropped[0, 3], full[0, 1] / full[0, 3])


def test_the_schedule_grows_once_per_epoch_and_ends():
    schedule = Schedule()
    probabilities = [schedule.dropout(epoch) for epoch in (0, 0.9, 1, 5, 7, 34.9, 35)]
    assert probabilities == [0.1, 0.1, pytest.approx(0.13), pytest.approx(0.25), 0.3, 0.3, None]
    kept = schedule.kept(20, 4000, 10, seeded())
    assert kept.shape == (4000, 11) and kept[:, 0].all()
    assert kept[:, 1:].float().mean().item() == pytest.approx(0.7, abs=0.01)
    assert Schedule(dropout_epoch=0).kept(0, 2, 10, seeded()) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dropout_inc_epoch": 0}, "dropout_inc_epoch: expected more than 0, got 0"),
        ({"dropout_maxp": 1.0}, "dropout_maxp: expected 0 or more and below 1, got 1.0"),
        ({"dropout_startp": -0.1}, "dropout_startp: expected 0 or more"),
    ],
)
def test_a_wrong_schedule_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**given)


def test_loss_terms_reach_the_networks_that_they_should():
    torch.manual_seed(0)
    host = create_host("tpsm", MODEL)
    torch.nn.init.normal_(host.bg_predictor.bg_encoder.fc.weight, std=0.02)
    source, driving = pictures()
    reached = {}
    for name in host.loss_names:
        host.zero_grad()
        output = host.training_output(source, driving, epoch=50, generator=seeded())
        arguments = {"generator": seeded(), "transform_params": {"sigma_affine": 0.05}}
        host.loss_terms(output, source, driving, [name], **arguments)[name].backward()
        grads = {section: [p.grad for p in module.parameters()] for section, module in host.sections().items()}
        reached[name] = {section for section, all_ in grads.items() if any(g is not None and g.any() for g in all_)}
    assert reached["equivariance_value"] == {"kp_detector"}
    assert reached["warp"] == {"kp_detector", "bg_predictor", "dense_motion_network"}
    assert reached["background"] == {"bg_predictor"}
    with pytest.raises(ValueError, match=r"the host 'tpsm' has no loss 'warped'; it has .*warp"):
        host.loss_terms(output, source, driving, ["warped"], **arguments)


def test_the_equivariance_term_is_that_of_the_drawn_transform(small):
    source, driving = pictures()
    output = small.eval()(source, driving)
    params = {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5}
    term = small.loss_terms(
        output, source, driving, ["equivariance_value"], generator=seeded(4), transform_params=params
    )["equivariance_value"]
    transform = splines.RandomSpline.draw(driving, seeded(4), **params)
    moved = small.keypoints(transform.warp_frame(driving, align_corners=True))
    assert term > 0 and torch.equal(term, equivariance_value(output.kp_driving, moved, transform))


def test_motion_is_transferred_in_three_ways(whole):
    source, driving, initial = keypoints(1, 1), keypoints(2, 3), keypoints(3, 1)
    relative = whole.transfer_motion(source, driving, initial)
    assert torch.equal(relative.value, whole.transfer_motion(source, driving, initial, mode="relative").value)
    assert relative.value.shape == (3, 10, 2) and not torch.equal(relative.value, driving.value)
    for absolute in ({"relative": False}, {"mode": "absolute"}):
        assert whole.transfer_motion(source, driving, initial, **absolute) is driving
    moved = whole.transfer_motion(source, driving, initial, mode="avd")
    assert moved.value.shape == (3, 10, 2)
    for index in range(3):  # each driving pose by itself, with the one source's identity
        alone = whole.avd_network(source, Keypoints(driving.value[index : index + 1]))
        torch.testing.assert_close(moved.value[index : index + 1], alone.value)
    with pytest.raises(ValueError, match="unknown motion mode 'adv'; the host 'tpsm' has relative, absolute, avd"):
        whole.transfer_motion(source, driving, initial, mode="adv")


def test_without_the_network_there_is_no_disentanglement(small):
    kp = keypoints(1)
    assert small.motion_modes == ("relative", "absolute")
    for call in (lambda: small.transfer_motion(kp, kp, kp, mode="avd"), lambda: small.enter_stage("avd")):
        with pytest.raises(ValueError, match="no avd_network: its model lacks avd_network_params"):
            call()


def test_the_disentanglement_is_trained_alone_in_its_stage():
    torch.manual_seed(0)
    host = create_host("tpsm", MODEL)
    assert "avd_network" not in host.optimizer_groups()
    before = copy.deepcopy(host.state_dict())
    host.enter_stage("avd")
    host.train()
    assert list(host.optimizer_groups()) == ["avd_network"]
    adam = torch.optim.Adam(host.optimizer_groups()["avd_network"], lr=1e-3, betas=(0.5, 0.999))
    images = pictures(4)
    values = []
    for step in range(5):
        loss = host.stage_loss("avd", *images, generator=seeded(step))
        adam.zero_grad()
        loss.backward()
        adam.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]
    for key, value in host.state_dict().items():
        assert key.startswith("avd_network.") or torch.equal(value, before[key]), key
    with pytest.raises(ValueError, match="no training stage 'adv'; it has avd"):
        host.stage_loss("adv", *images, generator=seeded())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("common_params.num_tp", 3, r"model\.common_params\.num_tp: unknown key, did you mean num_tps\?"),
        ("common_params.num_tps", None, r"model\.common_params\.num_tps: this key is missing"),
        ("dense_motion_params.num_block", 3, r"dense_motion_params\.num_block: unknown key, did you mean num_blocks\?"),
        ("dense_motion_params", None, r"model\.dense_motion_params: this key is missing"),
        ("generator_params.num_down_blocks", "3", "num_down_blocks: expected an integer, got '3'"),
        (
            "generator_params.num_down_blocks",
            2,
            "num_down_blocks of 3, got 2; set common_params.multi_mask to false",
        ),
        ("dense_motion_params.scale_factor", 0.3, "scale_factor of 1, 1/2, 1/4, 1/8 or 1/16, not 0.3"),
        ("dense_motion_params.scale_factor", 0.03125, "scale_factor of 1, 1/2, 1/4, 1/8 or 1/16, not 0.03125"),
        ("dense_motion_params.num_blocks", 1, "scale_factor of 0.25 needs num_blocks of 2 or more, got 1"),
        ("avd_network_params.id_size", 3, r"avd_network_params\.id_size: unknown key"),
        ("train_params.bg_strat", 3, r"model\.train_params\.bg_strat: unknown key, did you mean bg_start\?"),
        ("common_params.bg", 1, r"common_params\.bg: expected true or false, got 1"),
        ("kp_detector_params", {}, r"model\.kp_detector_params: unknown key"),
    ],
)
def test_a_wrong_model_is_refused_by_name(path, value, message):
    with pytest.raises(ValueError, match=message):
        create_host("tpsm", changed(path, value))


def test_no_level_below_the_pictures_size_is_refused():
    model = copy.deepcopy(SINGLE)
    model["generator_params"]["num_down_blocks"] = 0
    with pytest.raises(ValueError, match="num_down_blocks: expected 1 or more, got 0"):
        create_host("tpsm", model)


@pytest.mark.parametrize(("size", "message"), [((32, 40), "multiples of 4, got 8×10"), ((33, 32), "multiples of 8")])
def test_a_size_that_does_not_fit_is_named(small, size, message):
    with pytest.raises(ValueError, match=message):
        small.eval()(*pictures(1, *size))


def test_upstream_sections_load_with_and_without_those_of_later_training(whole):
    torch.manual_seed(7)
    host = create_host("tpsm", MODEL).eval()
    sections = {name: dict(module.state_dict()) for name, module in whole.sections().items()}
    sections["kp_detector"] = {f"module.{key}": value for key, value in sections["kp_detector"].items()}
    kept = copy.deepcopy(host.avd_network.state_dict())
    host.load_upstream({key: sections[key] for key in sections if key != "avd_network"} | {"epoch": 3, "optimizer": {}})
    assert all(torch.equal(value, host.avd_network.state_dict()[key]) for key, value in kept.items())
    source, driving = pictures()
    assert torch.equal(host.reconstruct(source, driving).prediction, whole.reconstruct(source, driving).prediction)
    host.load_upstream({key: value for key, value in sections.items() if key != "bg_predictor"})
    assert torch.equal(host.avd_network.decoder[0].weight, whole.avd_network.decoder[0].weight)
    with pytest.raises(ValueError, match="no section dense_motion_network; it has kp_detector, inpainting_network"):
        host.load_upstream({key: sections[key] for key in ("kp_detector", "inpainting_network")})


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded(small):
    sections = {name: dict(module.state_dict()) for name, module in small.sections().items()}
    before = copy.deepcopy(small.state_dict())
    sections["inpainting_network"] = {key: value + 1 for key, value in sections["inpainting_network"].items()}
    del sections["inpainting_network"]["final.bias"], sections["kp_detector"]["fg_encoder.fc.weight"]
    sections["dense_motion_network"]["up.2.conv.weight"] = torch.zeros(1)
    sections["dense_motion_network"]["maps.bias"] = torch.zeros(11)
    with pytest.raises(ValueError, match="does not fit") as error:
        small.load_upstream(sections)
    for line in (
        "missing key inpainting_network.final.bias",
        "missing key kp_detector.fg_encoder.fc.weight",
        "unexpected key dense_motion_network.up.2.conv.weight",
        "dense_motion_network.maps.bias has shape (11,), expected (3,)",
    ):
        assert re.search(f"^  {re.escape(line)}$", str(error.value), re.MULTILINE), line
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("model", [SMALL, SINGLE])
@pytest.mark.parametrize("training", [False, True])
def test_a_memory_attaches_to_every_level_and_leaves_no_trace(model, training):
    torch.manual_seed(0)
    host = create_host("tpsm", model).train(training)
    source, driving = pictures(1, 32, 64)
    keys = list(host.state_dict())
    plain = copy.deepcopy(host)(source, driving).prediction
    taps, tapped = host.taps()
    places = [(tap.module, tap.part) for tap in taps]
    skips = [("resblock.2", "second_half"), ("resblock.4", "second_half")][: len(places) - 2]
    assert places == [("resblock.0", "all"), *skips, ("final", "all")] and tapped.module == "dense_motion_network"
    handle = attach(host, CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity"))
    assert host.memory is not None and host.inpainting_network.memory_compensation is host.memory
    assert torch.equal(copy.deepcopy(host)(source, driving).prediction, plain)
    assert set(host.memory.parameters()) < set(host.optimizer_groups()["inpainting_network"])
    handle.remove()
    assert list(host.state_dict()) == keys
    assert torch.equal(host(source, driving).prediction, plain)


def test_a_memory_sees_the_warped_features(small):
    source, driving = pictures(2, 64, 64)
    attach(small.eval(), MEMORY)
    assert list(small.memory.channels) == [16, 16, 8, 4]
    attached = small(source, driving)
    compensated = attached.prediction
    for parameter in small.memory.parameters():
        parameter.data.mul_(1.5)
    assert not torch.equal(small(source, driving).prediction, compensated)
    assert torch.equal(small(source, driving).deformation, attached.deformation)


def test_autocast_keeps_coordinates_in_full_precision(small):
    source, driving = pictures(2, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = small.eval()(source, driving)
    assert {output.kp_source.value.dtype, output.mask.dtype, output.deformation.dtype} == {torch.float32}
    kp = output.kp_source, output.kp_driving
    torch.testing.assert_close(output.prediction.float(), small.generate(source, *kp).prediction, atol=0.03, rtol=0)


@torch.no_grad()
def test_autocast_leaves_background_and_disentangled_keypoints_whole():
    source, driving = pictures(2, 64, 64)
    predictor, network = BackgroundPredictor().eval(), AVDNetwork(2).eval()
    number = 1.013  # bfloat16 knows 1.0156 and 1.0078
    torch.nn.init.constant_(predictor.bg_encoder.fc.bias, number)
    kp = torch.rand(2, 2, 10, 2).unbind()
    expected = network(*map(Keypoints, kp)).value
    with torch.autocast("cpu", torch.bfloat16):
        matrix, found = predictor(source, driving), network(*map(Keypoints, kp)).value
    assert torch.equal(found, expected)
    assert torch.equal(matrix[:, :2], torch.full((2, 2, 3), number))


def test_it_can_be_copied_and_pickled_after_a_training_step(small):
    source, driving = pictures()
    small(source, driving).prediction.sum().backward()
    expected = small.eval()(source, driving).prediction
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(twin(source, driving).prediction, expected)


def test_a_frozen_host_stays_as_it_is(small):
    small.freeze()
    small.train()
    before = copy.deepcopy(small.state_dict())
    small(*pictures())
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert not small.optimizer_groups()


def test_the_published_configuration_is_the_schedule_and_sizes_of_vox_256():
    with torch.device("meta"):
        host = create_host("tpsm", TPSM.published)
    assert host.schedule == Schedule()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in host.sections().items()}
    assert counts == {
        "kp_detector": 11227812,
        "bg_predictor": 11188998,
        "dense_motion_network": 37941397,
        "inpainting_network": 24737283,
        "avd_network": 2583652,
    }
