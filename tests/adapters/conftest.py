"""Weights and pictures by formula, and comparison with stored numbers: the fixture `golden` gives what is defined here.

A file of golden tests can also be run as a script, to store the numbers anew: then it imports `GOLDEN` from here.
"""

import contextlib
import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

DATA = Path(__file__).parents[1] / "data"
SAMPLES = 400  # stored numbers per stage
# end of a key → factor on its weights: heads whose outputs would be too large, or too small to matter
GAINS = {
    **{"jacobian.weight": 0.4, "final.weight": 0.2, "conv_img.weight": 0.3, "kp.weight": 0.35, "mask.weight": 0.7},
    **{"maps.weight": 0.7, "fg_encoder.fc.weight": 0.05, "bg_encoder.fc.weight": 0.02, "attention.fc2.weight": 150},
    **{"query_conv.weight": 0.7, "AttnModule.query_conv.weight": 4, "AttnModule.key_conv.weight": 2},
    **{"decoder.10.conv.weight": 0.05, "decoder.11.conv.weight": 0.02},
    **{"decoder.12.conv.weight": 0.015, "decoder.13.conv.weight": 0.01},
}
# end of a key → what the biases there are around
CENTRES = {"jacobian.bias": [1, 0, 0, 1], "bg_encoder.fc.bias": [1, 0, 0, 0, 1, 0]}


def uniform(seed, name, count):
    """`count` numbers in [0, 1) that depend on seed and name alone (splitmix64)."""
    start = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "<u8")
    z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / 2**24


def entry(key, shape, u):
    """The weights of one state-dict entry, made of as many numbers in [0, 1)."""
    u = u.reshape(shape)
    s, last = 2 * u - 1, key.rsplit(".", 1)[-1]
    simple = {"num_batches_tracked": 100 + 0 * u, "running_mean": 0.2 * s, "running_var": 0.5 + u}
    simple |= {"mb": s, "gamma": 0.5 + 0 * u}  # of the published memory, and of attention
    if last in simple:
        return simple[last]
    if key.endswith("styleconv.weight"):
        return 0.15 + 0.1 * u
    if key.endswith("modulation.bias"):
        return 1 + 0.2 * s
    if last == "bias":
        centre = next((centre for end, centre in CENTRES.items() if key.endswith(end)), [0])
        return 0.1 * s + np.tile(centre, s.size // len(centre)).reshape(shape)
    if len(shape) == 1:
        return 0.5 + u
    gain = np.prod([value for end, value in GAINS.items() if key.endswith(end)])
    if len(shape) == 5 and shape[0] == 1:
        return s * gain * np.sqrt(3)
    return s * gain * np.sqrt(6 / np.prod(shape[2:] if len(shape) == 5 else shape[1:]))


def fill(section, network, seed):
    """Weights that make every part of the network matter: running statistics, affines and biases are not trivial."""
    state = network.state_dict()
    for key, old in state.items():
        if not key.endswith("down.weight"):  # a fixed kernel
            new = entry(key, tuple(old.shape), uniform(seed, f"{section}/{key}", old.numel()))
            state[key] = torch.from_numpy(np.asarray(new)).to(old.dtype)
    for key in [key for key in state if key.endswith("weight_u")]:  # singular vectors that fit the weight
        weight = state[key.removesuffix("_u") + "_orig"].double().flatten(1)
        left = torch.linalg.eigh(weight @ weight.T).eigenvectors[:, -1]
        right = torch.nn.functional.normalize(weight.T @ left, dim=0)
        state[key], state[key.removesuffix("_u") + "_v"] = left.float(), right.float()
    network.load_state_dict(state)


def entry_by_rules(key, shape, u, rules):
    """The weights of one state-dict entry by rules that a file of numbers brings along."""

    def first(name, default):
        return next((value for end, value in rules[name] if key.endswith(end)), default)

    u = u.reshape(shape)
    s, last = 2 * u - 1, key.rsplit(".", 1)[-1]
    simple = {"num_batches_tracked": 100 + 0 * u, "running_mean": 0.2 * s, "running_var": 0.5 + u}
    if last in simple:
        return simple[last]
    if last == "bias":
        offset = np.atleast_1d(first("bias_offset", 0))
        return 0.1 * s + np.tile(offset, s.size // len(offset)).reshape(shape)
    return 0.5 + u if len(shape) == 1 else s * first("gain", 1) * np.sqrt(6 / np.prod(shape[1:]))


def fill_by_rules(section, network, seed, rules):
    """As `fill`, by the file's own rules."""
    state = network.state_dict()
    for key, old in state.items():
        if not key.endswith(tuple(rules["keep"])):
            new = entry_by_rules(key, tuple(old.shape), uniform(seed, f"{section}/{key}", old.numel()), rules)
            state[key] = torch.from_numpy(np.asarray(new)).to(old.dtype)
    for key in [key for key in state if key.endswith("weight_u")]:  # three steps of the power iteration
        weight = state[key.removesuffix("_u") + "_orig"].double().flatten(1)
        start = 2 * torch.from_numpy(uniform(seed, f"{section}/{key}", len(weight))) - 1
        left = torch.nn.functional.normalize(start, dim=0)
        for _ in range(3):
            right = torch.nn.functional.normalize(weight.T @ left, dim=0)
            left = torch.nn.functional.normalize(weight @ right, dim=0)
        state[key], state[key.removesuffix("_u") + "_v"] = left.float(), right.float()
    network.load_state_dict(state)


def picture(seed, name, batch, height, width):
    """A smooth coloured picture in steps of 1/255, (batch, 3, height, width)."""
    y, x = np.mgrid[0:height, 0:width] / 64.0
    waves = uniform(seed, name, batch * 3 * 4 * 3).reshape(batch, 3, 4, 3, 1, 1)
    total = np.sin(9 * (waves[:, :, :, 0] * x + waves[:, :, :, 1] * y) + 6.3 * waves[:, :, :, 2]).sum(2)
    return torch.from_numpy(np.round(127.5 + 31 * total)).float() / 255


def transform(seed, batch):
    """Affine and control parameters of a random warp, (batch, 2, 3) and (batch, 25)."""
    theta = torch.eye(2, 3) + 0.1 * torch.from_numpy(2 * uniform(seed, "theta", batch * 6) - 1).view(-1, 2, 3)
    return theta, 0.01 * torch.from_numpy(2 * uniform(seed, "tps", batch * 25) - 1).view(-1, 25)


def sample(tensor):
    """About SAMPLES of a tensor's numbers, in even steps."""
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)].clone()


def shapes(sections):
    """Section, key and shape of every entry of the state dicts, in their order."""
    return [(s, key, value.shape) for s, network in sections.items() for key, value in network.state_dict().items()]


def norms(sections):
    """Name of each parameter that got a gradient → norm of the gradient, in the units of the section's largest."""
    found = {}
    for section, network in sections.items():
        parameters = network.named_parameters()
        grads = {f"{section}.{k}": float(p.grad.norm()) for k, p in parameters if p.grad is not None}
        if grads:
            largest = max(grads.values())
            found |= {key: value / largest for key, value in grads.items()} | {section: largest}
    return found


def assert_close(measured, expected, deviations, factor, floor):
    """Every stage within factor · (upstream's own float32 error), at least `floor`."""
    assert measured.keys() == expected.keys()
    for stage, value in expected.items():
        error = (measured[stage].double() - value.double()).abs().max().item()
        limit = max(factor * deviations[stage], floor)
        assert error <= limit, f"{stage}: {error:.2e} > {limit:.2e}"


def assert_losses(measured, expected):
    """Two pairs (loss values, gradient norms as of `norms`), computed in float64, are the same."""
    for key, value in expected[0].items():
        assert measured[0][key] == pytest.approx(value, rel=1e-9), key
    assert measured[1].keys() == expected[1].keys()
    for key, value in expected[1].items():  # some are zero but for rounding, as of a bias before an instance norm
        assert measured[1][key] == pytest.approx(value, rel=1e-8, abs=1e-12), key


def stored(host, name):
    """The samples of tests/data that one of a host's files gave, and what is told of them."""
    about = json.loads((DATA / f"{host}_golden.json").read_text())[name]
    numbers = load_file(DATA / f"{host}_golden.safetensors")
    return {key.removeprefix(f"{name}/"): v for key, v in numbers.items() if key.startswith(f"{name}/")}, about


def whole(file):
    """All numbers of a file of the reference, and what is told of them."""
    folder = Path(os.environ["MEMCOMP_REFERENCE"])
    return load_file(folder / f"{file}.safetensors"), json.loads((folder / f"{file}.json").read_text())


def stages_of(tensors, shown, left_out=()):
    """Name → input, or every so many-th number of a stage that a file holds, at least `shown`."""
    for key, value in tensors.items():
        if key.startswith("in."):
            yield key, value
            continue
        stage, _, step = key.partition("@k")
        if stage.startswith("out.") and not stage.endswith(left_out):
            every = max(1, value.numel() // shown)
            yield f"{stage}@k{every * int(step or 1)}", value.reshape(-1)[::every].clone()


def limits_of(tensors, about, left_out=()):
    """Stage → what is told of it that `errors` asks for."""
    stages = dict.fromkeys(key.removeprefix("out.").partition("@k")[0] for key in tensors if key.startswith("out."))
    kept = ("suggested_atol", "float64_deviation")
    return {s: {k: about["stages"][s][k] for k in kept} for s in stages if not s.endswith(left_out)}


def errors(found, numbers, dtype, about, left_out=()):
    """Stage → (largest difference, what is allowed) for the stages of a file; all numbers of a tensor, or some."""
    compared = {}
    for name, value in numbers.items():
        stage, _, step = name.removeprefix("out.").partition("@k")
        if not name.startswith("out.") or stage.endswith(left_out):
            continue
        told, ours = about["stages"][stage], found[stage].reshape(-1)[:: int(step or 1)]
        allowed = told["suggested_atol"] if dtype == torch.float32 else 3 * told["float64_deviation"]
        compared[stage] = ((ours.double() - value.reshape(-1).double()).abs().max().item(), allowed)
    return compared


def assert_within(compared):
    """Every stage of `errors` is within what is allowed."""
    wrong = {stage: pair for stage, pair in compared.items() if not pair[0] <= pair[1]}
    assert not wrong, wrong


@contextlib.contextmanager
def upstream(folder, *names):
    """Modules `names` of the upstream checkout `folder`, such as "modules.util" → .util, importable in this block."""
    before = set(sys.modules)
    place = Path(os.environ["MEMCOMP_UPSTREAM"]) / folder
    sys.path.insert(0, str(place))
    try:
        yield SimpleNamespace(**{name.rsplit(".", 1)[-1]: importlib.import_module(name) for name in names})
    finally:
        sys.path.pop(0)
        for name in set(sys.modules) - before:  # all that came from there: other upstreams use the same names
            paths = [getattr(sys.modules[name], "__file__", None), *getattr(sys.modules[name], "__path__", [])]
            if any(path and Path(path).is_relative_to(place) for path in paths):
                del sys.modules[name]


GOLDEN = SimpleNamespace(
    **{"DATA": DATA, "uniform": uniform, "fill": fill, "picture": picture, "transform": transform, "sample": sample},
    **{"shapes": shapes, "norms": norms, "assert_close": assert_close, "assert_losses": assert_losses},
    upstream=upstream,
    **{"fill_by_rules": fill_by_rules, "stored": stored, "whole": whole, "stages_of": stages_of},
    **{"limits_of": limits_of, "errors": errors, "assert_within": assert_within},
)


@pytest.fixture(scope="session")
def golden():
    return GOLDEN
