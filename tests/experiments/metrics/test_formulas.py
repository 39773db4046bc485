"""MS-SSIM, LPIPS, the face metrics and those of videos, against formulas written out here in plain numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from memcomp.experiments.backends.perceptual import empty_features
from memcomp.experiments.metrics.aed import aed
from memcomp.experiments.metrics.akd import akd
from memcomp.experiments.metrics.aucon import aucon
from memcomp.experiments.metrics.csim import csim
from memcomp.experiments.metrics.features import feature_distance, feature_map
from memcomp.experiments.metrics.flicker import flicker
from memcomp.experiments.metrics.jitter import landmark_jitter
from memcomp.experiments.metrics.lpips import DEVIATION, LAYERS, LPIPS, MEAN, lpips
from memcomp.experiments.metrics.ms_ssim import SMALLEST, WEIGHTS, ms_ssim
from memcomp.experiments.metrics.prmse import prmse
from memcomp.experiments.metrics.registry import METRICS, PROTOCOLS


@pytest.fixture(scope="module")
def images():
    """A smooth picture and a noisy, shifted one: (3, 181, 178)."""
    y, x = torch.meshgrid(torch.linspace(0, 9, 181), torch.linspace(0, 7, 178), indexing="ij")
    target = torch.stack([x.sin() * y.cos(), (x * y / 4).sin(), (x + 2 * y).cos()]) * 0.4 + 0.5
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return (target.roll(2, -1) + 0.05 * noise).clamp(0, 1), target


def gaussian_means(image, kernel):
    """Weighted mean of every 11×11 window inside the picture, as a sum over shifted copies."""
    height, width = (side - 10 for side in image.shape)
    return sum(kernel[i] * kernel[j] * image[i : i + height, j : j + width] for i in range(11) for j in range(11))


def plain_ms_ssim(x, y):
    kernel = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    channels = []
    for a, b in zip(x, y, strict=True):
        value = 1.0
        for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
            ma, mb = gaussian_means(a, kernel), gaussian_means(b, kernel)
            va, vb = gaussian_means(a * a, kernel) - ma**2, gaussian_means(b * b, kernel) - mb**2
            cov = gaussian_means(a * b, kernel) - ma * mb
            local = (2 * cov + 0.03**2) / (va + vb + 0.03**2)
            if scale == 4:
                local = local * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
            value *= max(local.mean(), 0) ** weight
            height, width = (side // 2 * 2 for side in a.shape)
            a, b = (
                (p[:height:2, :width:2] + p[1:height:2, :width:2] + p[:height:2, 1:width:2] + p[1:height:2, 1:width:2])
                / 4
                for p in (a, b)
            )
        channels.append(value)
    return np.mean(channels)


def test_ms_ssim_is_the_formula_written_out(images):
    prediction, target = images
    expected = plain_ms_ssim(*(image.double().numpy() for image in images))
    assert 0.3 < expected < 0.99
    assert ms_ssim(prediction, target, data_range=1.0) == pytest.approx(expected, abs=1e-10)
    assert ms_ssim(target, target, data_range=1.0) == pytest.approx(1)
    assert ms_ssim(1 - target, target, data_range=1.0) == 0  # an anti-correlated scale counts as 0
    assert sum(WEIGHTS) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=f"at least {SMALLEST}"):
        ms_ssim(target[:, :175], target[:, :175], data_range=1.0)


def plain_lpips(network, x, y):
    """Layer by layer, place by place, in numpy."""
    total, heads = 0.0, iter(network.heads)
    mean, deviation = (np.array(values)[:, None, None] for values in (MEAN, DEVIATION))
    a, b = (torch.as_tensor((image - mean) / deviation) for image in (x, y))
    for number, module in enumerate(network.features.double()):
        a, b = (module(feature[None])[0] for feature in (a, b))
        if number in LAYERS["alex"]:
            p, q = (feature.numpy() / (np.sqrt((feature.numpy() ** 2).sum(0)) + 1e-10) for feature in (a, b))
            total += ((p - q) ** 2 * next(heads).double().numpy()[:, None, None]).sum(0).mean()
    network.features.float()
    return total


@pytest.fixture(scope="module")
def network():
    """An AlexNet of random weights with random heads."""
    torch.manual_seed(0)
    made = LPIPS("alex", empty_features("alex"))
    for parameter in made.features.parameters():
        parameter.normal_(0, 0.05)
    for head in made.heads:
        head.uniform_(0, 0.5)
    return made


def test_lpips_is_the_formula_written_out_and_its_two_input_ranges_differ(network, images):
    prediction, target = (image[:, :96, :96] for image in images)
    x, y = (image.double().numpy() for image in (prediction, target))
    standard = lpips(network, prediction, target, centred=True)
    assert standard == pytest.approx(plain_lpips(network, 2 * x - 1, 2 * y - 1), rel=1e-5)
    released = lpips(network, prediction, target, centred=False)
    assert released == pytest.approx(plain_lpips(network, x, y), rel=1e-5)
    assert abs(standard - released) > 0.05 * standard
    assert lpips(network, target, target, centred=True) == 0
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        lpips(network, prediction[None], target[None], centred=True)
    with pytest.raises(ValueError, match="not finite"):
        lpips(network, prediction * math.nan, target, centred=True)


def test_lpips_takes_features_behind_every_relu_that_the_variants_name():
    for variant in LAYERS:
        features = empty_features(variant)
        for number, width in LAYERS[variant].items():
            before = [m for m in features[:number] if isinstance(m, nn.Conv2d)][-1]
            assert isinstance(features[number], nn.ReLU) and before.out_channels == width


def test_akd_under_both_formulas():
    generator = np.random.default_rng(0)
    target = generator.uniform(0, 256, (68, 2))
    prediction = target + generator.normal(0, 3, (68, 2))
    euclidean = sum(math.hypot(*(p - t)) for p, t in zip(prediction, target, strict=True)) / 68
    assert akd(prediction, target, per_coordinate=False) == pytest.approx(euclidean, abs=1e-10)
    halves = sum(abs(p - t) for p, t in zip(prediction.ravel(), target.ravel(), strict=True)) / 136
    assert akd(prediction, target, per_coordinate=True) == pytest.approx(halves, abs=1e-10)
    assert akd(target + 3, target, per_coordinate=True) == pytest.approx(3)  # 3 px right and down
    assert akd(target + 3, target, per_coordinate=False) == pytest.approx(3 * math.sqrt(2))


def test_identity_metrics():
    a, b = np.array([3.0, 4.0]), np.array([0.0, 2.0])
    assert aed(a, b, squared=False) == pytest.approx(math.sqrt(13))
    assert aed(a, b, squared=True) == pytest.approx(13)
    assert csim(a, b) == pytest.approx(0.8)
    assert csim(a, -a) == pytest.approx(-1)
    with pytest.raises(ValueError, match="no direction"):
        csim(a, np.zeros(2))


def test_expression_and_pose():
    assert aucon([0.9, 0.1, 0.6, 0.5], [0.6, 0.7, 0.2, 0.1]) == 0.5  # 0.5 itself is off
    assert prmse([10, -20, 5], [7, -16, 5]) == pytest.approx(math.sqrt((9 + 16) / 3))
    assert prmse([179, 0, 0], [-179, 0, 0]) == pytest.approx(2 / math.sqrt(3))  # the short way round


def test_jitter_sees_trembling_only():
    generator = np.random.default_rng(0)
    time = np.arange(400)[:, None, None]
    driving = generator.uniform(0, 256, (1, 68, 2)) + 20 * np.sin(time / 20)
    assert landmark_jitter(driving + 40 + 0.5 * time, driving) == pytest.approx(0, abs=1e-9)
    noise = generator.normal(0, 0.7, driving.shape)
    assert landmark_jitter(driving + noise, driving) == pytest.approx(0.7 * math.sqrt(6 * math.pi / 2), rel=0.02)
    p, d = driving[:5] + noise[:5], driving[:5]
    expected = np.mean(
        [math.hypot(*((p - d)[t + 1, k] - 2 * (p - d)[t, k] + (p - d)[t - 1, k])) for t in (1, 2, 3) for k in range(68)]
    )
    assert landmark_jitter(p, d) == pytest.approx(expected, abs=1e-10)
    with pytest.raises(ValueError, match="3 frames"):
        landmark_jitter(p[:2], d[:2])
    with pytest.raises(ValueError, match="one shape"):
        landmark_jitter(p[:4], d)


def test_flicker_sees_changing_errors_only():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(6, 3, 8, 9, generator=generator)
    assert flicker(target * 0 + target + 0.1, target) == pytest.approx(0, abs=1e-7)
    prediction = torch.rand(6, 3, 8, 9, generator=generator)
    p, y = prediction.double().numpy(), target.double().numpy()
    expected = np.mean([np.abs((p[t + 1] - p[t]) - (y[t + 1] - y[t])).mean() for t in range(5)])
    assert flicker(prediction, target) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="one shape"):
        flicker(prediction[:5], target)


@pytest.mark.parametrize("name", ["akd", "aed", "csim", "aucon", "prmse"])
def test_labels_that_do_not_fit_are_refused(name):
    formula = METRICS[name].formulas["standard"]
    good = {"akd": np.ones((68, 2)), "prmse": np.ones(3)}.get(name, np.ones(5))
    for bad, message in (
        (good[:-1], "one shape"),
        (good[None], "one shape"),
        (good * np.nan, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            formula(bad, good)
    if name in ("akd", "prmse"):
        with pytest.raises(ValueError, match="should be"):
            formula(*[np.ones((68, 3)) if name == "akd" else np.ones(4)] * 2)


def transcribed(x, y, labels):
    """The protocol `paper` written out once more, from float images (H, W, 3) and labels: numpy only."""
    error, (p, t) = x - y, labels["landmarks"]
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    local = []
    for c in range(3):
        for i in range(x.shape[0] - 6):
            for j in range(x.shape[1] - 6):
                a, b = x[i : i + 7, j : j + 7, c].ravel(), y[i : i + 7, j : j + 7, c].ravel()
                s = np.cov(a, b)
                local.append(
                    (2 * a.mean() * b.mean() + c1)
                    * (2 * s[0, 1] + c2)
                    / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (s[0, 0] + s[1, 1] + c2))
                )
    units = np.array(labels["action_units"]) > 0.5
    return {
        "l1": np.abs(error).mean(),
        "psnr": 10 * np.log10(1 / np.mean(error**2)),
        "psnr_peak2": 10 * np.log10(4 / np.mean(error**2)),
        "ssim": np.mean(local),
        "akd": np.abs(p - t).mean(),
        "aed": ((labels["identity"][0] - labels["identity"][1]) ** 2).sum(),
        "aucon": np.mean(~(units[0] ^ units[1])),
        "prmse": np.sqrt(((labels["pose"][0] - labels["pose"][1]) ** 2).sum() / 3),
    }


def test_the_protocol_paper_is_the_released_arithmetic(images, network):
    prediction, target = (image[:, 40:70, 50:84] for image in images)
    generator = np.random.default_rng(1)
    labels = {
        "landmarks": generator.uniform(0, 256, (2, 68, 2)),
        "identity": generator.normal(0, 1, (2, 128)),
        "action_units": generator.uniform(0, 1, (2, 20)),
        "pose": generator.uniform(-40, 40, (2, 3)),
    }
    expected = transcribed(*(image.double().permute(1, 2, 0).numpy() for image in (prediction, target)), labels)
    for name, formula in PROTOCOLS["paper"].items():
        reads = METRICS[name].reads
        if not reads.startswith("lpips"):  # has its own test
            given = (prediction, target) if reads == "image" else labels[reads]
            assert formula(*given) == pytest.approx(expected.pop(name), abs=1e-6), name
    assert not expected
    small = [image[:, :64, :64] for image in images]
    assert PROTOCOLS["paper"]["lpips_alex"](network, *small) == lpips(network, *small, centred=False)
    assert PROTOCOLS["standard"]["lpips_alex"](network, *small) == lpips(network, *small, centred=True)
    assert PROTOCOLS["paper"]["lpips_vgg"](network, *small) == lpips(network, *small, centred=True)


def test_feature_distance_is_one_minus_the_cosine_averaged_over_layers_and_places():
    draw = torch.Generator().manual_seed(3)
    first, second = torch.rand(2, 3, 16, 16, generator=draw)

    class Network(nn.Linear):
        def forward(self, pictures):
            return [pictures, torch.nn.functional.avg_pool2d(pictures, 4) - 0.5]

    network, maps = Network(1, 1), []
    for one, other in zip(network(first[None]), network(second[None]), strict=True):
        one, other = one[0].double().numpy(), other[0].double().numpy()
        cosine = (one * other).sum(0) / np.sqrt((one**2).sum(0) * (other**2).sum(0))
        maps.append(torch.nn.functional.interpolate(torch.tensor(1 - cosine)[None, None], (16, 16), mode="bilinear")[0])
    expected = sum(maps)[0] / 2
    found = feature_map(network, first, second)
    assert feature_distance(found) == pytest.approx(float(expected.mean()), rel=1e-6)
    assert feature_distance(feature_map(network, first, first)) == pytest.approx(0, abs=1e-7)

    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 5:7, 4] = mask[0, 0, 0] = True  # the corner is border, which SSIM does not count either
    assert feature_distance(found, mask) == pytest.approx(float(expected[5:7, 4].mean()), rel=1e-6)
    with pytest.raises(ValueError, match="two images"):
        feature_map(network, first, second[:, :8])
