"""Files that version 0.1.0 wrote still load and give the same numbers: see tests/data/round1/HOW.md."""

import gzip
import io
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import memcomp
from memcomp import Handle, KeypointTap, MemoryCompensation, Tap
from memcomp.adapters import Keypoints, from_pretrained
from memcomp.checkpoint import from_file
from memcomp.experiments import cli

KEPT = Path(__file__).parent / "data" / "round1"
EXPECTED = load_file(KEPT / "expected.safetensors")


def numbers(step: int, *shape: int) -> torch.Tensor:
    """Numbers in [0, 1) by formula."""
    return (torch.arange(math.prod(shape)) * step % 97).view(shape) / 97


def unpickled(name: str):
    """A whole module; our own file, so that its pickle may run."""
    content = gzip.decompress((KEPT / f"{name}.pt.gz").read_bytes())
    return torch.load(io.BytesIO(content), weights_only=False)


def few(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach()[..., ::8, ::8]


def assert_gives(name: str, output: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(output.detach(), EXPECTED[name], rtol=1e-4, atol=atol)


SOURCE, DRIVING = numbers(31, 1, 3, 32, 32), numbers(17, 1, 3, 32, 32)


@pytest.mark.parametrize("name", ["run", "unfinished"])
def test_runs(name):
    from memcomp.experiments.checkpoints.trained import load_host

    host, recipe = load_host(KEPT / name)
    assert recipe.memory is not None and recipe.optim.steps == 3
    assert_gives(name, few(host(SOURCE, DRIVING).prediction))


def test_an_unfinished_run_goes_on(tmp_path, monkeypatch):
    """Resumed from its recipe, it ends where the run ended that was never stopped."""
    monkeypatch.setenv("MEMCOMP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "unfinished"
    shutil.copytree(KEPT / "unfinished", folder)
    assert cli.main(["train", str(folder / "recipe.yaml"), "--output", str(folder), "--resume"]) == 0
    from memcomp.experiments.checkpoints.trained import load_host

    ours, theirs = (load_host(place)[0].state_dict() for place in (folder, KEPT / "run"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("command", ["inspect", "animate", "convert"])
@pytest.mark.parametrize("name", ["run", "unfinished", "pretrained"])
def test_commands(name, command, tmp_path, monkeypatch):
    import imageio.v3 as imageio
    import numpy as np

    monkeypatch.setenv("MEMCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    place = str(KEPT / name)
    if command == "inspect":
        words = ["inspect", place, "--identities", "2", "--device", "cpu", "--output", "looks"]
    elif command == "animate":
        frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
        imageio.imwrite("face.png", frames[0])
        imageio.imwrite("video.mp4", frames, plugin="pyav", codec="libx264", fps=25)
        words = [
            "animate",
            "--checkpoint",
            place,
            "--source",
            "face.png",
            "--driving",
            "video.mp4",
            "--output",
            "o.mp4",
        ]
        words += ["--no-adapt-scale"]  # two keypoints span no area
    else:
        words = ["convert", place, "--to", "upstream", "--output", "o.pth.tar", "--without-memory"]
    assert cli.main(words) == 0


def test_pretrained_folder():
    assert_gives("pretrained", few(from_pretrained(KEPT / "pretrained")(SOURCE, DRIVING).prediction))


def test_memory_file():
    memory = from_file(KEPT / "memory.safetensors").eval()
    feature, keypoints = numbers(31, 1, memory.channels[0], 4, 4), numbers(17, 1, 2, 2)
    assert_gives("memory", memory(feature, keypoints, scale=0))
    pickled = unpickled("compensation")
    assert_gives("memory", pickled(feature, keypoints, scale=0))
    memcomp.load(pickled, KEPT / "memory.safetensors")


def test_pickled_release_memory():
    memory = unpickled("compensation_release")
    assert isinstance(memory, MemoryCompensation)
    assert_gives("release", memory(numbers(31, 1, 4, 4, 4), numbers(17, 1, 2, 2), scale=0))


def test_pickled_taps():
    assert unpickled("taps") == [
        Tap("decoder"),
        Tap("a.b", where="output", part="second_half", channels=6),
        KeypointTap("", argument="kp", key=None),
    ]


def test_pickled_handles(tmp_path):
    """A handle brings its generator along; the hooks are in place, and come off."""
    for name in ("handle", "handle_skip"):
        handle = unpickled(name)
        assert isinstance(handle, Handle) and Handle.of(handle.root) is handle
        memcomp.save(handle, tmp_path / "memory.safetensors")
        keypoints = Keypoints(numbers(17, 1, 2, 2), torch.eye(2).expand(1, 2, 2, 2))
        with handle.compensation.recording() as record, torch.no_grad():
            handle.root(SOURCE, kp_source=keypoints, kp_driving=keypoints)
        assert record.consistency_loss() > 0
        handle.remove()
        assert Handle.of(handle.root) is None
        handle.root(SOURCE, kp_source=keypoints, kp_driving=keypoints)


def test_pickled_host():
    host = unpickled("host")
    assert_gives("host", few(host(SOURCE, DRIVING).prediction))
    assert host.memory is not None


def test_pickled_networks_of_tpsm():
    parts = unpickled("tpsm")
    source = numbers(31, 1, 3, 64, 64)
    driving, of_source = (Keypoints(numbers(step, 1, 10, 2) - 0.5) for step in (19, 17))
    motion = parts["dense_motion_network"](source, driving, of_source)
    # its thin-plate splines are solved in float32: between versions of torch up to 2e-4 were seen
    assert_gives("tpsm", few(parts["inpainting_network"](source, motion).prediction), atol=1e-3)
