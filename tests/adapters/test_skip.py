"""Mode "skip" and its control: starts, gradients, what is kept, calls within calls, files."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import memcomp
from memcomp import CompensationConfig, Handle
from memcomp.adapters import Keypoints, attach, create_host
from memcomp.adapters.attachment.skip import SkipCompensation, SkipControl
from memcomp.checkpoint import from_file

K = 3
GENERATOR = {
    **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
    **{"estimate_occlusion_map": True},
    "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.5},
}
MODEL = {
    "common_params": {"num_kp": K, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2},
    "generator_params": GENERATOR,
}
PAPER = CompensationConfig.paper(memory_channels=8, memory_size=(4, 5))
IDENTITY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 5), start="identity")


def fresh(**generator):
    torch.manual_seed(0)
    return create_host("fomm", MODEL | {"generator_params": GENERATOR | generator}).eval()


def inputs(seed=0, batch=2):
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand(2, batch, K, 2, generator=draw) * 1.6 - 0.8
    return torch.rand(batch, 3, 32, 32, generator=draw), Keypoints(points[0]), Keypoints(points[1])


def moved(handle):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in handle.compensation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.3)


def attached(mode="skip", config=PAPER, move=True, **options):
    host = fresh()
    handle = attach(host, config, mode=mode, **options)
    if move:
        moved(handle)
    return host.generator, handle


def predict(generator, *args):
    return generator(*args).prediction


# --- starts ---


@pytest.mark.parametrize(
    ("mode", "config", "scales"),
    [("skip", IDENTITY, None), ("skip", PAPER, [1, 2]), ("skip", PAPER, [2]), ("skip_control", None, None)],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_finer_scales_add_exactly_nothing_at_the_start(mode, config, scales, autocast):
    host = fresh().to(memory_format=torch.channels_last)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return predict(host.generator, *inputs())

    expected = run()
    handle = attach(host, config, mode=mode, scales=scales)
    assert torch.equal(run(), expected)
    moved(handle)
    assert not torch.equal(run(), expected)


def test_a_skip_starts_by_its_convolution_and_the_coarsest_scale_as_the_config_says():
    for config in (PAPER, IDENTITY):
        memory = attached(config=config, move=False)[1].compensation
        assert [scale.gate is not None for scale in memory.scales] == [config is IDENTITY, False, False]
        assert all(not parameter.any() for parameter in memory.skips.parameters())


def test_gradients_reach_the_convolutions_at_once_and_the_memory_after_a_step():
    generator, handle = attached(scales=[1, 2], move=False)
    memory = handle.compensation
    optimizer = torch.optim.SGD(generator.parameters(), lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        predict(generator, *inputs(step)).square().mean().backward()
        for name, parameter in memory.skips.named_parameters():
            assert parameter.grad.abs().max() > 0, name
        assert (memory.memory.value.grad.abs().max() > 0) == (step == 1)
        optimizer.step()


# --- what a host sees of it ---


def test_a_skip_is_a_memory_and_the_control_is_none():
    host = fresh()
    handle = attach(host, PAPER, mode="skip")
    assert isinstance(handle.compensation, SkipCompensation)
    assert host.memory is handle.compensation
    handle.remove()
    handle = attach(host, PAPER, mode="skip_control")
    assert isinstance(handle.compensation, SkipControl)
    assert host.memory is None
    with handle.compensation.recording() as record:
        host.generator(*inputs())
        assert record.consistency_loss() == 0
    assert {key for key in host.generator.state_dict() if "memory_compensation" in key} == {
        f"memory_compensation.skips.convs.{scale}.{part}" for scale in (1, 2) for part in ("weight", "bias")
    }


def test_a_recording_holds_a_term_for_each_scale():
    host, seen = fresh(), {}
    generator = host.generator
    for name in ("first", "down_blocks.0", "dense_motion_network"):
        generator.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    generator.bottleneck.register_forward_pre_hook(lambda module, args: seen.update(bottleneck=args[0]))
    memory = attach(host, PAPER, mode="skip").compensation
    image, driving, source = inputs()
    with memory.recording() as record:
        generator(image, driving, source)
        found = record.consistency_loss()
    motion, features = seen["dense_motion_network"], [seen["bottleneck"]]
    for name in ("down_blocks.0", "first"):
        warped = generator.deform_input(seen[name], motion.deformation)
        features.append(warped * F.interpolate(motion.occlusion_map, size=warped.shape[2:], mode="bilinear"))
    outputs = [memory.compensate(feature, source.value, scale) for scale, feature in enumerate(features)]
    torch.testing.assert_close(found, sum((output.value - output.target).abs().mean() for output in outputs))


@pytest.mark.parametrize("mode", ["skip", "skip_control"])
def test_a_frozen_host_stays_as_it_is_while_the_skips_move(mode):
    host = fresh()
    attach(host, PAPER, mode=mode)
    host.freeze()
    before = copy.deepcopy(host.state_dict())
    optimizer = torch.optim.Adam(host.optimizer_groups()["generator"], lr=1e-2)
    for step in range(3):
        host.train()
        predict(host.generator, *inputs(step)).square().mean().backward()
        optimizer.step()
    for key, value in host.state_dict().items():
        assert torch.equal(value, before[key]) != ("memory_compensation" in key), key


# --- every generator of the kind ---


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_generators_of_other_depths_have_a_skip_for_each_finer_size(levels):
    host = fresh(num_down_blocks=levels)
    handle = attach(host, IDENTITY, mode="skip")
    assert set(handle.compensation.skips.convs) == {str(scale) for scale in range(1, max(levels, 1) + 1)}
    moved(handle)
    seen = [predict(host.generator, *inputs())]
    handle.remove()
    seen.append(predict(host.generator, *inputs()))
    assert not torch.equal(*seen)


def test_without_an_occlusion_map_nothing_is_dimmed():
    host = fresh(estimate_occlusion_map=False)
    expected = predict(host.generator, *inputs())
    handle = attach(host, PAPER, mode="skip", scales=[2])
    assert torch.equal(predict(host.generator, *inputs()), expected)
    moved(handle)
    assert not torch.equal(predict(host.generator, *inputs()), expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_features_are_warped_as_the_generator_warps(align_corners):
    """With the identity convolution and no memory, the skip of the last scale is what `deform_input` gives."""
    torch.manual_seed(0)
    host = create_host("fomm", MODEL | {"align_corners": align_corners}).eval()
    generator, seen = host.generator, {}
    for name in ("first", "dense_motion_network"):
        generator.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    generator.final.register_forward_pre_hook(lambda module, args: seen.update(before=args[0]))
    handle = attach(host, mode="skip_control", scales=[2])
    torch.nn.init.dirac_(handle.compensation.skips.convs["0"].weight)
    generator.final.register_forward_pre_hook(lambda module, args: seen.update(after=args[0]))
    generator(*inputs())
    motion = seen["dense_motion_network"]
    visible = F.interpolate(motion.occlusion_map, size=(32, 32), mode="bilinear")
    expected = seen["before"] + generator.deform_input(seen["first"], motion.deformation) * visible
    torch.testing.assert_close(seen["after"], expected)


# --- nothing stays; calls within calls ---


@pytest.mark.parametrize("error", [None, ArithmeticError, KeyboardInterrupt])
def test_nothing_is_kept_after_a_call_that_ends_fails_or_is_cut_off(error):
    generator, handle = attached()
    errors = [error] if error else []

    def fail(module, args):
        if errors:
            raise errors.pop()

    def call():
        image, driving, source = inputs()
        image = image.requires_grad_() * 1.0  # has a history, which the features would keep
        if error is None:
            predict(generator, image, driving, source)
        else:
            with pytest.raises(error):
                generator(image, driving, source)
        return weakref.ref(image)

    generator.final.register_forward_pre_hook(fail)
    image = call()
    gc.collect()
    if error is KeyboardInterrupt:
        generator(*inputs(1))  # no hook of torch sees that: the next call clears up
        gc.collect()
    assert image() is None
    assert handle.compensation.skips._call.stack == []


def test_a_generator_that_calls_itself_keeps_the_features_of_each_call_apart():
    generator, _ = attached()
    image, driving, source = inputs()
    other = inputs(1)
    plain, inner = predict(generator, image, driving, source), predict(generator, *other)
    found = []

    def nested(module, args):
        if not found:
            found.append(None)
            found[0] = predict(generator, *other)

    generator.bottleneck.register_forward_pre_hook(nested)
    assert torch.equal(predict(generator, image, driving, source), plain)
    assert torch.equal(found[0], inner)


def test_activation_checkpoint_around_the_generator_gives_the_same_gradients():
    gradients = []
    for reentrant in (None, False, True):
        generator, handle = attached()
        image, driving, source = inputs()
        image.requires_grad_()
        if reentrant is None:
            output = predict(generator, image, driving, source)
        else:
            output = checkpoint(predict, generator, image, driving, source, use_reentrant=reentrant)
        output.square().sum().backward()
        gradients.append([parameter.grad for parameter in handle.compensation.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0][-4:])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_a_skip_outside_its_generator_is_refused_in_words():
    generator, handle = attached()
    for call in (
        lambda: handle.compensation(torch.rand(2, 16, 8, 8), torch.zeros(2, K, 2), scale=1),
        lambda: generator.up_blocks[1](torch.rand(2, 16, 8, 8)),
    ):
        with pytest.raises(RuntimeError, match=r"[Cc]all the (generator|module)"):
            call()


# --- copies, files ---


def test_the_memory_alone_can_be_copied_without_its_generator():
    generator, handle = attached()
    assert (
        len(pickle.dumps(handle.compensation))
        < 1.5 * sum(4 * parameter.numel() for parameter in handle.compensation.parameters()) + 60_000
    )
    twin = copy.deepcopy(handle.compensation)
    assert not any(module is generator for module in twin.modules())


@pytest.mark.parametrize("mode", ["skip", "skip_control"])
def test_an_attached_generator_can_be_pickled(mode):
    generator, _ = attached(mode)
    other = pickle.loads(pickle.dumps(generator))
    assert torch.equal(predict(other, *inputs()), predict(generator, *inputs()))
    handle = Handle.of(other)
    assert (handle.mode, handle.scales) == (mode, (0, 1, 2))
    handle.remove()
    plain = fresh().generator
    assert list(other.state_dict()) == list(plain.state_dict())
    assert torch.equal(predict(other, *inputs()), predict(plain, *inputs()))


def test_compiled_as_one_graph_it_keeps_its_numbers():
    torch._dynamo.reset()
    generator, _ = attached()
    compiled = torch.compile(generator, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(predict(compiled, *inputs()), predict(generator, *inputs()), atol=1e-6, rtol=0)


def test_a_file_holds_the_skips_and_names_the_mode(tmp_path):
    generator, handle = attached()
    memcomp.save(handle, tmp_path / "skip")
    other, loaded = attached(move=False)
    assert not torch.equal(predict(other, *inputs()), predict(generator, *inputs()))
    memcomp.load(loaded, tmp_path / "skip")
    assert torch.equal(predict(other, *inputs()), predict(generator, *inputs()))
    plain = attached("inplace")[1]
    with pytest.raises(ValueError, match="mode: file 'skip', here None"):
        memcomp.load(plain, tmp_path / "skip")
    memcomp.save(plain, tmp_path / "inplace")
    with pytest.raises(ValueError, match="mode: file None, here 'skip'"):
        memcomp.load(handle, tmp_path / "inplace")
    with pytest.raises(ValueError, match="of mode 'skip': attach a memory of that mode"):
        from_file(tmp_path / "skip")
    with pytest.raises(TypeError, match="expected a MemoryCompensation"):
        memcomp.save(attached("skip_control")[1], tmp_path / "control")


# --- disabled ---


@pytest.mark.parametrize("mode", ["skip", "skip_control"])
def test_disabled_the_generator_gives_its_own_picture(mode):
    generator, handle = attached(mode)
    expected = predict(fresh().generator, *inputs())
    shown = predict(generator, *inputs())
    assert not torch.equal(shown, expected)
    with handle.disabled():
        assert torch.equal(predict(generator, *inputs()), expected)
    assert torch.equal(predict(generator, *inputs()), shown)
    assert handle.compensation.skips._call.stack == []


@torch.no_grad()
@pytest.mark.parametrize("mode", ["skip", "skip_control"])
def test_disabled_and_enabled_again_under_compile(mode):
    torch._dynamo.reset()
    generator, handle = attached(mode)
    compiled = torch.compile(generator, backend="eager", fullgraph=True)
    pictures = []
    for run in (generator, compiled):
        pictures.append([predict(run, *inputs())])
        with handle.disabled():
            pictures[-1].append(predict(run, *inputs()))
        pictures[-1].append(predict(run, *inputs()))
    torch.testing.assert_close(pictures[1], pictures[0], atol=1e-6, rtol=0)
    assert not torch.equal(pictures[0][0], pictures[0][1])


@torch.no_grad()
def test_threads_with_different_people_give_each_its_own_picture():
    generator, _ = attached()
    alone = [predict(generator, *inputs(person)) for person in range(3)]

    def work(index):
        whose = [(index + call) % 3 for call in range(15)]
        return sum(not torch.equal(predict(generator, *inputs(person)), alone[person]) for person in whose)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [0, 0, 0]


@pytest.mark.parametrize("mode", ["skip", "skip_control"])
def test_an_encoder_layer_replaced_after_attach_is_named(mode):
    generator, _ = attached(mode)
    generator.first = torch.nn.Sequential(generator.first)
    with pytest.raises(RuntimeError, match=r"'first' of this .* is now another module"):
        generator(*inputs())
