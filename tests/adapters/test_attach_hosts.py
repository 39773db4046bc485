"""A memory on the generators of every host, in each mode: ours, and unmodified upstream ones (MEMCOMP_UPSTREAM)."""

import copy
import os
import sys
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memcomp import CompensationConfig, Handle, MemoryCompensation
from memcomp.adapters import Keypoints, attach, create_host
from memcomp.adapters.dagan import upstream as dagan

pytestmark = pytest.mark.filterwarnings("ignore:.*(align_corners|sigmoid|indexing|nearest):UserWarning")

K = 5
COMMON = {"num_kp": K, "num_channels": 3, "estimate_jacobian": True}
MOTION = {"block_expansion": 4, "max_features": 16, "num_blocks": 2, "scale_factor": 0.25}
TPSM_MOTION = {**MOTION, "block_expansion": 8, "max_features": 32}
DETECTOR = {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.25}
FIRST_ORDER = {
    **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
    **{"estimate_occlusion_map": True, "dense_motion_params": MOTION},
}
SPADE = FIRST_ORDER | {"block_expansion": 64, "max_features": 512}  # its decoder's widths are fixed
UNET = FIRST_ORDER | {"max_features": 64, "num_down_blocks": 3}
REGIONS = {
    **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "num_bottleneck_blocks": 1, "skips": True},
    "pixelwise_flow_predictor_params": MOTION | {"use_covar_heatmap": True, "estimate_occlusion_map": True},
}
VOLUME = {  # of face-vid2vid
    **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "reshape_channel": 8, "reshape_depth": 4},
    **{"num_resblocks": 1, "estimate_occlusion_map": True},
    "dense_motion_params": {
        **{"block_expansion": 4, "max_features": 8, "num_blocks": 2, "reshape_depth": 4, "compress": 2},
    },
}
SPADE_VOLUME = VOLUME | {"block_expansion": 64, "max_features": 64, "reshape_channel": 16}
POINTS = {"num_kp": K, "image_channel": 3, "feature_channel": 8, "estimate_jacobian": False}
WIDE_POINTS = POINTS | {"feature_channel": 16}
FREE_VIEW = {
    "common_params": POINTS,
    "kp_detector_params": DETECTOR | {"reshape_channel": 32, "reshape_depth": 4},
    "he_estimator_params": {"block_expansion": 4, "widths": [8, 8, 12, 16]},
}
INPAINTING = {"block_expansion": 8, "max_features": 64, "num_down_blocks": 3}
UNIT = {"mbunit": "ExpendMemoryUnit", "mb_spatial": 8, "mb_channel": 8}
CASES = {  # (module, channels) of every tap; the size of the pictures
    "fomm": ([("bottleneck", 32), ("up_blocks.1", 16), ("final", 8)], 32),
    "dagan": ([("bottleneck", 32), ("up_blocks.1", 16), ("final", 8)], 32),
    "spade": ([("decoder", 256), ("decoder.up_0", 256), ("decoder.conv_img", 64)], 16),
    "tpsm": ([("resblock.0", 64), ("resblock.2", 32), ("resblock.4", 16), ("final", 8)], 64),
    "mcnet": ([("resblock.0", 64), ("resblock.2", 32), ("resblock.4", 16), ("final", 8)], 64),
    "mraa": ([("bottleneck", 32), ("up_blocks.0", 32), ("up_blocks.1", 16), ("final", 8)], 32),
    "facevid2vid": ([("resblocks_2d", 32), ("up_blocks.1", 16), ("final", 8)], 32),
    "facevid2vid spade": ([("decoder", 256), ("decoder.up_0", 256), ("decoder.conv_img", 64)], 16),
}
SKIPPED = ("fomm", "dagan", "spade")  # hosts of mode "skip"


class PassThrough(nn.Module):
    """In the place of MCNet's own memory."""

    def forward(self, feature, output_dict, keypoints):
        return feature


def ours(name):
    first_order = {"common_params": COMMON, "kp_detector_params": DETECTOR}
    kinds = {"dagan": "DepthAwareGenerator", "spade": "SPADEDepthAwareGenerator"}
    params = {"spade": SPADE, "mcnet": UNET}.get(name, FIRST_ORDER)
    if name == "tpsm":
        common = {"num_tps": K, "num_channels": 3, "bg": False, "multi_mask": True}
        model = {"common_params": common, "generator_params": INPAINTING, "dense_motion_params": TPSM_MOTION}
    elif name == "mraa":
        shared = {"num_regions": K, "region_predictor_params": DETECTOR | {"pca_based": True}}
        model = shared | {"generator_params": REGIONS}
    elif name.startswith("facevid2vid"):
        spade = name.endswith("spade")
        model = FREE_VIEW | {"generator_params": VOLUME, "generator": "original"}
        if spade:
            model |= {"generator_params": SPADE_VOLUME, "common_params": WIDE_POINTS, "generator": "spade"}
        return create_host("facevid2vid", model)
    else:
        model = {**first_order, "generator_params": params}
    if name in kinds:
        model |= {"generator": kinds[name], "depth": "zeros"}
    return create_host("dagan" if name == "spade" else name, model)


def upstreams(name, golden):
    """Upstream's modules under the names of their checkpoint sections."""
    if name == "tpsm":
        with golden.upstream("tpsm", "modules.inpainting_network", "modules.dense_motion") as up:
            network = up.inpainting_network.InpaintingNetwork(num_channels=3, multi_mask=True, **INPAINTING)
            motion = up.dense_motion.DenseMotionNetwork(num_tps=K, num_channels=3, multi_mask=True, **TPSM_MOTION)
        return {"inpainting_network": network, "dense_motion_network": motion}
    folder = {"fomm": "first-order-model", "spade": "dagan", "mraa": "articulated-animation"}
    folder = (folder | dict.fromkeys(("facevid2vid", "facevid2vid spade"), "face-vid2vid")).get(name, name)
    if not (Path(os.environ["MEMCOMP_UPSTREAM"]) / folder).is_dir():
        pytest.skip(f"MEMCOMP_UPSTREAM has no {folder}")
    with golden.upstream(folder, "modules.generator") as up:
        if name == "fomm":
            generator = up.generator.OcclusionAwareGenerator(**COMMON, **FIRST_ORDER)
        elif name == "mraa":
            generator = up.generator.Generator(num_regions=K, num_channels=3, revert_axis_swap=True, **REGIONS)
        elif name == "facevid2vid":
            generator = up.generator.OcclusionAwareGenerator(**POINTS, **VOLUME)
        elif name == "facevid2vid spade":
            generator = up.generator.OcclusionAwareSPADEGenerator(**WIDE_POINTS, **SPADE_VOLUME)
        elif name == "dagan":
            generator = up.generator.DepthAwareGenerator(**COMMON, **FIRST_ORDER)
        elif name == "spade":
            generator = up.generator.SPADEDepthAwareGenerator(**COMMON, **SPADE)
        else:
            generator = up.generator.Unet_Generator_keypoint_aware(**COMMON, **UNET, **UNIT)
    return {"generator": generator}


class Subject:
    """A host's generator, before anything is attached; `fresh()` gives a copy to attach to."""

    def __init__(self, name, source, golden):
        self.name, self.source, self.golden = name, source, golden
        self.taps, self.size = CASES[name]
        self.section = "inpainting_network" if name == "tpsm" else "generator"
        self.target = ours(name).eval() if source == "ours" else upstreams(name, golden)
        for section in {self.section, "dense_motion_network"} & self.sections(self.target).keys():
            if not name.endswith("spade"):  # its decoder is wide: making singular vectors takes long
                golden.fill(section, self.sections(self.target)[section], seed=1)
        if name == "mcnet" and source == "upstream":
            self.whole, self.target["generator"].mbUnit = self.target["generator"].mbUnit, PassThrough()

    @staticmethod
    def sections(target):
        return target if isinstance(target, dict) else target.sections()

    def fresh(self, training=False):
        target = copy.deepcopy(self.target)
        for module in self.sections(target).values():
            module.train(training)
        return target

    def root(self, target):
        return self.sections(target)[self.section]

    def call(self, target, seed=0, batch=3):
        """All tensors that the generator gives."""
        draw = torch.Generator().manual_seed(seed)
        many = 5 * K if self.name == "tpsm" else K
        dims = 3 if self.name.startswith("facevid2vid") else 2
        points = torch.rand(2, batch, many, dims, generator=draw) * 1.6 - 0.8
        jacobian = torch.eye(2) + 0.2 * torch.randn(2, batch, many, 2, 2, generator=draw)
        image, depth = torch.rand(batch, 4, self.size, self.size, generator=draw).split([3, 1], dim=1)
        sections, root = self.sections(target), self.root(target)
        if self.name == "tpsm":
            kinds = {"ours": Keypoints, "upstream": lambda value: {"fg_kp": value}}
            driving, source = (kinds[self.source](value) for value in points)
            motion = sections["dense_motion_network"](source_image=image, kp_driving=driving, kp_source=source)
            return tensors(root(image, motion))
        if dims == 3:
            driving, source = ({"value": p} for p in points)
            return tensors(root(image, kp_driving=driving, kp_source=source))
        driving, source = ({"value": p, "jacobian": j} for p, j in zip(points, jacobian, strict=True))
        if self.name == "mraa":
            driving, source = (
                {"shift": p, "affine": j, "covar": j @ j.mT} for p, j in zip(points, jacobian, strict=True)
            )
            return tensors(root(image, driving_region_params=driving, source_region_params=source))
        further = {}
        if self.name in ("dagan", "spade"):
            further = {"source_depth": depth} | ({"driving_depth": depth} if self.source == "upstream" else {})
        return tensors(root(image, kp_driving=driving, kp_source=source, **further))


def tensors(output):
    if is_dataclass(output):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def cases(names, modes):
    """(subject, mode), where the host has the mode."""
    return [
        pytest.param(
            (name, source),
            mode,
            id=f"{name}-{source}-{mode}",
            marks=[pytest.mark.upstream] if source == "upstream" else [],
        )
        for name in names
        for source in ("ours", "upstream")
        for mode in modes
        if mode == "inplace" or name in SKIPPED
    ]


MODES = ("inplace", "skip", "skip_control")
NARROW = [name for name in CASES if not name.endswith("spade")]


def every(names=tuple(CASES), modes=MODES):
    return pytest.mark.parametrize(("subject", "mode"), cases(names, modes), indirect=["subject"])


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def subject(request, made, golden):
    name, source = request.param
    if source == "upstream" and "MEMCOMP_UPSTREAM" not in os.environ:
        pytest.skip("MEMCOMP_UPSTREAM is not set")
    if request.param not in made:
        with pytest.MonkeyPatch.context() as patch:
            if name == "mcnet" and find_spec("torchdiffeq") is None:  # imported, never called
                patch.setitem(sys.modules, "torchdiffeq", ModuleType("torchdiffeq"))
                patch.setattr(sys.modules["torchdiffeq"], "odeint_adjoint", None, raising=False)
            made[request.param] = Subject(name, source, golden)
    return made[request.param]


def config(start="identity"):
    return CompensationConfig.paper(memory_channels=8, memory_size=(6, 5), start=start)


def hooks(module):
    return [hook for part in module.modules() for hook in (*part._forward_pre_hooks, *part._forward_hooks)]


def moved(handle):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in handle.compensation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.3)


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    assert "prediction" in found
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@torch.no_grad()
def assert_identity_and_remove(subject, mode, kinds):
    """With the identity start a generator is its plain self, in each kind of call (batch, training); so it is after."""
    target, plain = subject.fresh(), subject.fresh()
    handle = attach(target, config(), mode=mode)
    root = subject.root(target)
    assert handle.root is root

    def assert_same():
        for batch, training in kinds:
            for module in (*subject.sections(target).values(), *subject.sections(plain).values()):
                module.train(training)
            for seed in range(1 + training):  # the norms move: each call sees those that the last one left
                assert_identical(subject.call(target, seed, batch), subject.call(plain, seed, batch))

    assert_same()
    assert any(key.startswith("memory_compensation.") for key in root.state_dict())
    moved(handle)
    changed = subject.call(target, 2)["prediction"] - subject.call(plain, 2)["prediction"]
    assert changed.abs().max() > 1e-4
    handle.remove()
    assert list(root.state_dict()) == list(subject.root(plain).state_dict())
    assert not any(hooks(module) != hooks(subject.sections(plain)[s]) for s, module in subject.sections(target).items())
    for section, module in subject.sections(plain).items():
        module.load_state_dict(subject.sections(target)[section].state_dict())
    assert_same()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch", [1, 3])
@every(NARROW)
def test_identity_start_is_identical_and_remove_restores_keys_and_output(subject, mode, batch, training):
    assert_identity_and_remove(subject, mode, [(batch, training)])


@every(["spade", "facevid2vid spade"], ["inplace", "skip"])
def test_the_same_of_a_decoder_of_fixed_widths(subject, mode):
    assert_identity_and_remove(subject, mode, [(1, False), (3, False), (1, True), (3, True)])


@every()
def test_taps_channels_and_keypoints_are_read_off_the_generator(subject, mode):
    handle = attach(subject.fresh(), config(), mode=mode)
    assert list(zip([tap.module for tap in handle.taps], handle.compensation.channels, strict=True)) == subject.taps
    assert (handle.mode, handle.scales) == (mode, tuple(range(len(subject.taps))))
    if mode != "skip_control":
        assert handle.compensation.keypoints == (5 * K if subject.name == "tpsm" else K)


@every(NARROW)
def test_every_scale_learns(subject, mode):
    target = subject.fresh()
    handle = attach(target, config("paper"), mode=mode)
    if mode != "inplace":
        moved(handle)  # the gradient of what is before a zero convolution is zero
    with handle.compensation.recording() as record:
        prediction = subject.call(target, batch=2)["prediction"]
    (prediction.square().mean() + record.consistency_loss()).backward()
    for scale in getattr(handle.compensation, "scales", ()):
        assert max(p.grad.abs().max() for p in scale.parameters() if p.grad is not None) > 0
    for name, parameter in handle.compensation.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith("skips."):
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
@every(NARROW)
def test_a_copy_has_a_memory_of_its_own(subject, mode):
    target = subject.fresh()
    handle = attach(target, config(), mode=mode)
    expected = subject.call(target)
    average = copy.deepcopy(target)
    moved(Handle.of(subject.root(average)))
    assert_identical(subject.call(target), expected)
    assert not torch.equal(subject.call(average)["prediction"], expected["prediction"])
    handle.remove()
    assert_identical(subject.call(target), expected)


@torch.no_grad()
@every(SKIPPED, ["skip"])
def test_a_skip_is_the_warped_occluded_compensated_feature_of_the_encoder(subject, mode):
    target = subject.fresh()
    root, seen, found = subject.root(target), {}, {}

    def watch(name, where, into):
        module = root.get_submodule(name)
        if where == "input":
            module.register_forward_pre_hook(lambda module, args: into.update({name: args[0]}))
        else:
            module.register_forward_hook(lambda module, args, output: into.update({name: output}))

    encoder = ("down_blocks.0", "first")
    for name in (*encoder, "dense_motion_network"):
        watch(name, "output", seen)
    places = [(tap.module, tap.where) for tap in dagan.inplace_taps(root)]
    for place in places:
        watch(*place, seen)  # before the memory
    handle = attach(target, config("paper"), mode=mode)
    moved(handle)
    for place in places:
        watch(*place, found)  # after it
    tapped = [name for name, _ in places]
    subject.call(target)
    keypoints = torch.rand(2, 3, K, 2, generator=torch.Generator().manual_seed(0))[1] * 1.6 - 0.8  # as `call` draws
    motion = seen["dense_motion_network"]
    motion = motion if isinstance(motion, dict) else vars(motion)
    memory = handle.compensation
    expected = {tapped[0]: memory.compensate(seen[tapped[0]], keypoints, 0).feature}
    for scale, name in enumerate(encoder, start=1):
        size = seen[name].shape[2:]
        flow = F.interpolate(motion["deformation"].permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)
        visible = F.interpolate(motion["occlusion_map"], size=size, mode="bilinear")
        warped = F.grid_sample(seen[name], flow, align_corners=False) * visible
        compensated = memory.compensate(warped, keypoints, scale).feature
        conv = memory.skips.convs[str(scale)]
        expected[tapped[scale]] = seen[tapped[scale]] + F.conv2d(compensated, conv.weight, conv.bias)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
        assert (value - seen[name]).abs().max() > 1e-3


@every(("tpsm", "mcnet", "mraa", "facevid2vid"), ["inplace"])
def test_hosts_that_warp_every_level_have_no_skip(subject, mode):
    for name in ("skip", "skip_control"):
        names = {"tpsm": "TPSM", "mcnet": "MCNet", "mraa": "MRAA", "facevid2vid": "face-vid2vid"}
        found = names[subject.name]
        with pytest.raises(ValueError, match=rf"mode '{name}' is for .*: DaGAN, .*FOMM; not for {found}"):
            attach(subject.fresh(), config(), mode=name)


@every(("mcnet", "tpsm", "fomm"), ["inplace"])
def test_a_generator_with_its_own_memory_or_without_its_motion_network_is_refused(subject, mode):
    target = subject.fresh()
    if subject.name == "tpsm":
        with pytest.raises(ValueError, match=r"does not call its 'dense_motion_network' itself: give both, as attach"):
            attach(subject.root(target), config())
    elif subject.name == "mcnet" and subject.source == "upstream":
        target["generator"].mbUnit = subject.whole
        with pytest.raises(ValueError, match="has a memory already, its 'mbUnit'"):
            attach(target, config())
    else:
        assert isinstance(attach(subject.root(target), config()).compensation, MemoryCompensation)


@pytest.mark.parametrize("mode", ["inplace", "skip"])
@pytest.mark.parametrize("name", CASES)
def test_a_memory_read_by_place_finds_driving_keypoints_and_visibility(name, mode):
    if mode == "skip" and name not in SKIPPED:
        pytest.skip("warps every level")
    torch.manual_seed(0)
    host = ours(name).eval()
    size = max(CASES[name][1], 32)  # the keypoint detector wants no less
    source, driving = torch.rand(2, 2, 3, size, size).unbind()
    expected = host(source, driving)
    config = CompensationConfig.placed(memory_channels=8, memory_size=(4, 4), identity_hidden=8)
    handle = attach(host, config, mode=mode)
    given = []
    handle.compensation.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args[0].shape, kwargs)), with_kwargs=True
    )
    assert torch.equal(host(source, driving).prediction, expected.prediction)
    assert [kwargs["scale"] for _, kwargs in given] == list(range(len(CASES[name][0])))
    for shape, kwargs in given:
        assert torch.equal(kwargs["driving"], expected.kp_driving.value)
        visibility = kwargs["visibility"]
        assert visibility.shape[:2] == (2, 1) and visibility.min() >= 0 and visibility.max() <= 1
        if name == "tpsm":  # it has a map for each level, and the nearest is taken
            assert visibility.shape[2:] == shape[2:]
    with torch.no_grad():
        for scale in handle.compensation.scales:
            scale.output.weight.normal_()
        if mode == "skip":
            for conv in handle.compensation.skips.convs.values():
                conv.weight.normal_()
    changed = host(source, driving).prediction
    assert not torch.allclose(changed, expected.prediction, atol=1e-3)
    changed.mean().backward()
    assert all(mcm.seen.weight.grad.abs().sum() > 0 for mcm in handle.compensation.mcm)
    with handle.disabled():
        assert torch.equal(host(source, driving).prediction, expected.prediction)


@torch.no_grad()
@every(modes=["inplace", "skip"])
def test_a_memory_read_by_place_on_every_generator(subject, mode):
    target = subject.fresh()
    plain = subject.call(target)
    handle = attach(target, CompensationConfig.placed(memory_channels=8, memory_size=(4, 4)), mode=mode)
    assert_identical(subject.call(target), plain)
    moved(handle)
    if mode == "skip":
        for conv in handle.compensation.skips.convs.values():
            conv.weight.normal_()
    changed = subject.call(target)["prediction"]
    assert not torch.allclose(changed, plain["prediction"], atol=1e-4)
    with handle.disabled():
        assert_identical(subject.call(target), plain)
    handle.remove()
    assert_identical(subject.call(target), plain)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fomm", "tpsm", "mraa"])
def test_a_memory_read_by_place_compiles_in_its_generator(name, golden):
    torch._dynamo.reset()
    subject = Subject(name, "ours", golden)
    target = subject.fresh()
    handle = attach(target, CompensationConfig.placed(memory_channels=8, memory_size=(4, 4)))
    moved(handle)
    wanted = subject.call(target)["prediction"]
    root = subject.root(target)
    root.forward = torch.compile(root.forward, backend="aot_eager")
    torch.testing.assert_close(subject.call(target)["prediction"], wanted, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_a_host_that_estimates_no_occlusion_is_named_at_attach():
    host = create_host(
        "fomm",
        {
            "common_params": COMMON,
            "kp_detector_params": DETECTOR,
            "generator_params": FIRST_ORDER | {"estimate_occlusion_map": False},
        },
    )
    with pytest.raises(ValueError, match="visibility=True, but this generator estimates no occlusion map"):
        attach(host, CompensationConfig.placed(memory_channels=8, memory_size=(4, 4)))
