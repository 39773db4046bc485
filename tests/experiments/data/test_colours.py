"""Colour jitter of a whole batch against the straightforward way: torchvision's, on the uint8 pictures of one pair."""

import pytest
import torch
from skimage.data import astronaut
from torchvision.transforms import functional

from memcomp.experiments.data import augment
from memcomp.experiments.data.augment import JITTER, coloured, draw_colours, flipped
from memcomp.experiments.data.batching import collate, on_device
from memcomp.experiments.data.pairs import PairSet, seeded
from memcomp.experiments.recipe.sections import AugmentSection

PUBLISHED = AugmentSection(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)
STRONG = AugmentSection(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)


def naive(pair, settings, generator):
    """Version 0.1.0's way, drawn and applied in one: uint8 (2, 3, H, W) → float in [0, 1]."""
    uniform = lambda: torch.rand((), generator=generator).item()  # noqa: E731
    if uniform() < settings.time_flip:
        pair = pair.flip(0)
    elif uniform() < settings.mirror:
        pair = pair.flip(-1)
    for operation in torch.randperm(4, generator=generator).tolist():
        name = JITTER[operation]
        factor = getattr(settings, name) * (2 * uniform() - 1)
        if getattr(settings, name):
            change = getattr(functional, f"adjust_{name}")
            pair = change(pair, factor if name == "hue" else max(0.0, 1 + factor))
    return pair.float().div(255)


@pytest.fixture(scope="module")
def pairs():
    """A face, its surroundings, noise, greys with a cast of one, and flat colours: (N, 2, 3, 64, 64) uint8."""
    picture = torch.from_numpy(astronaut()).permute(2, 0, 1)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, 64, 64), generator=draw)
    greys = torch.arange(64 * 64).view(64, 64) % 256 + torch.randint(-1, 2, (2, 3, 64, 64), generator=draw)
    flat = torch.tensor([0, 255, 1, 128, 255, 0]).view(2, 3, 1, 1).expand(2, 3, 64, 64)
    photographs = [torch.stack([picture[:, y : y + 64, x : x + 64], picture[:, 90:154, 190:254]]) for y, x in
                   ((60, 180), (300, 60), (0, 400), (440, 300))]  # fmt: skip
    return torch.stack([*photographs, noise, greys.clamp(0, 255), flat]).to(torch.uint8)


def both(pairs, settings, repeats):
    """Pictures in [0, 1] by the naive way and by ours, ours of all pairs in one batch, (N, 2, 3, H, W)."""
    expected, given = [], []
    for number, pair in enumerate(pairs.repeat(repeats, 1, 1, 1, 1)):
        expected.append(naive(pair, settings, seeded(1, "test", number)))
        draw = seeded(1, "test", number)
        source, driving = flipped(pair, settings, draw)
        told = {"colours": draw_colours(settings, draw), "skipped": [], "converted": ""}
        given.append({"source": source, "driving": driving, **told})
    return torch.stack(expected), torch.stack(on_device(collate(given), torch.device("cpu")), 1)


def test_nearly_every_value_is_that_of_torchvision_and_none_is_far(pairs):
    expected, found = both(pairs, PUBLISHED, 20)
    apart = ((found - expected) * 255).abs().round()
    assert (apart > 0).float().mean() < 1e-3
    assert (apart <= 1).float().mean() >= 0.999 and apart.max() <= 4
    assert ((found * 255) == (found * 255).round()).float().mean() > 0.99  # rounded after each operation


def test_strong_colours_and_each_alone(pairs):
    expected, found = both(pairs, STRONG, 20)
    apart = (found - expected).abs() * 255
    assert (apart <= 1.01).float().mean() >= 0.999
    for name in JITTER:
        expected, found = both(pairs, AugmentSection(**{name: 0.3}), 3)
        assert (expected - found).abs().max() <= 1.01 / 255 and (expected - found).abs().mean() < 1e-6
        if name != "hue":
            assert torch.equal(expected, found)


def test_a_batch_is_what_its_pictures_are_alone_whatever_the_device_takes_at_once(pairs, monkeypatch):
    drawn = [draw_colours(STRONG, seeded(2, "test", i)) for i in range(len(pairs))]
    drawn[2] = drawn[2][:2]  # fewer operations than the others
    drawn[3] = ()
    alone = torch.cat([coloured(pair[:1], [one]) for pair, one in zip(pairs, drawn, strict=True)])
    assert torch.equal(coloured(pairs[:, 0], drawn), alone)
    assert torch.equal(alone[3], pairs[3, 0].float())
    monkeypatch.setattr(augment, "_taken_together", lambda pictures: [list(range(len(pictures)))])  # as on a GPU
    assert torch.equal(coloured(pairs[:, 0], drawn), alone)


def test_hue_shifts_are_turns():
    red = torch.tensor([200, 40, 40], dtype=torch.uint8).view(1, 3, 1, 1)
    for turn, expected in ((1 / 3, (40, 200, 40)), (-1 / 3, (40, 40, 200)), (0.5, (40, 200, 200)), (0, (200, 40, 40))):
        assert coloured(red, [(("hue", turn),)]).flatten().tolist() == pytest.approx(expected, abs=1)


def test_bytes_leave_the_loader():
    class Clips:
        people = ([0],)
        notes = staticmethod(lambda clip: "")
        count = staticmethod(lambda clip: 5)
        read = staticmethod(lambda clip, frames: torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))

    batch = collate([PairSet(Clips(), 0, augment=AugmentSection(brightness=0.5))[i] for i in range(3)])
    assert batch["source"].dtype == batch["driving"].dtype == torch.uint8
    source, driving = on_device(batch, torch.device("cpu"))
    assert torch.equal(source, driving) and source.dtype == torch.float32
    for picture, ((name, factor),) in zip(source, batch["colours"], strict=True):
        assert name == "brightness" and torch.equal(picture, torch.full((3, 4, 4), int(51 * factor)).float().div(255))
    assert torch.equal(on_device({"source": source, "driving": driving}, torch.device("cpu"))[0], source)
