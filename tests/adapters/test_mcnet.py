"""MCNet keeps the host contract; the published memory comes with `load_upstream`, takes noise, and goes back."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

from memcomp import CompensationConfig, MemoryCompensation
from memcomp.adapters import attach, create_host
from memcomp.adapters.mcnet import MCNet, release
from memcomp.handle import Handle

CONFIGS = json.loads((Path(__file__).parents[1] / "data" / "mcnet_configs.json").read_text())
MODEL = {
    "common_params": {"num_kp": 3, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2},
    "generator_params": {
        **{"block_expansion": 2, "max_features": 16, "num_down_blocks": 3, "estimate_occlusion_map": True},
        "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.5},
    },
    "discriminator_params": {"scales": [1], "block_expansion": 4, "max_features": 8, "num_blocks": 2, "use_kp": True},
}
SMALL = {"memory_channels": 8, "memory_size": (4, 6), "kernel_hidden": 3}
PAPER = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4))
RELEASE = CompensationConfig.release(**SMALL)
PUBLISHED_PLACES = (0, 1, 2)


def make(seed=0, model=MODEL):
    torch.manual_seed(seed)
    host = create_host("mcnet", copy.deepcopy(model))
    torch.nn.init.normal_(host.kp_detector.jacobian.weight, std=0.01)  # zero at the start: Jacobians would not differ
    return host


def remembering(seed=0, config=RELEASE, scales=PUBLISHED_PLACES):
    """A host with the published kind of memory, whose noise has an effect."""
    host = make(seed)
    attach(host, config, scales=scales)
    torch.nn.init.constant_(host.memory.iicm[0].noise_strength, 0.5)
    return host.eval()


def published_sections(seed=1):
    """What an upstream checkpoint with memory holds, prefixes included."""
    sections = remembering(seed).upstream_sections()
    return {name: {f"module.{key}": value for key, value in state.items()} for name, state in sections.items()}


def pictures(batch=2, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, batch, 3, height, width, generator=generator).unbind()


def noise(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(3, batch, 1, 4, 6, generator=generator))


@pytest.mark.parametrize(("batch", "size"), [(1, (32, 32)), (3, (32, 48)), (1, (48, 24))])
@pytest.mark.parametrize("training", [False, True])
def test_the_output_has_the_documented_shapes_and_ranges(batch, size, training):
    source, driving = pictures(batch, *size)
    output = make().train(training)(source, driving)
    height, width = size
    shapes = {
        "prediction": (batch, 3, height, width),
        "deformed": (batch, 3, height, width),
        "deformation": (batch, height // 2, width // 2, 2),
        "occlusion_map": (batch, 1, height // 2, width // 2),
        "mask": (batch, 4, height // 2, width // 2),
        "sparse_deformed": (batch, 4, 3, height // 2, width // 2),
    }
    assert {name: tuple(getattr(output, name).shape) for name in shapes} == shapes
    assert output.prediction.min() >= 0 and output.prediction.max() <= 1
    output.prediction.sum().backward()


def test_images_of_a_batch_do_not_see_each_other():
    host, (source, driving) = make().eval(), pictures(3, 32, 48)
    together = host(source, driving).prediction
    alone = torch.cat([host(source[i : i + 1], driving[i : i + 1]).prediction for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_where_nothing_is_occluded_the_picture_is_the_warped_source():
    host = make().eval()
    occlusion = host.generator.dense_motion_network.occlusion
    torch.nn.init.zeros_(occlusion.weight)
    torch.nn.init.constant_(occlusion.bias, 100.0)
    output = host(*pictures())
    torch.testing.assert_close(output.prediction, output.deformed)
    torch.nn.init.constant_(occlusion.bias, -100.0)
    assert (host(*pictures()).prediction - output.deformed).abs().max() > 0.01


@pytest.mark.parametrize("aligned", [False, True])
def test_align_corners_is_that_of_the_dense_motion_alone(aligned):
    host = make(model=MODEL | {"align_corners": aligned}).eval()
    source, _ = pictures()
    kp = host.keypoints(source)
    output = host.generate(source, kp, kp)
    small = host.generator.dense_motion_network.down(source)
    error = (output.sparse_deformed - small.unsqueeze(1)).abs().max()
    assert error < 1e-4 if aligned else error > 0.05
    # the generator samples and resizes with True in either case: still keypoints leave the picture as it is
    torch.testing.assert_close(output.deformed, source, atol=1e-4, rtol=0)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_number_of_levels_has_its_taps(levels):
    model = copy.deepcopy(MODEL)
    model["generator_params"]["num_down_blocks"] = levels
    host = make(model=model)
    handle = attach(host, PAPER)
    assert handle.compensation.channels == tuple(min(16, 2 * 2**level) for level in range(levels, -1, -1))
    assert host(*pictures(1)).prediction.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("estimate_occlusion_map", False, "estimate_occlusion_map: this host needs it"),
        ("num_down_blocks", 0, "num_down_blocks: expected 1 or more, got 0"),
        ("num_down_block", 2, "model.generator_params.num_down_block: unknown key, did you mean num_down_blocks"),
        ("memsize", "8", "model.generator_params.memsize: expected an integer, got '8'"),
    ],
)
def test_a_wrong_model_is_refused_by_name(path, value, message):
    model = copy.deepcopy(MODEL)
    model["generator_params"][path] = value
    with pytest.raises(ValueError, match=message):
        create_host("mcnet", model)


def test_a_size_that_cannot_be_halved_often_enough_is_refused():
    with pytest.raises(ValueError, match="multiples of 8, got 28×32"):
        make()(*pictures(1, 28, 32))


def test_the_published_configuration_has_the_published_size():
    with torch.device("meta"):
        host = create_host("mcnet", MCNet.published)
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in host.sections().items()}
    assert millions == {"generator": 62.533716, "kp_detector": 14.258268, "discriminator": 2.774209}
    memory = MemoryCompensation([512, 256, 128], 15, CompensationConfig.release())
    assert sum(parameter.numel() for parameter in memory.parameters()) == 25_049_289


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_all_four_places_take_the_papers_memory(batch, training):
    host, (source, driving) = make().train(training), pictures(batch, 32, 48)
    twin = copy.deepcopy(host)
    keys = set(host.state_dict())
    handle = attach(host, CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity"))
    assert handle.compensation.channels == (16, 8, 4, 2)
    expected = twin(source, driving).prediction
    assert torch.equal(host(source, driving).prediction, expected)
    with host.memory.recording() as record:
        loss = host(source, driving).prediction.mean()
    (loss + record.consistency_loss()).backward()
    assert all(scale.gate.grad.any() for scale in host.memory.scales)
    assert host.memory.memory.value.grad.any()  # Eq. 4 reaches it from the first step on
    handle.remove()
    assert set(host.state_dict()) == keys
    if not training:  # running statistics have moved on otherwise
        assert torch.equal(host(source, driving).prediction, expected)


def test_load_upstream_attaches_the_published_memory():
    host, sections = make(), published_sections()
    assert host.memory is None
    host.load_upstream(sections)
    config = host.memory.config
    assert (host.memory.channels, host.memory.keypoints) == ((16, 8, 4), 3)
    assert (config.variant, config.memory_channels, config.memory_size) == ("release", 8, (4, 6))
    assert (config.kernel_hidden, config.identity_hidden, config.identity_code) == (3, 128, 512)
    other = remembering(1)
    source, driving = pictures()
    assert torch.equal(host.eval()(source, driving).prediction, other(source, driving).prediction)
    parameters = {parameter for group in host.optimizer_groups().values() for parameter in group}
    assert set(host.memory.parameters()) < parameters


def test_the_round_trip_through_upstreams_sections_changes_nothing():
    sections = published_sections()
    host = make()
    host.load_upstream(sections)
    back = host.upstream_sections()
    assert set(back) == set(sections)
    for name, state in sections.items():
        assert {f"module.{key}" for key in back[name]} == set(state)
        assert all(torch.equal(value, state[f"module.{key}"]) for key, value in back[name].items())
    unit = {key: tuple(value.shape) for key, value in back["generator"].items() if key.startswith("mbUnit.")}
    assert len(unit) == 37
    assert unit["mbUnit.mb"] == (1, 8, 4, 6) and unit["mbUnit.conv_kv.weight"] == (4, 16, 8, 3, 3)
    assert unit["mbUnit.conv_kv.attention.fc2.weight"] == (4, 3, 1, 1) and unit["mbUnit.conv_128.weight"] == (
        2,
        8,
        3,
        3,
    )
    assert unit["mbUnit.styleconv.modulated_conv.weight"] == (1, 8, 8, 3, 3)


def test_an_attached_memory_of_the_same_kind_is_filled():
    host = remembering(0)
    memory = host.memory
    host.load_upstream(published_sections(1))
    assert host.memory is memory
    assert all(torch.equal(value, memory.state_dict()[k]) for k, value in remembering(1).memory.state_dict().items())


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        (PAPER, PUBLISHED_PLACES),
        (RELEASE, None),  # also before the last layer
        (CompensationConfig.release(**SMALL, start="identity"), PUBLISHED_PLACES),
        (CompensationConfig.release(**SMALL, sharing="memory"), PUBLISHED_PLACES),
    ],
)
def test_a_memory_that_upstream_has_no_form_of_stays_here(config, scales):
    host = make()
    handle = attach(host, config, scales=scales)
    assert {name: list(state) for name, state in host.upstream_sections().items()} == {
        name: list(network.state_dict()) for name, network in make().sections().items()
    }
    before = copy.deepcopy(host.state_dict())
    with pytest.raises(ValueError, match="another one is attached"):
        host.load_upstream(published_sections())
    assert all(torch.equal(value, before[key]) for key, value in host.state_dict().items())
    handle.remove()
    host.load_upstream(published_sections())
    assert host.memory.config.variant == "release"


def test_a_memory_of_another_size_is_not_filled():
    host = remembering(0, CompensationConfig.release(memory_channels=8, memory_size=(4, 4), kernel_hidden=3))
    with pytest.raises(ValueError, match="another one is attached"):
        host.load_upstream(published_sections())


def broken(change):
    sections = published_sections()
    change(sections["generator"])
    return sections


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("module.mbUnit.diff_conv.bias"), r"missing \['diff_conv.bias'\]"),
        (lambda state: state.update({"module.mbUnit.extra": torch.zeros(1)}), r"unexpected \['extra'\]"),
        (
            lambda state: state.update({"module.mbUnit.query_conv.weight": torch.zeros(8, 4, 1, 1)}),
            r"mcm.0.query.weight: found \(8, 4, 1, 1\), expected \(8, 8, 1, 1\)",
        ),
        (
            lambda state: state.update({"module.mbUnit.mb": torch.full((1, 8, 4, 6), torch.nan)}),
            "non-finite weights: mbUnit.mb",
        ),
        (lambda state: state.pop("module.final.bias"), "missing key generator.final.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_changes(change, message):
    host = make()
    before = copy.deepcopy(host.state_dict())
    with pytest.raises(ValueError, match=message):
        host.load_upstream(broken(change))
    assert host.memory is None and host.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in host.state_dict().items())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("common_params", "num_kp"), 4, "num_kp 3, the host has 4"),
        (("generator_params", "max_features"), 8, r"channels \[16, 8, 4\], the host has \[8, 8, 4\]"),
        (
            ("generator_params", "num_down_blocks"),
            2,
            r"sizes of the features \[32, 64, 128\], the host has \[64, 128\]",
        ),
    ],
)
def test_a_memory_made_for_another_host_is_refused(path, value, message):
    model = copy.deepcopy(MODEL)
    model[path[0]][path[1]] = value
    with pytest.raises(ValueError, match=message):
        make(model=model).load_upstream(published_sections())


def test_noise_is_what_is_given():
    host, (source, driving) = remembering(), pictures()
    still = host(source, driving).prediction
    assert torch.equal(host(source, driving).prediction, still)  # none is drawn
    silent = [torch.zeros_like(map_) for map_ in noise()]
    assert torch.equal(host(source, driving, noise=silent).prediction, still)
    first, other = (host(source, driving, noise=noise(seed=seed)).prediction for seed in (1, 2))
    assert not torch.equal(first, still) and not torch.equal(first, other)
    again = host.generate(source, host.keypoints(source), host.keypoints(driving), noise(seed=1))
    assert torch.equal(again.prediction, first)
    assert torch.equal(host(source, driving).prediction, still)  # nothing of it stays
    for scale in range(3):  # each scale gets its own map
        mixed = noise(seed=1)
        mixed[scale] = noise(seed=2)[scale]
        assert not torch.equal(host(source, driving, noise=mixed).prediction, first)


def test_noise_that_does_not_fit_is_refused_and_forgotten():
    host, (source, driving) = remembering(), pictures()
    still = host(source, driving).prediction
    with pytest.raises(ValueError, match="one tensor for each of 3 scales, not 2"):
        host(source, driving, noise=noise()[:2])
    with pytest.raises(ValueError, match=r"noise must be \(2 or 1, 1, 4, 6\), not \(3, 1, 4, 6\)"):
        host(source, driving, noise=noise(3))
    assert torch.equal(host(source, driving).prediction, still)
    with pytest.raises(ValueError, match="the host has no memory"):
        make()(source, driving, noise=noise())
    paper = make()
    attach(paper, PAPER, scales=PUBLISHED_PLACES)
    with pytest.raises(ValueError, match="only used by variant 'release'"):
        paper(source, driving, noise=noise())


def test_training_noise_comes_from_the_given_generator():
    host = remembering(config=CompensationConfig.release(**SMALL, noise=True)).train()
    host.freeze()  # batch statistics would move
    source, driving = pictures()

    def train(seed):
        torch.rand(seed)  # the global state must not matter
        generator = torch.Generator().manual_seed(seed)
        return host.training_output(source, driving, epoch=0.0, generator=generator).prediction

    assert torch.equal(train(3), train(3)) and not torch.equal(train(3), train(4))
    host.eval()
    assert torch.equal(train(3), host(source, driving).prediction)


def test_copies_and_pickles_keep_the_memory():
    host = make()
    host.load_upstream(published_sections())
    source, driving = pictures()
    expected = host.eval()(source, driving, noise=noise()).prediction
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert torch.equal(twin(source, driving, noise=noise()).prediction, expected)
        assert Handle.of(twin.generator).compensation is twin.memory


def test_the_names_of_levels_are_sizes_of_the_published_picture():
    host = create_host("mcnet", CONFIGS["published"]["model"])
    assert release.level_sizes(host.taps()[0]) == [32, 64, 128]


def test_losses_are_fomms_and_eq_5_adds_the_memorys():
    host, (source, driving) = remembering().train(), pictures()
    with host.memory.recording() as record:
        output = host(source, driving)
    terms = host.loss_terms(
        output,
        source,
        driving,
        host.loss_names,
        generator=torch.Generator().manual_seed(0),
        transform_params={"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5},
    )
    assert tuple(terms) == ("equivariance_value", "equivariance_jacobian", "keypoint_distance", "generator_gan",
                            "feature_matching")  # fmt: skip
    total = torch.stack([*terms.values(), record.consistency_loss()]).sum()
    assert total.isfinite() and record.consistency_loss() > 0
    total.backward()
    assert all(parameter.grad is not None for parameter in host.generator.parameters())
    assert all(parameter.grad is not None for parameter in host.kp_detector.parameters())
    assert host.discriminator_loss(output, driving).isfinite()


def test_autocast_and_channels_last_give_nearly_the_same_picture():
    host, (source, driving) = remembering(), pictures()
    expected = host(source, driving, noise=noise()).prediction
    twin = copy.deepcopy(host).to(memory_format=torch.channels_last)
    torch.testing.assert_close(twin(source, driving, noise=noise()).prediction, expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = twin(source, driving, noise=noise())
    assert output.deformation.dtype == torch.float32
    assert (output.prediction.float() - expected).abs().mean() < 0.005


@torch.no_grad()
def test_the_published_memory_can_be_disabled():
    host, plain = make(2).eval(), make(2).eval()
    sections = published_sections()
    host.load_upstream(sections)
    without = {name: {k: v for k, v in state.items() if "mbUnit" not in k} for name, state in sections.items()}
    plain.load_upstream(without)
    shown, expected = host(*pictures()).prediction, plain(*pictures()).prediction
    assert not torch.equal(shown, expected)
    with Handle.of(host.generator).disabled():
        assert torch.equal(host(*pictures()).prediction, expected)
        assert torch.equal(host(*pictures(), noise=noise()).prediction, expected)
    assert torch.equal(host(*pictures()).prediction, shown)


def test_noise_belongs_to_the_thread_that_gives_it():
    from concurrent.futures import ThreadPoolExecutor

    host, (source, driving) = remembering(), pictures()
    expected = [host(source, driving, noise=noise(seed=seed)).prediction for seed in range(4)]
    still = host(source, driving).prediction

    def call(number):
        given = None if number % 5 == 4 else noise(seed=number % 5)
        wanted = still if given is None else expected[number % 5]
        return torch.equal(host(source, driving, noise=given).prediction, wanted)

    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(60)))
