"""A memory on a FOMM generator: our host's, and an unmodified upstream one where MEMCOMP_UPSTREAM names its folder."""

import copy
import os
from dataclasses import fields

import pytest
import torch
from torch import nn

from memcomp import CompensationConfig, Handle, MemoryCompensation
from memcomp.adapters import attach, create_host
from memcomp.taps import tap_channels

KEYPOINTS = 4
COMMON = {"num_kp": KEYPOINTS, "num_channels": 3, "estimate_jacobian": True}
DETECTOR = {"temperature": 0.1, "block_expansion": 4, "max_features": 16, "num_blocks": 2, "scale_factor": 0.5}
MOTION = {"block_expansion": 4, "max_features": 16, "num_blocks": 2, "scale_factor": 0.5}
GENERATOR = {
    "block_expansion": 8,  # narrower, an untrained host may have no channel alive in the half that is compensated
    "max_features": 32,
    "num_down_blocks": 2,
    "num_bottleneck_blocks": 1,
    "estimate_occlusion_map": True,
    "dense_motion_params": MOTION,
}
MODEL = {"common_params": COMMON, "kp_detector_params": DETECTOR, "generator_params": GENERATOR}
SIZE = 32


def config(start):
    return CompensationConfig.paper(memory_channels=8, memory_size=(6, 5), start=start)


class Ours:
    """Fresh modules of one seed; our host and upstream's modules are called alike."""

    def modules(self):
        torch.manual_seed(0)
        host = create_host("fomm", MODEL)
        return {"generator": host.generator, "kp_detector": host.kp_detector}


class Upstream:
    def __init__(self, golden):
        with golden.upstream("first-order-model", "modules.generator", "modules.keypoint_detector") as code:
            self.generator = code.generator.OcclusionAwareGenerator
            self.detector = code.keypoint_detector.KPDetector

    def modules(self):
        torch.manual_seed(0)
        generator = self.generator(**{**COMMON, **GENERATOR})
        return {"generator": generator, "kp_detector": self.detector(**COMMON, **DETECTOR)}


@pytest.fixture(params=["ours", pytest.param("upstream", marks=pytest.mark.upstream)])
def networks(request, golden):
    if request.param == "ours":
        return Ours()
    if "MEMCOMP_UPSTREAM" not in os.environ:
        pytest.skip("MEMCOMP_UPSTREAM is not set")
    return Upstream(golden)


pytestmark = pytest.mark.filterwarnings("ignore:.*(align_corners|sigmoid|indexing):UserWarning")


def inputs(seed=0, batch=3):
    """An image and two sets of keypoints with Jacobians, as dicts."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand(2, batch, KEYPOINTS, 2, generator=draw) * 1.6 - 0.8
    jacobian = torch.eye(2) + 0.2 * torch.randn(2, batch, KEYPOINTS, 2, 2, generator=draw)
    keypoints = [{"value": value, "jacobian": matrix} for value, matrix in zip(points, jacobian, strict=True)]
    return torch.rand(batch, 3, SIZE, SIZE, generator=draw), *keypoints


def call(generator, image, driving, source):
    """All tensors that the generator gives."""
    output = generator(image, kp_driving=driving, kp_source=source)
    if not isinstance(output, dict):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    assert "prediction" in found
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def hooks(module):
    return [hook for part in module.modules() for hook in (*part._forward_pre_hooks, *part._forward_hooks)]


def moved(handle):
    with torch.no_grad():
        for parameter in handle.compensation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.3)


# --- the battery, on our generator and on upstream's ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_identity_start_is_identical_and_so_is_the_host_after_remove(networks, batch, training):
    generator = networks.modules()["generator"].train(training)
    plain = copy.deepcopy(generator)
    handle = attach(generator, config("identity"))
    for seed in range(5):  # in train mode the norms move: each call sees those that the last one left
        assert_identical(call(generator, *inputs(seed, batch)), call(plain, *inputs(seed, batch)))
    assert any("memory_compensation" in key for key in generator.state_dict())
    moved(handle)
    changed = call(generator, *inputs(5, batch))["prediction"]
    assert not torch.equal(changed, call(plain, *inputs(5, batch))["prediction"])
    handle.remove()
    assert list(generator.state_dict()) == list(plain.state_dict())
    assert not hooks(generator)
    plain.load_state_dict(generator.state_dict())
    for seed in range(5):
        assert_identical(call(generator, *inputs(seed, batch)), call(plain, *inputs(seed, batch)))


def test_twenty_steps_with_a_frozen_host_move_the_whole_memory_and_nothing_else(networks):
    generator = networks.modules()["generator"]
    handle = attach({"generator": generator}, config("identity"))
    handle.freeze_host()
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    optimizer = torch.optim.Adam([value for value in generator.parameters() if value.requires_grad], lr=1e-3)
    for step in range(20):
        generator.train()
        image, driving, source = inputs(step, batch=2)
        with handle.compensation.recording() as record:
            prediction = call(generator, image, driving, source)["prediction"]
        optimizer.zero_grad()
        ((prediction - image).abs().mean() + record.consistency_loss()).backward()
        optimizer.step()
    memory = {f"memory_compensation.{name}" for name, _ in handle.compensation.named_parameters()}
    assert memory
    for key, value in generator.state_dict().items():
        assert torch.equal(value, before[key]) != (key in memory), key


def test_paper_start_compensates_at_every_tap_of_the_table(networks):
    generator = networks.modules()["generator"].eval()
    plain = call(generator, *inputs())["prediction"]
    handle = attach(generator, config("paper"))
    assert [(tap.module, tap.where, tap.part) for tap in handle.taps] == [
        (name, "input", "all") for name in ("bottleneck", "up_blocks.1", "final")
    ]
    assert handle.compensation.channels == (32, 16, 8)
    assert handle.compensation.keypoints == KEYPOINTS
    image, driving, source = inputs()
    source["value"].requires_grad_()
    found = call(generator, image, driving, source)["prediction"]
    assert (found - plain).abs().max() > 1e-4
    found.sum().backward()
    for scale in handle.compensation.scales:
        assert max(parameter.grad.abs().max() for parameter in scale.parameters() if parameter.grad is not None) > 0


@pytest.mark.parametrize("scales", [[0], [1, 2], (2, 0)])
def test_scales_select_taps_by_index(networks, scales):
    generator = networks.modules()["generator"]
    handle = attach(generator, config("paper"), scales=scales)
    names = ("bottleneck", "up_blocks.1", "final")
    assert [tap.module for tap in handle.taps] == [names[scale] for scale in sorted(scales)]
    assert len(handle.compensation.scales) == len(scales)
    call(generator, *inputs())


def test_the_average_of_an_attached_generator_is_its_own(networks):
    generator = networks.modules()["generator"].eval()
    attach(generator, config("identity"))
    expected = call(generator, *inputs())
    average = copy.deepcopy(generator)
    moved(Handle.of(average))
    assert_identical(call(generator, *inputs()), expected)
    assert not torch.equal(call(average, *inputs())["prediction"], expected["prediction"])


def test_a_dict_of_sections_is_the_same_as_its_generator(networks):
    results = []
    for as_dict in (False, True):
        modules = networks.modules()
        torch.manual_seed(1)
        handle = attach(modules if as_dict else modules["generator"], config("paper"))
        assert handle.root is modules["generator"]
        assert not hooks(modules["kp_detector"])
        results.append(call(modules["generator"].eval(), *inputs()))
    assert_identical(*results)


def test_attaching_twice_is_refused_with_the_order(networks):
    modules = networks.modules()
    handle = attach(modules, config("paper"))
    for target in (modules, modules["generator"]):
        with pytest.raises(
            ValueError, match=r"has a memory already.*convert SyncBN → attach → optimiser → DDP → compile"
        ):
            attach(target, config("paper"))
    handle.remove()
    attach(modules, config("paper"))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda module: torch.compile(module, backend="eager")])
def test_wrapped_targets_are_refused_with_the_order(networks, wrap):
    wrapped = wrap(networks.modules()["generator"])
    for target in (wrapped, {"generator": wrapped}):
        with pytest.raises(ValueError, match=r"cannot attach: .*convert SyncBN → attach → optimiser → DDP → compile"):
            attach(target, config("paper"))


# --- our host ---


@pytest.fixture
def host():
    torch.manual_seed(0)
    return create_host("fomm", MODEL)


def test_the_generator_of_a_host_owns_its_memory(host):
    keys = list(host.generator.state_dict())
    handle = attach(host, config("identity"))
    assert handle.root is host.generator
    assert host.memory is handle.compensation
    assert isinstance(host.memory, MemoryCompensation)
    owned = {id(parameter) for parameter in host.optimizer_groups()["generator"]}
    assert {id(parameter) for parameter in handle.compensation.parameters()} <= owned
    handle.remove()
    assert host.memory is None
    assert list(host.generator.state_dict()) == keys


def test_a_host_gives_its_own_output_at_the_identity_start_and_another_with_its_memory_trained(host):
    host.eval()
    source, driving = (inputs(seed)[0] for seed in (0, 1))
    expected = host(source, driving).prediction
    handle = attach(host, config("identity"))
    assert torch.equal(host(source, driving).prediction, expected)
    moved(handle)
    assert not torch.equal(host(source, driving).prediction, expected)


def test_synchronised_norms_are_converted_before_attaching(host):
    host = nn.SyncBatchNorm.convert_sync_batchnorm(host).eval()
    source, driving = (inputs(seed)[0] for seed in (0, 1))
    expected = host(source, driving).prediction
    handle = attach(host, config("identity"))
    assert handle.compensation.channels == (32, 16, 8)
    assert torch.equal(host(source, driving).prediction, expected)


@pytest.mark.parametrize("freeze_first", [False, True])
def test_a_frozen_host_stays_as_it_is_while_its_memory_moves(host, freeze_first):
    if freeze_first:
        host.freeze()
    handle = attach(host, config("identity"))
    if not freeze_first:
        host.freeze()
    before = {key: value.clone() for key, value in host.state_dict().items()}
    optimizer = torch.optim.Adam(host.optimizer_groups()["generator"], lr=1e-3)
    for step in range(20):
        host.train()
        assert handle.compensation.training
        source, driving = (inputs(2 * step + part, batch=2)[0] for part in (0, 1))
        with handle.compensation.recording() as record:
            loss = (host(source, driving).prediction - driving).abs().mean() + record.consistency_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in host.state_dict().items():
        assert torch.equal(value, before[key]) != ("memory_compensation" in key), key


def test_taps_of_the_published_sizes():
    generator = GENERATOR | {"block_expansion": 64, "max_features": 512, "num_bottleneck_blocks": 6}
    with torch.device("meta"):
        host = create_host("fomm", MODEL | {"generator_params": generator})
    taps, _ = host.taps()
    assert tap_channels(host.generator, taps) == [256, 128, 64]


@pytest.mark.parametrize("levels", [1, 3])
def test_generators_of_other_depths_have_a_tap_for_each_size(levels):
    host = create_host("fomm", MODEL | {"generator_params": GENERATOR | {"num_down_blocks": levels}})
    handle = attach(host, config("identity"))
    assert len(handle.taps) == levels + 1
    host(*(inputs(seed)[0] for seed in (0, 1)))


def test_what_attach_cannot_do_is_said(host):
    with pytest.raises(ValueError, match="unknown mode 'outplace'; known: inplace, skip, skip_control"):
        attach(host, config("paper"), mode="outplace")
    for scales in ([], [3], [-1], [0, 0]):
        with pytest.raises(ValueError, match=r"scales must be some of \[0, 1, 2\], each once"):
            attach(host, config("paper"), scales=scales)
    with pytest.raises(
        ValueError, match=r"not a generator known here: Sequential with 0\. Known: .*FOMM \(.*memcomp\.inject"
    ):
        attach(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match=r"not a generator known here: kp_detector: KeypointDetector\."):
        attach({"kp_detector": host.kp_detector})
    with pytest.raises(ValueError, match="expected a host, a module or a dict of modules, not OrderedDict"):
        attach({"generator": host.generator.state_dict()})
    del host.generator.dense_motion_network.num_kp
    with pytest.raises(ValueError, match=r"DenseMotionNetwork has no num_kp .*: say attach\(..., keypoints=K\)"):
        attach(host)
    assert host.memory is None
    assert not hooks(host)
    assert attach(host, config("paper"), keypoints=KEYPOINTS).compensation.keypoints == KEYPOINTS


def test_the_default_is_the_paper():
    host = create_host("fomm", MODEL)
    assert attach(host, scales=[2]).compensation.config == CompensationConfig.paper()
