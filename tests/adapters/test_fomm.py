"""The host contract, kept by FOMM: outputs, errors, loading, freezing, optimiser groups, the registry."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F

from memcomp import CompensationConfig, MemoryCompensation
from memcomp.adapters import attach, create_host, list_hosts, registry
from memcomp.adapters.shared.blocks import AntiAliasDown, Hourglass, SpectralConv2d, UpBlock

MODEL = {
    "common_params": {"num_kp": 3, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 16, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
        "estimate_occlusion_map": True,
        "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.5},
    },
    "discriminator_params": {"scales": [1], "block_expansion": 4, "max_features": 8, "num_blocks": 2, "sn": True},
}
MEMORY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4))


@pytest.fixture
def host():
    torch.manual_seed(0)
    host = create_host("fomm", copy.deepcopy(MODEL))
    torch.nn.init.normal_(host.kp_detector.jacobian.weight, std=0.01)  # zero at the start: Jacobians would not differ
    return host


def pictures(batch=2, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, batch, 3, height, width, generator=generator).unbind()


def changed(path, value):
    """The model with one entry replaced, or deleted if the value is None."""
    model = copy.deepcopy(MODEL)
    *sections, key = path.split(".")
    place = model
    for section in sections:
        place = place[section]
    if value is None:
        del place[key]
    else:
        place[key] = value
    return model


def test_the_output_has_the_documented_shapes_and_ranges(host):
    source, driving = pictures(2, 32, 48)
    output = host.eval()(source, driving)
    shapes = {
        "prediction": (2, 3, 32, 48),
        "deformed": (2, 3, 32, 48),
        "deformation": (2, 16, 24, 2),
        "occlusion_map": (2, 1, 16, 24),
        "mask": (2, 4, 16, 24),
        "sparse_deformed": (2, 4, 3, 16, 24),
    }
    assert {name: tuple(getattr(output, name).shape) for name in shapes} == shapes
    for name in ("prediction", "occlusion_map", "mask"):
        assert getattr(output, name).min() >= 0 and getattr(output, name).max() <= 1
    torch.testing.assert_close(output.mask.sum(1), torch.ones(2, 16, 24))
    assert output.kp_source.value.shape == (2, 3, 2) and output.kp_driving.jacobian.shape == (2, 3, 2, 2)
    assert output.kp_source.value.abs().max() <= 1
    parts = host.generate(source, host.keypoints(source), host.keypoints(driving))
    assert torch.equal(parts.prediction, output.prediction)


def test_dicts_of_keypoints_are_understood(host):
    source, driving = pictures()
    given = [host.eval().keypoints(image) for image in (source, driving)]
    kp_source, kp_driving = ({"value": kp["value"], "jacobian": kp["jacobian"]} for kp in given)
    output = host.generator(source, kp_driving=kp_driving, kp_source=kp_source)
    assert torch.equal(output.prediction, host.generate(source, *given).prediction)


def test_weights_depend_on_the_seed_alone():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(create_host("fomm", MODEL).state_dict())
    first, same, other = states
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("aligned", [False, True])
def test_still_keypoints_leave_a_picture_as_it_is_with_aligned_corners_only(aligned):
    torch.manual_seed(0)
    host = create_host("fomm", MODEL | {"align_corners": aligned}).eval()
    source, _ = pictures()
    kp = host.keypoints(source)
    # looked at before any resizing of the flow, which shifts it a little in either case
    small = host.generator.dense_motion_network.down(source)
    error = (host.generate(source, kp, kp).sparse_deformed - small.unsqueeze(1)).abs().max()
    assert error < 1e-4 if aligned else error > 0.05


def test_the_equivariance_frame_follows_align_corners(monkeypatch):
    given = []
    sample = torch.grid_sampler_2d
    monkeypatch.setattr(torch, "grid_sampler_2d", lambda *args: given.append(args[-1]) or sample(*args))
    host = create_host("fomm", MODEL | {"align_corners": True})
    source, driving = pictures()
    arguments = {"generator": torch.Generator(), "transform_params": {"sigma_affine": 0.05}}
    host.loss_terms(host(source, driving), source, driving, ["equivariance_value"], **arguments)
    assert given == [True] * 4  # local motions, features, picture, transformed frame


def test_autocast_keeps_coordinates_in_full_precision(host):
    source, driving = pictures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = host.eval()(source, driving)
    assert output.prediction.dtype == torch.bfloat16
    assert {output.kp_source.value.dtype, output.kp_driving.jacobian.dtype, output.deformation.dtype} == {torch.float32}
    torch.testing.assert_close(output.prediction.float(), host(source, driving).prediction, atol=0.02, rtol=0)


def test_it_can_be_copied_and_pickled_after_a_training_step(host):
    source, driving = pictures()
    host.discriminator_loss(host(source, driving), driving).backward()
    expected = host.eval()(source, driving).prediction
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert torch.equal(twin(source, driving).prediction, expected)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "generator_params.num_down_block",
            2,
            "model.generator_params.num_down_block: unknown key, .*num_down_blocks?",
        ),
        ("generator_params.dense_motion_params.kp_varianc", 1, "dense_motion_params.kp_varianc: .* mean kp_variance?"),
        ("discriminator_params.use_kps", True, "discriminator_params.use_kps: .*did you mean use_kp?"),
        ("kp_detector_param", {}, "model.kp_detector_param: .*did you mean kp_detector_params?"),
        ("common_params.num_kp", None, "model.common_params.num_kp: this key is missing"),
        ("generator_params.dense_motion_params", None, "generator_params.dense_motion_params: this key is missing"),
        ("kp_detector_params", None, "model.kp_detector_params: this key is missing"),
        ("kp_detector_params.temperature", "1e-1", "temperature: expected a number, got '1e-1'"),
        ("kp_detector_params.num_blocks", True, "num_blocks: expected an integer, got True"),
        ("discriminator_params.scales", 1, "scales: expected a list, got 1"),
        ("align_corners", "no", "model.align_corners: expected true or false, got 'no'"),
        ("generator_params", [1], "model.generator_params: expected a mapping"),
        ("kp_detector_params.scale_factor", 2, r"a scale factor must be in \(0, 1\], not 2"),
        ("kp_detector_params.scale_factor", 0, r"a scale factor must be in \(0, 1\], not 0"),
    ],
)
def test_a_wrong_model_is_refused_by_name(path, value, message):
    with pytest.raises(ValueError, match=message):
        create_host("fomm", changed(path, value))


def test_an_unknown_host_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown host 'fom', did you mean fomm\?; known hosts: .*fomm"):
        create_host("fom", MODEL)


def test_a_model_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match="model: expected a mapping of parameters, got None"):
        create_host("fomm", None)


def test_an_installed_package_registers_its_host(tmp_path, monkeypatch):
    (tmp_path / "guest_hosts.py").write_text(
        "from memcomp.adapters import FOMM\n\n\nclass Guest(FOMM):\n    name = 'guest'\n"
    )
    info = tmp_path / "guest_hosts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest-hosts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[memcomp.hosts]\nguest = guest_hosts:Guest\nno_host = collections:Counter\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_HOSTS", dict(registry._HOSTS))
    assert {"fomm", "guest"} <= set(list_hosts())
    assert create_host("guest", MODEL).name == "guest"
    with pytest.raises(ValueError, match=r"entry point 'no_host' of memcomp\.hosts must name a subclass of Host"):
        create_host("no_host", MODEL)


def test_upstream_sections_load_with_and_without_prefix_and_discriminator(host):
    torch.manual_seed(7)
    other = create_host("fomm", MODEL)
    sections = {name: dict(module.state_dict()) for name, module in other.sections().items()}
    sections["kp_detector"] = {f"module.{key}": value for key, value in sections["kp_detector"].items()}
    kept = copy.deepcopy(host.discriminator.state_dict())
    del sections["discriminator"]
    host.load_upstream(sections | {"epoch": 3, "optimizer_generator": {}})
    source, driving = pictures()
    assert torch.equal(host.eval()(source, driving).prediction, other.eval()(source, driving).prediction)
    assert all(torch.equal(value, host.discriminator.state_dict()[key]) for key, value in kept.items())


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded(host):
    sections = {name: dict(module.state_dict()) for name, module in host.sections().items()}
    before = copy.deepcopy(host.state_dict())
    sections["generator"] = {key: value + 1 for key, value in sections["generator"].items()}
    sections["generator"]["first.conv.weight"] = torch.zeros(8, 3, 7, 7)
    del sections["generator"]["final.bias"], sections["kp_detector"]["kp.weight"]
    sections["kp_detector"]["kq.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="does not fit") as error:
        host.load_upstream(sections)
    for line in (
        "missing key generator.final.bias",
        "missing key kp_detector.kp.weight",
        "unexpected key kp_detector.kq.weight",
        "generator.first.conv.weight has shape (8, 3, 7, 7), expected (4, 3, 7, 7)",
    ):
        assert re.search(f"^  {re.escape(line)}$", str(error.value), re.MULTILINE), line
    assert all(torch.equal(value, host.state_dict()[key]) for key, value in before.items())
    with pytest.raises(ValueError, match="no section kp_detector; it has generator"):
        host.load_upstream({"generator": {}})


def test_the_keys_of_a_memory_are_ignored_only_while_one_is_attached(host):
    plain = {name: dict(module.state_dict()) for name, module in host.sections().items()}
    handle = attach(host, MEMORY)
    assert isinstance(host.memory, MemoryCompensation)
    attached = {name: dict(module.state_dict()) for name, module in host.sections().items()}
    host.load_upstream(plain)
    attached["generator"]["memory_compensation.memory.extra"] = torch.zeros(3)
    host.load_upstream(attached)
    handle.remove()
    assert host.memory is None
    with pytest.raises(ValueError, match=r"unexpected key generator\.memory_compensation"):
        host.load_upstream(attached)


@pytest.mark.parametrize("attach_first", [True, False])
def test_a_frozen_host_stays_in_eval_mode_while_its_memory_follows(host, attach_first):
    if attach_first:
        attach(host, MEMORY)
    host.train()
    host.freeze()
    if not attach_first:
        attach(host, MEMORY)
    memory = set(host.memory.modules())
    for mode in (True, False, True):
        host.train(mode)
        assert {module.training for module in memory} == {mode}
        assert not any(module.training for module in host.modules() if module not in memory)
    groups = host.optimizer_groups()
    assert list(groups) == ["generator"] and set(groups["generator"]) == set(host.memory.parameters())


def test_optimizer_groups_hold_every_parameter_once(host):
    attach(host, MEMORY)
    groups = host.optimizer_groups()
    assert list(groups) == ["generator", "kp_detector", "discriminator"]
    grouped = [parameter for parameters in groups.values() for parameter in parameters]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(host.parameters())
    assert set(host.memory.parameters()) < set(groups["generator"])
    host.kp_detector.requires_grad_(False)
    assert "kp_detector" not in host.optimizer_groups()


def test_without_a_discriminator_only_its_terms_are_refused():
    host = create_host("fomm", changed("discriminator_params", None))
    assert list(host.sections()) == ["generator", "kp_detector"]
    source, driving = pictures()
    output = host(source, driving)
    arguments = {"generator": torch.Generator(), "transform_params": {"sigma_affine": 0.05}}
    assert set(host.loss_terms(output, source, driving, ["keypoint_distance"], **arguments)) == {"keypoint_distance"}
    with pytest.raises(ValueError, match="discriminator_params"):
        host.loss_terms(output, source, driving, ["generator_gan"], **arguments)


def test_a_doubled_picture_is_convolved_alike_on_either_path():
    torch.manual_seed(0)
    block = UpBlock(3, 5).double()
    x = torch.randn(1, 3, 32, 40, dtype=torch.float64, requires_grad=True)  # large enough for the transposed one
    plain = F.relu(block.norm(block.conv(F.interpolate(x, scale_factor=2, mode="nearest"))))
    assert torch.equal(
        block(x[:, :, :8, :8]), super(UpBlock, block).forward(F.interpolate(x[:, :, :8, :8], scale_factor=2))
    )
    fast = block(x)
    torch.testing.assert_close(fast, plain)
    inputs = (x, block.conv.weight, block.conv.bias)
    weights = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (fast, plain)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_spectral_norm_is_that_of_torch():
    torch.manual_seed(0)
    ours = SpectralConv2d(3, 5, 4).double()
    theirs = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 5, 4)).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("size", "scale"), [((17, 30), 0.25), ((16, 15), 0.5), ((13, 13), 0.3)])
def test_reduction_is_blur_then_subsampling(size, scale):
    down = AntiAliasDown(3, scale)
    x = torch.rand(1, 3, *size)
    blurred = F.conv2d(x, down.weight, padding=down.weight.shape[-1] // 2, groups=3)
    torch.testing.assert_close(down(x), blurred[..., :: int(1 / scale), :: int(1 / scale)])
    torch.testing.assert_close(down.weight.sum((1, 2, 3)), torch.ones(3))


def test_an_hourglass_says_which_sizes_it_takes():
    with pytest.raises(ValueError, match="multiples of 8, got 16×20"):
        Hourglass(4, 3, num_blocks=3)(torch.zeros(1, 3, 16, 20))


def test_upstream_sections_are_what_loads_without_the_memory(host):
    attach(host, MEMORY)
    sections = host.upstream_sections()
    torch.manual_seed(7)
    other = create_host("fomm", MODEL)
    assert {name: list(state) for name, state in sections.items()} == {
        name: list(module.state_dict()) for name, module in other.sections().items()
    }
    other.load_upstream(sections)
    assert all(torch.equal(value, host.state_dict()[key]) for key, value in other.state_dict().items())
