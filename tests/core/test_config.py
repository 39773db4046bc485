"""The configuration is data: typed, strict, and survives JSON."""

import dataclasses
import json

import pytest

from memcomp import CompensationConfig


def test_presets() -> None:
    paper, release = CompensationConfig.paper(), CompensationConfig.release()
    assert paper == CompensationConfig()
    assert (paper.memory_channels, paper.memory_size, paper.attention_scale, paper.split) == (
        512,
        (32, 32),
        1.0,
        "half",
    )
    assert (release.attention_scale, release.split, release.sharing) == (0.25, "interleaved", "networks")
    assert CompensationConfig.release(sharing="memory").sharing == "memory"


@pytest.mark.parametrize("preset", [CompensationConfig.paper, CompensationConfig.release])
def test_json_round_trip(preset) -> None:
    config = preset(memory_size=(3, 5), kernel_hidden=9)
    assert CompensationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(preset(memory_size=[3, 5], kernel_hidden=9))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompensationConfig.paper().start = "identity"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", "papers"),
        ("split", "halves"),
        ("split", None),
        ("start", "zero"),
        ("sharing", "all"),
        ("memory_init", 1),
        ("memory_channels", 0),
        ("memory_channels", 2.5),
        ("memory_channels", True),
        ("memory_size", 32),
        ("memory_size", (32,)),
        ("memory_size", (32, 0)),
        ("kernels", -1),
        ("temperature", 0),
        ("temperature", float("nan")),
        ("attention_scale", float("inf")),
        ("attention_scale", "1"),
        ("identity_hidden", None),
        ("kernel_hidden", 0),
        ("consistency", 1),
        ("identity_conditioning", "no"),
        ("noise", True),
    ],
)
def test_a_wrong_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        CompensationConfig.paper(**{field: value})


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown field 'memory_chanels'.*'memory_channels'"):
        CompensationConfig.paper(memory_chanels=3)
    with pytest.raises(ValueError, match=r"unknown field 'temprature'.*'temperature'"):
        CompensationConfig.from_dict({"temprature": 3})
