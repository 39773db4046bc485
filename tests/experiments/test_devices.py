"""Which device `auto` means, and that nothing asks for float64 on one that has none.

No Mac is at hand: that there is one is pretended, and its tensors are stood for by a kind that refuses float64.
"""

import os
import subprocess
import sys

import pytest
import torch

from memcomp.adapters.shared import transfer
from memcomp.experiments import cost, processes
from memcomp.experiments.errors import UserError
from memcomp.experiments.inspection import attention_figures, faces, inspect, memory_figures, observe
from memcomp.experiments.metrics import flicker, lpips, pixels
from memcomp.experiments.processes import Processes, resolve_device


def machine(monkeypatch, *, cuda=False, mps=False, autocast=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: autocast)  # of MPS: from torch 2.5 on


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": True}, "cuda"),
        ({"cuda": True, "mps": True}, "cuda"),
        ({"mps": True, "autocast": False}, "cpu"),
    ],
)
def test_auto_takes_the_best_that_there_is(monkeypatch, has, expected):
    machine(monkeypatch, **has)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cpu") == torch.device("cpu")
    assert Processes.start("auto").device == torch.device(expected)


@pytest.mark.parametrize(("has", "device"), [({}, "mps"), ({"mps": True, "autocast": False}, "mps"), ({}, "cuda")])
def test_a_device_that_is_not_there_is_refused(monkeypatch, has, device):
    machine(monkeypatch, **has)
    with pytest.raises(UserError, match=f"device: {device} was asked for, but this machine or this build of torch"):
        resolve_device(device)
    machine(monkeypatch, mps=True, cuda=True)
    assert resolve_device(device).type == device


def test_several_processes_share_no_mac(monkeypatch):
    machine(monkeypatch, mps=True)
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    assert Processes.start("auto").device == torch.device("cpu")


@pytest.mark.parametrize("device", ["mps", "mps:0"])
def test_no_mac_is_one_line(monkeypatch, device, capsys, tmp_path, small_run):
    from memcomp.experiments.cli import main

    machine(monkeypatch)
    words = ["inspect", str(small_run), "--output", str(tmp_path / "out"), "--device", device]
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"device: {device} was asked for, but this machine" in lines[0]
    assert not (tmp_path / "out").exists()


def test_the_command_lets_torch_fall_back_before_it_is_imported():
    code = (
        "import os, sys; from memcomp.experiments.cli import main; main(['recipes']); "
        "print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    )
    early = "import sys; from memcomp.experiments import cli; assert 'torch' not in sys.modules"
    for given, found in ((None, "1"), ("0", "0")):
        plain = {key: value for key, value in os.environ.items() if key != "PYTORCH_ENABLE_MPS_FALLBACK"}
        env = plain | ({} if given is None else {"PYTORCH_ENABLE_MPS_FALLBACK": given})
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == found
    subprocess.run([sys.executable, "-c", early], check=True)


def test_times_wait_for_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    found = cost.milliseconds({"one": lambda: None}, torch.device("mps"), 2)
    assert waited == ["mps"] * 6 and found["one"] >= 0
    assert cost.device_name(torch.device("mps")) == "a Mac's GPU (MPS)"


class Mac(torch.Tensor):
    """A tensor that says it is on a Mac's GPU, and refuses float64 as one there does."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        if function == torch.Tensor.device.__get__:
            return torch.device("mps")
        name, kwargs = function.__name__, kwargs or {}
        if name == "cpu" or (name == "to" and torch.device("cpu") in args[1:]):
            assert torch.float64 not in args, "a cast on the device, before it is copied"
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, kinds, args, kwargs)
        if isinstance(found, Mac) and found.as_subclass(torch.Tensor).dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return found


def on_mac(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).as_subclass(Mac)


def test_the_stand_in_refuses():
    value = on_mac(2, 3)
    assert value.device.type == "mps" and isinstance(value * 2, Mac) and type(value.cpu()) is torch.Tensor
    for wrong in (lambda: value.double(), lambda: value.to(torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            wrong()


NUMBERS = {
    "size of weights": lambda: inspect.size_of(0, on_mac(3, 4))["rms"],
    "by visibility": lambda: inspect.by_visibility({"a": on_mac(8, 8)}, (on_mac(8, 8) > 0.5)),
    "spread": lambda: observe.spread(on_mac(3, 4, 5, 5)),
    "roughness": lambda: observe.roughness(on_mac(4, 5, 5)),
    "patterns": lambda: observe.distinct_patterns(on_mac(4, 5, 5)),
    "varying": lambda: memory_figures.varying_channels(on_mac(4, 5, 5), 2),
    "entropy": lambda: attention_figures._entropy(on_mac(5, 5)),
    "deepest": lambda: faces.deepest(on_mac(24, 24) > 0.5, "hidden"),
    "hidden": lambda: faces.most_hidden(on_mac(24, 24)),
    "pixels": lambda: pixels.as_images(on_mac(3, 8, 8), on_mac(3, 8, 8)),
    "flicker": lambda: flicker.flicker(on_mac(3, 3, 8, 8), on_mac(3, 3, 8, 8)),
    "hull": lambda: transfer.hull_area(on_mac(5, 2)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_computed_without_float64_on_the_device(name):
    NUMBERS[name]()


def test_lpips_sums_on_the_cpu_and_gives_the_same():
    network = lpips.LPIPS("alex", _features())
    pictures = [torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    expected = network(*pictures)
    found = network(*(picture.as_subclass(Mac) for picture in pictures))
    assert type(found) is torch.Tensor and torch.equal(found, expected)


def _features():
    from memcomp.experiments.backends.perceptual import empty_features

    features = empty_features("alex")
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return features
