"""The read that knows place, pose and visibility: what it must give, where it starts, and what it needs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memcomp import CompensationConfig, KeypointTap, MemoryCompensation, Tap, VisibilityTap, inject, load, save
from memcomp.layers import of_length_one
from memcomp.reference import compensate

SMALL = {"memory_channels": 8, "memory_size": (3, 5), "identity_hidden": 6}
FIELDS = {
    "place": {"place": True},
    "driving": {"driving": True},
    "visibility": {"visibility": True},
    "context": {"context": (3, 1)},
    "normalised": {"normalised": True},
    "residual": {"start": "residual", "split": "none"},
}


def make(**fields: object) -> MemoryCompensation:
    """A unit whose every parameter matters."""
    torch.manual_seed(0)
    unit = MemoryCompensation([6, 4], 3, CompensationConfig.paper(**SMALL, **fields)).double()
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return unit


def inputs(config: CompensationConfig, channels: int = 6, size: tuple[int, int] = (7, 6)) -> dict[str, Tensor]:
    torch.manual_seed(1)
    given = {"feature": torch.randn(2, channels, *size), "keypoints": torch.rand(2, 3, 2) * 2 - 1}
    if config.driving:
        given["driving"] = torch.rand(2, 3, 2) * 2 - 1
    if config.visibility:
        given["visibility"] = torch.rand(2, 1, *size)
    return {name: value.double() for name, value in given.items()}


@pytest.mark.parametrize("names", [[name] for name in FIELDS] + [list(FIELDS), ["visibility", "context"]])
def test_equal_to_the_reference(names: list[str]) -> None:
    unit = make(**{key: value for name in names for key, value in FIELDS[name].items()})
    given = inputs(unit.config)
    ours, theirs = unit.compensate(**given, scale=0), compensate(unit, **given, scale=0)
    torch.testing.assert_close(ours.feature, theirs.feature, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.value, theirs.value, rtol=0, atol=1e-10)
    used = {n: p for n, p in unit.named_parameters() if not n.startswith(("iicm.1", "mcm.1", "scales.1"))}
    mine, others = (torch.autograd.grad(out.feature.square().sum(), list(used.values())) for out in (ours, theirs))
    for name, one, other in zip(used, mine, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=name)


def test_the_preset_starts_as_nothing_and_learns_at_once() -> None:
    torch.manual_seed(0)
    unit = MemoryCompensation([6], 3, CompensationConfig.placed(**SMALL))
    given = {name: value.float() for name, value in inputs(unit.config).items()}
    output = unit(**given, scale=0)
    assert torch.equal(output, given["feature"])
    output.square().sum().backward()
    assert unit.scales[0].output.weight.grad.abs().max() > 0


def test_any_size_and_a_visibility_of_any_size() -> None:
    unit = make(**FIELDS["place"], **FIELDS["visibility"], context=(16, 4, 1))
    for size in ((1, 1), (5, 9), (16, 2)):
        given = inputs(unit.config, size=size)
        given["visibility"] = torch.rand(1, 1, 3, 3).double()
        assert unit(**given, scale=0).shape == (2, 6, *size)


def test_near_places_look_at_near_tokens_from_the_start() -> None:
    """With the place term alone deciding, each quarter of the picture looks at its own quarter of the memory."""
    torch.manual_seed(0)
    unit = MemoryCompensation([6], 3, CompensationConfig.paper(memory_channels=8, memory_size=(8, 8), place=True))
    place = unit.mcm[0].place
    near = place["query"](16, 16)[0].flatten(1).t() @ place["key"](8, 8)[0].flatten(1)  # (256, 64)
    best = near.argmax(1)
    rows, columns = torch.arange(256) // 16, torch.arange(256) % 16
    assert ((best // 8 - rows // 2).abs() <= 1).float().mean() > 0.9
    assert ((best % 8 - columns // 2).abs() <= 1).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keys_of_length_one(dtype: torch.dtype) -> None:
    keys = 100 * torch.randn(2, 512, 7, generator=torch.Generator().manual_seed(0)).to(dtype)  # its square: no half
    keys[:, :, 0] = 0
    ours = of_length_one(keys.requires_grad_(), dim=1)
    assert ours.dtype == dtype and torch.equal(ours[:, :, 0], torch.zeros_like(ours[:, :, 0]))
    torch.testing.assert_close(
        ours.double(), F.normalize(keys.double(), dim=1), rtol=10 * torch.finfo(dtype).eps, atol=0
    )
    ours.sum().backward()
    assert keys.grad.abs().max() < 1.1e12 and keys.grad.isfinite().all()  # at zeros as torch's


def test_a_coarser_grid_of_queries_is_a_choice_of_the_run(tmp_path) -> None:
    """It loads the same weights, gives a feature of the same size, and asks the memory less often."""
    fine, coarse = (MemoryCompensation([6], 3, CompensationConfig.placed(**SMALL, queries=side)) for side in (None, 4))
    with torch.no_grad():
        fine.scales[0].output.weight.normal_()
    save(fine, tmp_path / "memory.safetensors")
    load(coarse, tmp_path / "memory.safetensors")
    given = {name: value.float() for name, value in inputs(fine.config, size=(12, 8)).items()}
    one, other = fine(**given, scale=0), coarse(**given, scale=0)
    assert one.shape == other.shape and not torch.equal(one, other)
    small = {name: value[..., :4, :3] if value.ndim == 4 else value for name, value in given.items()}
    assert torch.equal(fine(**small, scale=0), coarse(**small, scale=0))


@pytest.mark.parametrize("name", ["driving", "visibility"])
def test_what_is_missing_is_named(name: str) -> None:
    unit = make(**FIELDS[name])
    given = inputs(unit.config)
    del given[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        unit(**given, scale=0)
    plain = make()
    with pytest.raises(ValueError, match=f"{name} is not used"):
        plain(**inputs(plain.config), scale=0, **{name: torch.ones(2, 3, 2).double()})


@pytest.mark.parametrize(
    "wrong", [{"driving": True, "identity_conditioning": False}, {"context": (0,)}, {"queries": 0}]
)
def test_wrong_configs(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        CompensationConfig.paper(**wrong)
    with pytest.raises(ValueError, match="need variant 'paper'"):
        CompensationConfig.release(place=True)


def test_compiles() -> None:
    torch._dynamo.reset()
    unit = make(**{key: value for fields in FIELDS.values() for key, value in fields.items()}).float()
    given = {name: value.float() for name, value in inputs(unit.config).items()}
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given, scale=0), unit(**given, scale=0), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


class Motion(nn.Module):
    def forward(self, image, kp_driving, kp_source):
        visible = (kp_driving["value"] - kp_source["value"]).abs().mean((1, 2))[:, None, None, None]
        return {"occlusion_map": visible.expand(-1, 1, 4, 4).sigmoid()}


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.motion, self.encoder, self.decoder = Motion(), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, image, kp_driving, kp_source):
        motion = self.motion(image, kp_driving=kp_driving, kp_source=kp_source)
        return self.decoder(nn.functional.interpolate(motion["occlusion_map"], image.shape[2:]) * self.encoder(image))


def test_driving_keypoints_and_visibility_are_read_off_a_generator() -> None:
    torch.manual_seed(0)
    generator = Generator()
    image, source, driving = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 2), torch.rand(2, 3, 2)
    call = {"image": image, "kp_driving": {"value": driving}, "kp_source": {"value": source}}
    plain = generator(**call)
    unit = MemoryCompensation([6], 3, CompensationConfig.placed(**SMALL))
    with pytest.raises(ValueError, match="visibility=True: say inject"):
        inject(generator, unit, [Tap("decoder")], KeypointTap("motion"))
    with pytest.raises(ValueError, match="driving=True: say KeypointTap"):
        inject(
            generator, unit, [Tap("decoder")], KeypointTap("motion", driving=None), visibility=VisibilityTap("motion")
        )
    handle = inject(generator, unit, [Tap("decoder")], KeypointTap("motion"), visibility=VisibilityTap("motion"))
    assert torch.equal(generator(**call), plain)
    seen: dict[str, Tensor] = {}
    unit.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with handle.compensation.recording() as record:
        generator(**call)
    assert torch.equal(seen["driving"], driving) and seen["visibility"].shape == (2, 1, 4, 4)
    assert record.consistency_loss() > 0
    handle.remove()
    assert torch.equal(generator(**call), plain)


@pytest.mark.parametrize("more", [{}, {"context": (3, 1)}, {"queries": 4}])
@torch.no_grad()
def test_the_preset_exports_with_any_batch_and_size(more: dict[str, object]) -> None:
    torch.manual_seed(0)
    unit = MemoryCompensation([6], 3, CompensationConfig.placed(**SMALL, **more)).eval()
    for parameter in unit.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    given = {name: tensor.float() for name, tensor in inputs(unit.config).items()}
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "h", "w"))
    points, maps = {0: batch}, {0: batch, 2: height, 3: width}
    shapes = {name: maps if tensor.ndim == 4 else points for name, tensor in given.items()} | {"scale": None}
    program = torch.export.export(unit, (), given | {"scale": 0}, dynamic_shapes=shapes)
    other = {name: torch.cat([tensor, tensor[:1] * 0.5]) for name, tensor in given.items()}
    other |= {name: F.pad(tensor, (1, 2, 3, 1)) for name, tensor in other.items() if tensor.ndim == 4}
    torch.testing.assert_close(program.module()(**other, scale=0), unit(**other, scale=0), rtol=1e-4, atol=1e-5)
