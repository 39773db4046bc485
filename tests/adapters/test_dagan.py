"""What DaGAN adds to FOMM's host: the disparity and where it comes from, a frozen network, attention, SPADE variant."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from memcomp import CompensationConfig
from memcomp.adapters import DaGAN, attach, create_host
from memcomp.adapters.dagan.attention import DepthAttention
from memcomp.adapters.dagan.depth import DepthEncoder
from memcomp.adapters.fomm.motion import DenseMotion
from memcomp.adapters.shared import losses
from memcomp.adapters.shared.resnet import ResNet
from memcomp.taps import tap_channels

MODEL = {
    "common_params": {"num_kp": 3, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 16, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
        "estimate_occlusion_map": True,
        "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.5},
    },
    "discriminator_params": {"scales": [1], "block_expansion": 4, "max_features": 8, "num_blocks": 2, "use_kp": True},
}
WIDE = MODEL["generator_params"] | {"block_expansion": 64, "max_features": 256}
SPADE = MODEL | {"generator": "SPADEDepthAwareGenerator", "generator_params": WIDE}
MEMORY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity")
TRANSFORM = {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5}


def made(depth, model=MODEL, seed=0):
    torch.manual_seed(seed)
    host = create_host("dagan", model | {"depth": depth})
    torch.nn.init.normal_(host.kp_detector.jacobian.weight, std=0.01)  # zero at the start: Jacobians would not differ
    attention = host.generator.AttnModule
    torch.nn.init.ones_(attention.gamma)  # zero at the start: the depth would not matter
    for conv in (attention.query_conv, attention.key_conv):  # nor would it if all places were asked alike
        torch.nn.init.normal_(conv.weight, std=5)
    return host


@pytest.fixture(scope="module")
def depth_weights():
    """State dicts of depth networks: 18 layers, 50 layers."""
    hosts = [made({"num_layers": layers}, seed=5) for layers in (18, 50)]
    return [
        {name: dict(host.sections()[name].state_dict()) for name in ("depth_encoder", "depth_decoder")}
        for host in hosts
    ]


def pictures(batch=2, height=64, width=64, channels=4):
    return torch.rand(2, batch, 4, height, width, generator=torch.Generator().manual_seed(1))[:, :, :channels].unbind()


def terms(host, source, driving, names=DaGAN.loss_names):
    generator = torch.Generator().manual_seed(0)
    return host.loss_terms(
        host(source, driving), source, driving, names, generator=generator, transform_params=TRANSFORM
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_the_disparity_is_where_the_model_says(batch, training):
    source, driving = pictures(batch)
    truth, zeros, network = (made(depth).train(training) for depth in ("truth", "zeros", {"num_layers": 18}))
    for host in (truth, zeros, network):
        output = host(source, driving)
        assert output.prediction.shape == (batch, 3, 64, 64) and output.disparity.shape == (batch, 1, 64, 64)
    assert torch.equal(truth(source, driving).disparity, source[:, 3:])
    assert not zeros(source, driving).disparity.any()
    found = network(source, driving).disparity
    assert torch.equal(found, network.with_disparity(source[:, :3])[:, 3:])
    assert found.min() > 0 and found.max() < 1 and found.std() > 0


def test_disparity_reaches_keypoints_and_picture():
    host = made("truth").eval()
    source, driving = pictures()
    output, flat = host(source, driving), torch.cat([source[:, :3], 1 - source[:, 3:]], dim=1)
    assert not torch.equal(host.keypoints(flat).value, output.kp_source.value)
    other = host.generate(flat, output.kp_source, output.kp_driving)
    assert torch.equal(other.deformation, output.deformation)
    assert not torch.equal(other.prediction, output.prediction)
    again = host.generate(source, host.keypoints(source), host.keypoints(driving))
    assert torch.equal(again.prediction, output.prediction)


def test_a_fourth_channel_that_is_not_asked_for_changes_nothing():
    source, driving = pictures()
    for depth in ("zeros", {"num_layers": 18}):
        host = made(depth).eval()
        assert torch.equal(host(source, driving).prediction, host(source[:, :3], driving[:, :3]).prediction)


def test_wrong_pictures_are_refused_by_name():
    source, driving = pictures(channels=3)
    with pytest.raises(ValueError, match=r'depth: "truth", so pictures need .* fourth channel; they have 3'):
        made("truth")(source, driving)
    with pytest.raises(ValueError, match=r"expected pictures \(B, 3, H, W\).* got \(2, 1, 64, 64\)"):
        made("zeros").keypoints(source[:, :1])
    with pytest.raises(ValueError, match="multiples of 32, at least 64, got 32×64"):
        made({"num_layers": 18})(source[:, :, :32], driving[:, :, :32])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": "zeroes"}, "model.depth: 'zeroes' is neither zeros nor truth, nor a file"),
        ({"depth": 3}, "model.depth: expected zeros, truth, a file or .*, got 3"),
        ({"depth": {"layers": 18}}, "model.depth.layers: unknown key, did you mean num_layers?"),
        ({"depth": {"num_layers": 34}}, "a ResNet of 34 layers is not known here; known: 18, 50"),
        (
            {"generator": "SPADE"},
            "model.generator: expected DepthAwareGenerator or SPADEDepthAwareGenerator, got 'SPADE'",
        ),
        ({"generatr": "x"}, "model.generatr: unknown key, did you mean generator?"),
        ({"common_params": {"num_kp": 3, "num_channels": 4}}, "num_channels: expected 3, the disparity is added"),
        ({"generator": "SPADEDepthAwareGenerator"}, "takes 256 channels after 2 down blocks, not 16 after 2"),
        (
            {"generator_params": MODEL["generator_params"] | {"max_features": 4}},
            "the depth attention needs at least 8 channels at the lowest level, not 4",
        ),
    ],
)
def test_a_wrong_model_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        create_host("dagan", MODEL | {"depth": "zeros"} | change)


def test_the_depth_network_never_trains():
    host = made({"num_layers": 18}).train()
    before = {name: copy.deepcopy(host.sections()[name].state_dict()) for name in ("depth_encoder", "depth_decoder")}
    assert not any(module.training for name in before for module in host.sections()[name].modules())
    assert list(host.optimizer_groups()) == ["generator", "kp_detector", "discriminator"]
    source, driving = pictures(channels=3)
    sum(terms(host, source, driving).values()).backward()
    host.discriminator_loss(host(source, driving), driving).backward()
    for name, state in before.items():
        assert all(parameter.grad is None for parameter in host.sections()[name].parameters())
        assert all(torch.equal(value, host.sections()[name].state_dict()[key]) for key, value in state.items())
    moved = [parameter.grad for parameters in host.optimizer_groups().values() for parameter in parameters]
    assert all(grad is not None for grad in moved)


@pytest.mark.parametrize("depth", ["truth", {"num_layers": 18}])
def test_the_warped_frame_has_a_disparity_of_its_own(depth, monkeypatch):
    host = made(depth).eval()
    source, driving = pictures()
    seen = []
    host.kp_detector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    drawn = losses.RandomTransform.draw(driving, torch.Generator().manual_seed(2), **TRANSFORM)
    monkeypatch.setattr(losses.RandomTransform, "draw", lambda *args, **kwargs: drawn)
    terms(host, source, driving, ["equivariance_value"])
    warped = drawn.warp_frame(driving)
    expected = warped if depth == "truth" else host.with_disparity(warped[:, :3])
    assert len(seen) == 3 and torch.equal(seen[-1], expected)


def test_the_discriminator_sees_pictures_alone():
    host = made("truth").eval()
    source, driving = pictures()
    output = host(source, driving)
    assert torch.equal(host.discriminator_loss(output, driving), host.discriminator_loss(output, driving[:, :3]))


@pytest.mark.parametrize("index", [0, 1])
def test_the_number_of_layers_is_read_off_the_weights(index, depth_weights):
    host, weights = made({"num_layers": (50, 18)[index]}), depth_weights[index]
    own = {name: dict(module.state_dict()) for name, module in host.sections().items() if not name.startswith("depth")}
    encoder = {f"module.{key}": value for key, value in weights["depth_encoder"].items()}
    encoder |= {"height": 256, "width": 256, "use_stereo": False}  # as stored by the project the network comes from
    host.train().load_upstream(own | {"depth_encoder": encoder, "depth_decoder": weights["depth_decoder"], "epoch": 3})
    assert host.model["depth"] == {"num_layers": (18, 50)[index]}
    for name, state in weights.items():
        loaded = host.sections()[name].state_dict()
        assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], value) for key, value in state.items())
        assert not any(module.training for module in host.sections()[name].modules())
    assert "depth_encoder" not in host.optimizer_groups()


def test_what_does_not_fit_changes_nothing(depth_weights):
    host = made({"num_layers": 18})
    before = copy.deepcopy(host.state_dict())
    sections = {name: dict(module.state_dict()) for name, module in host.sections().items()} | depth_weights[1]
    del sections["depth_decoder"]
    with pytest.raises(ValueError, match="depth_encoder and depth_decoder come together, there is only depth_encoder"):
        host.load_upstream(sections)
    sections["depth_decoder"] = {
        key: value for key, value in depth_weights[1]["depth_decoder"].items() if "13" not in key
    }
    with pytest.raises(ValueError, match=r"missing key depth_decoder\.decoder\.13\.conv\.weight"):
        host.load_upstream(sections)
    assert host.model["depth"] == {"num_layers": 18}
    assert before.keys() == host.state_dict().keys()
    assert all(torch.equal(value, host.state_dict()[key]) for key, value in before.items())


def test_a_checkpoint_without_depth_loads_and_says_what_that_means(depth_weights):
    host, other = made({"num_layers": 18}), made({"num_layers": 18}, seed=1)
    sections = {name: dict(module.state_dict()) for name, module in other.sections().items()}
    own = {name: state for name, state in sections.items() if not name.startswith("depth")}
    with pytest.warns(UserWarning, match="the depth network keeps its random weights"):
        host.load_upstream(own)
    host.load_upstream(own | depth_weights[0])
    host.load_upstream(own)  # its depth network is known now: no warning
    zeros = made("zeros", seed=2)
    zeros.load_upstream(sections)
    assert zeros.model["depth"] == "zeros" and list(zeros.sections()) == ["generator", "kp_detector", "discriminator"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_file_of_weights_makes_a_host_that_needs_it_no_more(tmp_path, depth_weights, kind):
    weights = depth_weights[1]
    if kind == "folder":
        torch.save(weights["depth_encoder"] | {"height": 256, "width": 256}, tmp_path / "encoder.pth")
        torch.save(weights["depth_decoder"], tmp_path / "depth.pth")
        place = tmp_path
    else:
        place = tmp_path / "depth.safetensors"
        flat = {f"{name}.{key}": value for name, state in weights.items() for key, value in state.items()}
        save_file(flat | {"generator.other": torch.zeros(1)}, place)
    host = made(str(place)).eval()
    assert host.model["depth"] == {"num_layers": 50}
    host.check_trainable()
    again = create_host("dagan", host.model)
    with pytest.raises(ValueError, match="the depth network was never loaded"):
        again.check_trainable()
    again.load_state_dict(host.state_dict())
    again.check_trainable()
    source, driving = pictures(channels=3)
    assert torch.equal(again.eval()(source, driving).prediction, host(source, driving).prediction)
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        assert torch.equal(twin(source, driving).prediction, host(source, driving).prediction)


def test_a_file_that_is_no_depth_network_is_refused(tmp_path, depth_weights):
    torch.save(depth_weights[0]["depth_encoder"], tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"model.depth: .*no depth\.pth"):
        made(str(tmp_path))
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="text: expected a checkpoint, found a text file"):
        made(str(tmp_path / "text"))
    save_file({"generator.other": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="other has no weights of depth_encoder"):
        made(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("model", "channels"), [(MODEL, [16, 8, 4]), (SPADE, [256, 256, 64])], ids=["depth-aware", "spade"]
)
def test_an_identity_memory_changes_nothing_until_it_is_trained(model, channels):
    host = made("truth", model)
    source, driving = pictures()
    host(source, driving)  # running statistics
    before, keys = host.eval()(source, driving).prediction, host.state_dict().keys()
    handle = attach(host, MEMORY)
    assert tap_channels(host.generator, host.taps()[0]) == channels
    assert torch.equal(host(source, driving).prediction, before)
    memory = host.memory
    host.train()(source, driving).prediction.mean().backward()
    assert all(gate.grad.abs().max() > 0 for name, gate in memory.named_parameters() if "gate" in name)
    handle.remove()
    assert host.state_dict().keys() == keys


def test_the_first_tap_is_the_feature_after_the_attention():
    host = made("truth").eval()
    seen = {}
    generator = host.generator
    generator.AttnModule.register_forward_hook(lambda module, args, output: seen.update(attended=output))
    generator.get_submodule(host.taps()[0][0].module).register_forward_pre_hook(
        lambda module, args: seen.update(tapped=args[0].clone())
    )
    host(*pictures())
    assert torch.equal(seen["attended"], seen["tapped"])


def test_the_attention_is_the_plain_expression_and_its_gradients():
    torch.manual_seed(0)
    attention = DepthAttention(16).double()
    torch.nn.init.ones_(attention.gamma)
    depth, feature = torch.rand(2, 2, 16, 5, 7, dtype=torch.float64).requires_grad_().unbind()
    queries, keys, values = (
        conv(x).relu().flatten(2)
        for conv, x in ((attention.query_conv, depth), (attention.key_conv, feature), (attention.value_conv, feature))
    )
    matrix = (queries.transpose(1, 2) @ keys).softmax(-1)
    plain = feature + (values @ matrix.transpose(1, 2)).unflatten(2, (5, 7))
    ours = attention(depth, feature)
    torch.testing.assert_close(ours, plain)
    inputs = [depth, feature, *(p for name, p in attention.named_parameters() if name != "gamma")]
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layers", [18, 50])
def test_the_residual_network_is_torchvisions(layers):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs, ours = getattr(models, f"resnet{layers}")().eval(), ResNet(layers).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(ours(image), theirs(image))
    assert [feature.shape[1] for feature in DepthEncoder(layers)(image)] == ours.channels


def test_the_spade_decoder_sees_the_picture_dimmed_as_the_feature_was():
    """By the occlusion map at the feature's size, not at that of the dense motion: seen in upstream's code."""
    torch.manual_seed(0)
    wide = WIDE | {"dense_motion_params": WIDE["dense_motion_params"] | {"scale_factor": 1}}
    generator = create_host("dagan", SPADE | {"generator_params": wide, "depth": "zeros"}).generator
    deformed, feature = torch.rand(1, 3, 32, 32), torch.rand(1, 256, 8, 8)
    occlusion = torch.rand(1, 1, 32, 32)
    seen = []
    generator.decoder.register_forward_pre_hook(lambda module, args: seen.append(args))
    generator.paint(feature, deformed, DenseMotion(torch.zeros(1, 32, 32, 2), occlusion, occlusion, occlusion))
    small = F.interpolate(occlusion, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(seen[0][1], deformed * F.interpolate(small, size=(32, 32), mode="bilinear"))
