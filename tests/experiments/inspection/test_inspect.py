"""`memcomp inspect`: what it says about a memory is what the memory does."""

import itertools
import json
import math
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import memcomp
from memcomp import CompensationConfig, MemoryCompensation
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.cli import main
from memcomp.experiments.inspection import observe as memory_view
from memcomp.experiments.inspection.faces import deepest
from memcomp.experiments.inspection.inspect import by_visibility
from memcomp.experiments.inspection.memory_figures import memory_picture, random_channels, varying_channels
from memcomp.experiments.inspection.observe import (
    distinct_patterns,
    gates,
    observe,
    roughness,
    skip_weights,
    spread,
    view,
)
from memcomp.experiments.inspection.usage import usage
from memcomp.experiments.recipe.load import with_overrides

SIZE = {"memory_channels": 8, "memory_size": (3, 4), "identity_hidden": 6, "identity_code": 7}


def small_memory(**choices):
    """A memory of two scales whose weights are all drawn anew, so that attention is far from even."""
    torch.manual_seed(0)
    preset = CompensationConfig.release if choices.pop("release", False) else CompensationConfig.paper
    memory = MemoryCompensation([6, 4], 5, preset(**SIZE, **choices)).double().eval()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return memory


def called(memory, scale):
    """Feature, keypoints and what `memory` makes of them."""
    feature = torch.randn(2, memory.channels[scale], 5, 3, dtype=torch.double)
    keypoints = torch.rand(2, 5, 2, dtype=torch.double) * 2 - 1
    with torch.no_grad():
        output = memory.compensate(feature, keypoints, scale)
    return feature, keypoints, output


def every_attention(seen, sample):
    """(H, W, M): `attention_at` of every place."""
    height, width = seen.part.shape[2:]
    places = itertools.product(range(height), range(width))
    rows = [seen.attention_at((x + 0.5) / width, (y + 0.5) / height, sample).flatten() for y, x in places]
    return torch.stack(rows).unflatten(0, (height, width))


@pytest.mark.parametrize("scale", [0, 1])
@pytest.mark.parametrize(
    "choices",
    [{}, {"split": "none"}, {"identity_conditioning": False, "attention_scale": 0.5}, {"sharing": "networks"}],
    ids=["paper", "no split", "no IICM", "shared"],
)
def test_the_attention_shown_gives_the_output_by_equation_2(choices, scale):
    memory = small_memory(**choices)
    feature, keypoints, output = called(memory, scale)
    seen = view(memory, feature, keypoints, scale)
    layer = memory.scales[scale]
    for sample in range(2):
        attended = every_attention(seen, sample) @ output.value[sample].flatten(1).t()  # (H, W, C_m)
        expected = layer.output(attended.permute(2, 0, 1)[None])[0]
        torch.testing.assert_close(output.feature[sample, -len(expected) :], expected)
    changed = output.feature[:, -seen.part.shape[1] :] - feature[:, -seen.part.shape[1] :]
    torch.testing.assert_close(seen.change, changed.square().mean(1).sqrt())
    if memory.config.identity_conditioning:
        assert spread(seen.memory) > 0.01
    else:
        assert torch.equal(seen.memory[1], memory.memory.value)


def test_usage_is_that_of_every_place():
    memory = small_memory()
    seen, entropies, reads, changes = [], [], [], []
    for scale in (0, 1):
        feature, keypoints, output = called(memory, scale)
        seen.append(view(memory, feature, keypoints, scale))
        shares = torch.stack([every_attention(seen[scale], sample) for sample in range(2)])  # (B, H, W, M)
        entropies.append(torch.special.entr(shares).sum(-1).mean().item() / math.log(12))
        reads.append(torch.special.entr(shares.mean((0, 1, 2))).sum().exp().item() / 12)
        before, after = (features.chunk(2, dim=1)[1] for features in (feature, output.feature))
        changes.append(((after - before).norm() / before.norm()).item())
    found = usage(seen)
    expected = {"memory_entropy": entropies, "memory_read": reads, "memory_change": changes}
    assert found == pytest.approx({name: sum(values) / 2 for name, values in expected.items()})
    assert 0 < found["memory_entropy"] < 0.99 and 1 / 12 < found["memory_read"] < 0.99


def test_even_attention_reads_everything_and_a_closed_gate_changes_nothing():
    memory = small_memory(start="identity")
    for layer in memory.scales:
        torch.nn.init.zeros_(layer.gate)
    feature, keypoints, _ = called(memory, 0)
    seen = view(memory, feature, keypoints, 0)
    even = usage([replace(seen, keys=torch.zeros_like(seen.keys))])
    assert even == pytest.approx({"memory_entropy": 1, "memory_read": 1, "memory_change": 0}, abs=1e-9)


def test_the_attention_shown_gives_the_output_of_the_released_unit():
    memory = small_memory(release=True)
    feature, keypoints, output = called(memory, 1)
    seen, layer, mcm = view(memory, feature, keypoints, 1), memory.scales[1], memory.mcm[0]
    attended = torch.stack([every_attention(seen, i) @ output.value[i].flatten(1).t() for i in range(2)])
    projected = layer.projection(feature[:, 1::2])
    residual = F.relu(F.conv2d(projected - attended.permute(0, 3, 1, 2), mcm.difference.weight, mcm.difference.bias))
    torch.testing.assert_close(output.feature[:, 1::2], F.relu(layer.output(projected + residual)))


def test_entropy_and_usage_are_those_of_the_attention_whatever_the_chunk(monkeypatch):
    memory = small_memory()
    feature, keypoints, _ = called(memory, 0)
    seen = view(memory, feature, keypoints, 0)
    monkeypatch.setattr(memory_view, "ENTRIES", 4 * 12)  # four of fifteen places at a time
    found = seen.attention()
    for sample in range(2):
        shares = every_attention(seen, sample)
        torch.testing.assert_close(found.entropy[sample], -(shares * shares.log()).sum(-1))
        torch.testing.assert_close(found.usage[sample].flatten(), shares.mean((0, 1)))
    assert 0.1 < found.entropy.mean() < 0.95 * math.log(12)


def test_a_host_is_observed_and_left_as_it_was(small_host):
    source, driving = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = small_host(source, driving).prediction
    output, views = observe(small_host, source, driving)
    assert torch.equal(output.prediction, before)
    assert [v.scale for v in views] == list(range(len(small_host.memory.channels)))
    assert [v.part.shape[1] for v in views] == [channels // 2 for channels in small_host.memory.channels]
    assert not small_host.memory._forward_pre_hooks
    assert all(float(v.change.max()) > 0 for v in views)


def test_a_skip_s_own_feature_is_looked_at_not_the_decoder_s(small_recipe):
    recipe = with_overrides(small_recipe, ["memory.mode=skip", "memory.start=identity"], "test")
    host = build_host(recipe).eval()
    source, driving = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = {}
    inner = host.memory.compensate

    def spy(feature, keypoints, scale, noise=None):
        seen[scale] = feature.clone()
        return inner(feature, keypoints, scale, noise)

    host.memory.compensate = spy
    views = observe(host, source, driving)[1]
    deformed = host.generator.first(source)  # the encoder's finest feature, before it is warped
    assert seen[1].shape == deformed.shape and seen[1].shape[1] == host.memory.skips.convs["1"].in_channels
    assert torch.equal(views[1].part, seen[1][:, seen[1].shape[1] // 2 :])
    assert float(views[1].change.max()) > 0  # although its convolution is still zero
    assert list(gates(host.memory)) == [0] and not skip_weights(host.memory)[1].any()
    assert list(skip_weights(host.memory)) == [1]


def test_numbers_that_describe_memories():
    noise = torch.randn(40, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(noise, 7, 1, 3)
    assert roughness(noise) == pytest.approx(1, abs=0.02) and roughness(smooth) < 0.2
    assert roughness(torch.ones(4, 3, 3)) == 0 and distinct_patterns(torch.ones(4, 3, 3)) == 0
    assert distinct_patterns(noise) == pytest.approx(1 / (1 / 40 + 1 / 256), rel=0.02)
    assert distinct_patterns(noise[:1] * torch.arange(1, 9)[:, None, None]) == pytest.approx(1)
    assert spread(noise[:1].expand(3, -1, -1)) == pytest.approx(0, abs=1e-12)
    assert spread(torch.stack([noise, -noise])) == pytest.approx(1)
    assert spread(torch.stack([1.1 * noise, 0.9 * noise])) == pytest.approx(0.0995, abs=1e-3)
    scaled = noise * 0.5 ** torch.arange(40.0)[:, None, None]
    assert varying_channels(scaled, 3) == [0, 1, 2]
    assert random_channels(noise, 5) == random_channels(smooth, 5) and len(set(random_channels(noise, 40))) == 40


def test_gates_are_those_of_the_compensated_channels():
    memory = small_memory(start="identity")
    assert {scale: len(gate) for scale, gate in gates(memory).items()} == {0: 3, 1: 2}
    assert torch.equal(gates(memory)[0], memory.scales[0].gate[3:])
    assert gates(small_memory()) == {}


def test_places_and_means_under_a_mask():
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[4:13, 10:19], mask[20, 2] = True, True
    place = deepest(mask, "there")
    assert 8 <= place.x * 24 - 0.5 <= 16 and 5 <= place.y * 24 - 0.5 <= 11
    values = torch.arange(4.0).view(2, 2)
    hidden = torch.tensor([[True, False], [False, False]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert by_visibility({"a": values}, hidden) == {"a_hidden": 0.0, "a_shown": 2.0}
    assert by_visibility({"a": values}, torch.zeros(4, 4, dtype=torch.bool)) == {"a_shown": 1.5}


def inspected(checkpoint, folder, *words):
    """Exit code 0, and the numbers written."""
    assert main(["inspect", str(checkpoint), "--output", str(folder), *map(str, words)]) == 0
    return json.loads((folder / "inspect.json").read_text())


def test_heads_are_looked_at_without_any_picture_given(small_run, tmp_path, capsys):
    content = inspected(small_run, tmp_path / "a", "--identities", 2)
    names = {"memory.png", "attention.png", "entropy.png", "identities_scale0.png", "identities_scale1.png"}
    assert names | {"inspect.json"} == {path.name for path in (tmp_path / "a").iterdir()}
    for name in names:
        picture = iio.imread(tmp_path / "a" / name)[..., :3]
        assert min(picture.shape[:2]) > 200 and picture.std() > 15
    assert content["memory"]["shape"] == [8, 4, 4] and content["sources"] == 2
    assert [place["name"] for place in content["places"]] == ["eye", "mouth", "hidden in the source"]
    for entry in content["scales"]:
        assert 0 < entry["entropy"] <= entry["entropy_of_usage"] + 1e-6 <= entry["largest_entropy"] + 2e-6
        assert entry["spread_between_sources"] > 0 and entry["spread_between_poses"] > 0
        assert entry["entropy_hidden"] != entry["entropy_shown"]
    assert "gates" not in content and "| scale |" in capsys.readouterr().out


@pytest.fixture
def faces(tmp_path):
    """Two pictures."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        iio.imwrite(path, generator.integers(0, 255, (40, 36, 3), dtype=np.uint8))
    return paths


def test_pictures_of_ones_own_and_a_second_memory(small_run, faces, tmp_path):
    one, two = faces
    words = ["--source", one, "--source", two, "--driving", two, "--pixel", "3,31", "--compare", small_run]
    content = inspected(small_run, tmp_path / "out", *words)
    assert content["places"] == [{"name": "pixel 3,31", "x": 3.5 / 32, "y": 31.5 / 32}]
    assert content["compare"]["memory"] == content["memory"]
    assert (tmp_path / "out" / "compare.png").is_file()
    assert "entropy_hidden" not in content["scales"][0] and "spread_between_poses" not in content["scales"][0]
    alone = inspected(small_run, tmp_path / "alone", "--source", one)
    assert "spread_between_sources" not in alone["scales"][0]
    assert alone["places"][-1]["name"] == "hidden, says the host"


def test_a_memory_without_its_host_and_a_pretrained_folder(small_run, faces, tmp_path, capsys):
    memory = small_memory(start="identity")
    memcomp.save(memory, tmp_path / "memory.safetensors")
    content = inspected(tmp_path / "memory.safetensors", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"memory.png", "gates.png", "inspect.json"}
    inspected(tmp_path / "memory.safetensors", tmp_path / "same")
    for name in ("memory.png", "gates.png", "inspect.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    for stated, gate in zip(content["gates"], gates(memory).values(), strict=True):
        assert stated["rms"] == pytest.approx(gate.square().mean().sqrt().item())
    assert "scales" not in content and content["memory"]["shape"] == [8, 3, 4]
    load_host(small_run)[0].save_pretrained(tmp_path / "folder")
    folder = inspected(tmp_path / "folder", tmp_path / "again", "--source", faces[0])
    assert folder["memory"]["shape"] == [8, 4, 4] and len(folder["scales"]) == 2
    (tmp_path / "memory.safetensors").write_bytes((tmp_path / "memory.safetensors").read_bytes()[:-9])
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "memory.safetensors"), "--output", str(tmp_path / "bad")]) == 2
    assert "memory.safetensors" in capsys.readouterr().err and not (tmp_path / "bad").exists()


def test_errors_name_what_is_wrong(small_run, small_recipe, faces, tmp_path, capsys):
    import dataclasses

    alone = dataclasses.replace(small_recipe, memory=None)
    save_run(tmp_path / "model.safetensors", alone, build_host(alone), 0)
    cases = [
        ([tmp_path], "expected a checkpoint with a memory"),
        ([small_run, "--pixel", "3,32"], "--pixel 3,32: expected x,y with both in 0 … 31"),
        ([small_run, "--pixel", "a"], "--pixel: expected x,y in pixels, got 'a'"),
        ([small_run, "--driving", faces[0]], "--driving: expected with --source"),
        ([small_run, "--source", tmp_path / "none.png"], "expected a picture, found nothing"),
        ([small_run, "--identities", 0], "--identities: expected 1 or more"),
        ([small_run, "--compare", tmp_path / "none"], "found nothing"),
    ]
    for words, message in cases:
        assert main(["inspect", *map(str, words), "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tiny_or_even_memory_is_drawn(tmp_path):
    memory_picture(tmp_path / "one.png", torch.zeros(1, 1, 1), "one number")
    memory_picture(tmp_path / "thin.png", torch.randn(3, 1, 5, requires_grad=True), "thin")
    assert all(iio.imread(tmp_path / name).shape[0] > 300 for name in ("one.png", "thin.png"))
