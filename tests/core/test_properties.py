"""Any batch, size, keypoint count, memory, channels: shapes, kept channels and the plain equations hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memcomp import CompensationConfig, MemoryCompensation, reference

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    size=sizes,
    channels=st.lists(st.integers(1, 6).map(lambda c: 2 * c), min_size=1, max_size=3),
    keypoints=st.integers(1, 12),
    memory=sizes,
    memory_channels=st.integers(1, 9),
    kernels=st.integers(1, 5),
    sharing=st.sampled_from(["memory", "networks"]),
)
def test_paper_equals_the_plain_equations(
    batch: int,
    size: tuple[int, int],
    channels: list[int],
    keypoints: int,
    memory: tuple[int, int],
    memory_channels: int,
    kernels: int,
    sharing: str,
) -> None:
    torch.manual_seed(0)
    config = CompensationConfig.paper(
        memory_channels=memory_channels, memory_size=memory, kernels=kernels, sharing=sharing, identity_hidden=4
    )
    unit = MemoryCompensation(channels, keypoints, config).double()
    points = torch.rand(batch, keypoints, 2).double() * 2 - 1
    for scale, width in enumerate(channels):
        feature = torch.randn(batch, width, *size).double()
        ours, plain = unit.compensate(feature, points, scale), reference.compensate(unit, feature, points, scale)
        for name in ("feature", "value", "target"):
            torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=0, atol=1e-9)
        torch.testing.assert_close(unit(feature, points, scale=scale), plain.feature, rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    size=sizes.filter(lambda s: s[0] * s[1] > 1),  # an instance norm needs two pixels
    width=st.integers(1, 7),
    keypoints=st.integers(1, 12),
    memory=sizes,
    split=st.sampled_from(["half", "interleaved", "none"]),
    conditioned=st.booleans(),
    start=st.sampled_from(["paper", "identity"]),
    preset=st.sampled_from(["paper", "release"]),
)
def test_every_combination_of_fields_works(
    batch: int,
    size: tuple[int, int],
    width: int,
    keypoints: int,
    memory: tuple[int, int],
    split: str,
    conditioned: bool,
    start: str,
    preset: str,
) -> None:
    torch.manual_seed(0)
    config = getattr(CompensationConfig, preset)(
        memory_channels=5, memory_size=memory, split=split, identity_conditioning=conditioned, start=start
    )
    width = width if split == "none" else 2 * width
    unit = MemoryCompensation([width], keypoints, config)
    feature, points = torch.randn(batch, width, *size, requires_grad=True), torch.rand(1, keypoints, 2) * 2 - 1
    with unit.recording() as record:
        out = unit(feature, points, scale=0)
    assert out.shape == feature.shape and torch.isfinite(out).all()
    kept = {"half": slice(0, width // 2), "interleaved": slice(0, None, 2), "none": slice(0, 0)}[split]
    assert torch.equal(out[:, kept], feature[:, kept])
    if start == "identity":
        assert torch.equal(out, feature)
    (out.square().sum() + record.consistency_loss()).backward()
    for parameter in (*unit.parameters(), feature):
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_gradcheck_of_the_whole(preset: str) -> None:
    torch.manual_seed(3)
    config = getattr(CompensationConfig, preset)(
        memory_channels=3, memory_size=(2, 3), identity_hidden=3, identity_code=4, start="identity"
    )
    unit = MemoryCompensation([4], 2, config).double()
    with torch.no_grad():
        unit.scales[0].gate.fill_(0.7)
        unit.memory.value.normal_()
    names, weights = zip(*unit.named_parameters(), strict=True)

    def function(feature: torch.Tensor, points: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def call(module: MemoryCompensation) -> tuple[torch.Tensor, torch.Tensor]:
            output = module.compensate(feature, points, 0)
            return output.feature, output.value

        return _with_weights(unit, dict(zip(names, values, strict=True)), call)

    feature = torch.randn(2, 4, 3, 2).double().requires_grad_()
    points = (torch.rand(2, 2, 2).double() * 2 - 1).requires_grad_()
    assert torch.autograd.gradcheck(function, (feature, points, *weights), fast_mode=True)


def _with_weights(unit: MemoryCompensation, weights: dict[str, torch.Tensor], call) -> tuple[torch.Tensor, ...]:
    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = unit

        def forward(self) -> tuple[torch.Tensor, ...]:
            return call(self.unit)

    return torch.func.functional_call(Call(), {f"unit.{name}": value for name, value in weights.items()}, ())
