"""Saving and loading the compensation alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import memcomp
from memcomp import CompensationConfig, MemoryCompensation, load, save
from memcomp.checkpoint import from_file

SMALL = {"memory_channels": 6, "memory_size": (3, 4)}


def make(
    seed: int, config: CompensationConfig | None = None, channels: tuple = (8, 4), k: int = 3
) -> MemoryCompensation:
    torch.manual_seed(seed)
    return MemoryCompensation(channels, k, config or CompensationConfig.paper(**SMALL))


@pytest.mark.parametrize(
    "config",
    [
        CompensationConfig.paper(**SMALL, start="identity"),
        CompensationConfig.paper(**SMALL, sharing="networks", identity_conditioning=False, split="none"),
        CompensationConfig.release(**SMALL),
    ],
)
def test_round_trip(tmp_path: Path, config: CompensationConfig) -> None:
    one, other = make(0, config), make(1, config)
    save(SimpleNamespace(compensation=one), tmp_path / "memory.safetensors")  # a handle is what has .compensation
    load(SimpleNamespace(compensation=other), tmp_path / "memory.safetensors")
    built = from_file(tmp_path / "memory.safetensors")
    assert (built.config, built.channels, built.keypoints) == (one.config, one.channels, one.keypoints)
    for copy in (other, built):
        assert copy.state_dict().keys() == one.state_dict().keys()
        for key, value in one.state_dict().items():
            assert torch.equal(copy.state_dict()[key], value), key
    assert [path.name for path in tmp_path.iterdir()] == ["memory.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_new_compensation_has_the_dtype_of_its_file(tmp_path: Path, dtype: torch.dtype) -> None:
    one = make(0).to(dtype)
    save(one, tmp_path / "m")
    built = from_file(tmp_path / "m")
    for key, value in one.state_dict().items():
        assert built.state_dict()[key].dtype == value.dtype and torch.equal(built.state_dict()[key], value), key
    target = make(1)
    load(target, tmp_path / "m")  # a host's memory keeps the dtype of its host
    assert {value.dtype for value in target.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"config": CompensationConfig.paper(**SMALL | {"memory_channels": 7})}, "memory_channels: file 6, here 7"),
        ({"config": CompensationConfig.paper(**SMALL, start="identity")}, "start: file 'paper', here 'identity'"),
        ({"channels": (8, 6)}, r"channels: file \[8, 4\], here \[8, 6\]"),
        ({"k": 5}, "keypoints: file 3, here 5"),
    ],
)
def test_error_names_the_field_that_differs(tmp_path: Path, other: dict, named: str) -> None:
    save(make(0), tmp_path / "m")
    target = make(1, **other)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        load(target, tmp_path / "m")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save(make(0), path)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match="sha256"):
        load(make(1), path)
    path.write_bytes(good.replace(b'temperature\\": 34.0', b'temperature\\": 35.0'))
    with pytest.raises(ValueError, match="sha256"):
        from_file(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load(make(1), path)
    with pytest.raises(FileNotFoundError, match="no-such"):
        load(make(1), tmp_path / "no-such")


def test_non_finite_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = make(0)
    with torch.no_grad():
        bad.memory.value[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"non-finite weights: memory\.value"):
        save(bad, tmp_path / "m")
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("memcomp.checkpoint.refuse_non_finite", lambda *_: None)
        save(bad, tmp_path / "bad")
    with pytest.raises(ValueError, match=r"bad has non-finite weights: memory\.value"):
        load(make(1), tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        save(make(0), tmp_path / "missing" / "m")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "m")
    with pytest.raises(ValueError, match=r"not written by memcomp\.save"):
        from_file(tmp_path / "m")


def test_what_has_no_compensation_is_named(tmp_path: Path) -> None:
    for call in (save, load):
        with pytest.raises(TypeError, match="handle of an attached one, not Linear"):
            call(torch.nn.Linear(1, 1), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_field_that_a_file_lacks_means_its_default(tmp_path):
    """Files of versions that knew fewer fields load; those that differ from the default are refused."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from memcomp.checkpoint import digest, from_file

    unit = MemoryCompensation([8], 3, CompensationConfig.paper(memory_channels=6, memory_size=(3, 4)))
    path = tmp_path / "memory.safetensors"
    memcomp.save(unit, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    for name in ("noise", "place", "context", "keypoint_dims"):
        del settings[name]
    save_file(tensors, path, metadata | {"settings": json.dumps(settings), "sha256": digest(settings, tensors)})
    memcomp.load(unit, path)
    assert from_file(path).settings() == unit.settings()
    other = MemoryCompensation([8], 3, CompensationConfig.paper(memory_channels=6, memory_size=(3, 4), place=True))
    with pytest.raises(ValueError, match="place: file False, here True"):
        memcomp.load(other, path)
    solid = MemoryCompensation([8], 3, unit.config, keypoint_dims=3)
    with pytest.raises(ValueError, match="keypoint_dims: file 2, here 3"):
        memcomp.load(solid, path)
    memcomp.save(solid, path)
    assert from_file(path).settings() == solid.settings() and solid.settings()["keypoint_dims"] == 3
