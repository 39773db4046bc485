"""The shipped regressor of procedural heads: its error on unseen heads, what it refuses, how it was trained."""

import json
import shutil

import numpy as np
import pytest
import torch

from memcomp.experiments.backends.base import Unavailable
from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.backends.heads import train as train_heads
from memcomp.experiments.backends.heads.measure import a_pose_of_each_bin, errors, eye_distance, true_landmarks
from memcomp.experiments.backends.heads.reader import NAME, HeadsReader
from memcomp.experiments.backends.heads.samples import MIRRORED, blurred, degraded, mirrored, moved
from memcomp.experiments.backends.heads.train import Settings, train, write_weights
from memcomp.experiments.checkpoints import shipped
from memcomp.experiments.data.heads import Identity, Poses, landmarks, render
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.files import sha256
from memcomp.experiments.metrics.akd import akd
from memcomp.experiments.video import to_frame

FIRST = 2_700_000  # of people of the test split that the shipped description was not measured on
MARGIN = 1.5  # forty pictures scatter about the error of eight hundred


@pytest.fixture(scope="module")
def reader():
    return HeadsReader()


@pytest.fixture(scope="module")
def heads():
    """Ten people, four poses each, at 64 pixels: pictures (40, 3, 64, 64), truth as `errors` takes it."""
    draw, images, truth = torch.Generator().manual_seed(3), [], []
    for number in range(10):
        who, poses = Identity.sample(FIRST + number), a_pose_of_each_bin(700 + number, draw)
        images.append(render(who, poses, 64).image)
        exact = true_landmarks(who, poses, 64), poses.angles().double().numpy(), eye_distance(who, poses, 64)
        truth += list(zip(*exact, strict=True))
    return torch.cat(images), truth


def test_the_shipped_weights_are_small_and_those_described(reader, tmp_path, monkeypatch):
    path, about = shipped.shipped(NAME, "regressor")
    assert path.stat().st_size <= 1_000_000 and about["parameters"] > 100_000
    assert about["settings"] == vars(Settings()) and about["command"] == train_heads.COMMAND
    assert set(about["errors"]) == {"64", "128"} and about["errors"]["64"]["clean"]["pictures"] == 800
    for suffix in (".safetensors", ".json"):
        shutil.copy(path.with_suffix(suffix), tmp_path)
    monkeypatch.setattr(shipped, "weights_folder", lambda: tmp_path)
    damaged = bytearray((tmp_path / path.name).read_bytes())
    damaged[-1] ^= 1
    (tmp_path / path.name).write_bytes(damaged)
    with pytest.raises(Unavailable, match="sha256") as error:
        HeadsReader()
    assert error.value.needs == "heads_reader.safetensors"
    (tmp_path / path.name).unlink()
    panel = Panel(["l1", "akd"], heads=64)  # the rest is measured all the same
    assert "install the package again" in panel.about[0]


@pytest.mark.parametrize("state", ["clean", "blurred"])
def test_unseen_heads_are_read_as_well_as_the_description_says(reader, heads, state):
    images, truth = heads
    pictures = images if state == "clean" else blurred(images, torch.full((40,), 64 / 50))
    found = errors([reader.read(to_frame(picture)) for picture in pictures], truth, 10)
    said = reader.facts["errors"]["64"][state]
    assert 0 < found["landmarks_px"] < MARGIN * said["landmarks_px"]
    assert 0 < found["landmarks_percent"] < MARGIN * said["landmarks_percent"]
    for angle in ("yaw", "pitch", "roll"):
        assert 0 < found[angle]["mean_error"] < MARGIN * said[angle]["mean_error"]
    assert found["yaw"]["r"] > 0.99
    assert set(found["by_yaw"]) == {"0-15", "15-30", "30-45", "45-60"}


def test_errors_are_the_formulas():
    read = [(np.full((68, 2), 3.0), np.array([11.0, 0, 0])), (np.zeros((68, 2)), np.array([47.0, 4, 2]))]
    truth = [(np.zeros((68, 2)), np.array([10.0, 0, 0]), 30.0), (np.zeros((68, 2)), np.array([50.0, 1, 1]), 20.0)]
    found = errors(read, truth, 1)
    assert found["landmarks_px"] == pytest.approx(3 * 2**0.5 / 2, abs=1e-4)
    assert found["landmarks_percent"] == pytest.approx(100 * 3 * 2**0.5 / 30 / 2, abs=1e-3)
    assert [found[k]["mean_error"] for k in ("yaw", "pitch", "roll")] == [2, 1.5, 0.5] and found["yaw"]["r"] == 1
    assert (
        list(found["by_yaw"]) == ["0-15", "45-60"]
        and found["by_yaw"]["45-60"]["yaw"] == 3
        and found["by_yaw"]["0-15"]["landmarks_px"] > 4
    )


@pytest.mark.parametrize("size", [64, 128])
def test_akd_of_heads_is_nought_with_itself_and_follows_a_shift(size):
    backend = create_backend("landmarks", read_choices([], size), size)
    values, shift = [], 3
    for number in range(8):
        image = render(Identity.sample(FIRST + 50 + number), Poses.make(yaw=10.0 * (number - 4)), size).image[0]
        first = to_frame(image)
        other = np.pad(first, ((0, 0), (shift, 0), (0, 0)), mode="edge")[:, :size].copy()
        one, same, right = backend([first, first, other])
        assert akd(one, same, per_coordinate=False) == 0
        values.append(akd(right, one, per_coordinate=False))
    assert np.mean(values) == pytest.approx(shift, abs=0.4)


def test_heads_are_the_default_of_heads_and_refused_for_faces(reader):
    assert read_choices([])["landmarks"] == "dlib" and read_choices([])["pose"] == "landmarks"
    assert read_choices([], 64)["landmarks"] == read_choices([], 64)["pose"] == "heads"
    assert read_choices(["landmarks=dlib"], 64)["landmarks"] == "dlib"
    for metric, word in (("akd", "landmarks=heads"), ("prmse", "pose=heads")):
        with pytest.raises(UserError, match=f"--backend {word}: reads procedural heads only"):
            Panel([metric], [word])
    panel = Panel(["akd", "prmse"], heads=70)
    clean, soft = (reader.facts["errors"]["64"][state] for state in ("clean", "blurred"))
    assert f"{clean['landmarks_px']:.2f} px" in panel.about[0] and f"{soft['landmarks_px']:.2f} px" in panel.about[0]
    assert f"yaw {clean['yaw']['mean_error']:.1f}°" in panel.about[1] and "at 64 px" in panel.about[1]
    assert "at 128 px" in Panel(["akd"], heads=256).about[0]
    with pytest.raises(ValueError, match="square"):
        reader.read(np.zeros((64, 48, 3), np.uint8))


def test_turned_and_mirrored_heads_have_the_landmarks_of_turned_and_mirrored_heads():
    who, poses = Identity.sample(3), Poses.make(yaw=20.0, pitch=5.0, roll=4.0)
    image, points, angles = render(who, poses, 64).image, landmarks(who, poses, 64).points, poses.angles()
    one = torch.ones(1)
    _, turned, rolled = moved(image, points, angles, 12 * one, one, torch.zeros(1, 2))
    away = turned[0] - landmarks(who, Poses.make(yaw=20.0, pitch=5.0, roll=16.0), 64).points[0]
    assert rolled.tolist() == [[20, 5, 16]] and (away - away.mean(0)).norm(dim=1).max() < 5e-3  # but for the place
    flipped, other, mirrored_angles = mirrored(image, points, angles, torch.tensor([True]))
    assert sorted(MIRRORED) == list(range(68)) and mirrored_angles.tolist() == [[-20, 5, -4]]
    assert (other - landmarks(who, Poses.make(yaw=-20.0, pitch=5.0, roll=-4.0), 64).points).norm(dim=-1).max() < 5e-3
    again = mirrored(flipped, other, mirrored_angles, torch.tensor([True]))
    assert torch.equal(again[0], image) and torch.equal(again[1], points)
    right, shifted, _ = moved(image, points, angles, 0 * one, one, torch.tensor([[4 / 32, 0]]))
    assert torch.allclose(right[..., 4:], image[..., :-4], atol=1e-5) and torch.allclose(
        shifted[..., 1], points[..., 1]
    )
    assert torch.allclose(shifted[..., 0], points[..., 0] + 4 / 32)
    poor = degraded(image.expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    assert poor.min() >= 0 and poor.max() <= 1 and len({picture.sum().item() for picture in poor}) == 64


def test_training_resumes_to_the_bit_and_writes_what_the_backend_reads(tmp_path, monkeypatch, head_cache, capsys):
    monkeypatch.setenv("MEMCOMP_CACHE", str(head_cache))
    monkeypatch.setattr(train_heads, "KEEP", 2)
    settings = Settings(people=3, frames=4, steps=5, batch=4, warmup=2)
    whole = train(settings, tmp_path / "one")
    assert train(settings, tmp_path / "two", stop_after=3) is None
    resumed = train(settings, tmp_path / "two")
    before = train_heads.HeadsNetwork().state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
        assert value.isfinite().all()
    assert not torch.equal(whole.heat.weight, before["heat.weight"])
    with pytest.raises(UserError, match="was trained with"):
        train(Settings(people=3, frames=4, steps=6, batch=4, warmup=2), tmp_path / "two")
    (tmp_path / "two" / "last.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="expected a checkpoint"):
        train(settings, tmp_path / "two")
    path = write_weights(whole, settings, tmp_path / "one", people=2)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["sha256"] == sha256(path) and about["errors"]["128"]["blurred"]["pictures"] == 8
    points, angles = HeadsReader(path).read(
        to_frame(HeadsSet("test", 1, 1, 64).render(Identity.sample(1), Poses.make())[0])
    )
    assert points.shape == (68, 2) and angles.shape == (3,) and np.isfinite(points).all()


def test_steps_lower_the_error_on_a_batch():
    torch.manual_seed(0)
    network = train_heads.HeadsNetwork().train()
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    batch = torch.rand(4, 3, 64, 64), torch.rand(4, 68, 2) - 0.5, 40 * torch.rand(4, 3) - 20
    losses = [train_heads.train_step(network, adam, batch) for _ in range(12)]
    assert losses[-1][0] < 0.8 * losses[0][0] and losses[-1][1] < losses[0][1]
