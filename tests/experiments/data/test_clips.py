"""Clips and the pairs drawn from them."""

import warnings
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from memcomp.experiments.data.augment import augment_pair
from memcomp.experiments.data.batching import StepBatches, collate
from memcomp.experiments.data.clips import Clips, fit, person
from memcomp.experiments.data.pairs import DamagedClip, PairSet, seeded
from memcomp.experiments.errors import UserError, warn
from memcomp.experiments.recipe.sections import AugmentSection

NONE = AugmentSection(time_flip=0, mirror=0)


def ramp(frames=10, height=32, width=32):
    """Frame t is grey of brightness 20 t: a decoded frame tells its number."""
    return np.stack([np.full((height, width, 3), 20 * t % 240, np.uint8) for t in range(frames)])


def write(path: Path, frames: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        iio.imwrite(path, frames, plugin="pyav", codec=codec, fps=10)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One clip of each kind, by three people."""
    root = tmp_path_factory.mktemp("clips")
    write(root / "anna_1.mp4", ramp())
    write(root / "anna_2.mov", ramp())
    write(root / "id1#ben_1.webm", ramp())
    (root / "carl_1").mkdir()
    for t, frame in enumerate(ramp()):
        iio.imwrite(root / "carl_1" / f"{t:04d}.png", frame)
    (root / "notes.txt").write_text("not a clip")
    (root / "empty").mkdir()
    return root


def numbers(frames):
    return [round(frame.float().mean().item() / 20) for frame in frames]


@pytest.mark.parametrize("cached", [True, False])
def test_every_kind_gives_the_frames_asked_for(folder, tmp_path, cached):
    clips = Clips(folder, 16, cache=tmp_path if cached else None)
    assert [clips.name(i) for i in range(len(clips))] == ["anna_1.mp4", "anna_2.mov", "carl_1", "id1#ben_1.webm"]
    for clip in range(len(clips)):
        assert clips.count(clip) == 10
        for wanted in ([0, 9], [7, 2], [4, 4]):
            frames = clips.read(clip, wanted)
            assert frames.shape == (2, 3, 16, 16)
            assert frames.dtype == torch.uint8
            assert numbers(frames) == wanted
    assert len(list(tmp_path.iterdir())) == (3 if cached else 0)  # the folder of frames needs no cache


def test_people_are_told_by_name(folder):
    assert Clips(folder, 16).people == [[0, 1], [2], [3]]
    assert person(Path("id10001#abc_def#000.mp4")) == "id10001"
    assert person(Path("anna_12.mp4")) == "anna"
    assert person(Path("anna")) == "anna"


def test_a_full_cache_changes_no_pixel(folder, tmp_path):
    room_for_one = 10 * 3 * 16 * 16 * 1.5 / 1e9
    small = Clips(folder, 16, cache=tmp_path, cache_gb=room_for_one)
    for clip in range(4):
        assert torch.equal(small.read(clip, [3, 8]), Clips(folder, 16).read(clip, [3, 8]))
    assert len(list(tmp_path.iterdir())) == 1


def test_another_process_may_finish_a_clip_meanwhile(folder, tmp_path):
    (tmp_path / ".decoded-by-another.frames").symlink_to(tmp_path / "renamed")  # listed, and gone when it is asked for
    cached = Clips(folder, 16, cache=tmp_path)
    assert torch.equal(cached.read(0, [3, 8]), Clips(folder, 16).read(0, [3, 8]))
    assert len([file for file in tmp_path.iterdir() if file.is_file()]) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_cache_is_said_once_with_the_size_it_would_need(folder, tmp_path, workers, capfd):
    for _ in range(2):  # the second time, nothing was kept in it meanwhile
        pairs = PairSet(Clips(folder, 16, cache=tmp_path / str(workers), cache_gb=1e-6), seed=0, augment=NONE)
        sampler = StepBatches(0, 6, 4)
        list(DataLoader(pairs, batch_sampler=sampler, num_workers=workers, collate_fn=collate))
        said = [line for line in capfd.readouterr().err.splitlines() if "cache" in line]
        assert len(said) == 1 and f"{workers}: the cache of decoded frames is full" in said[0]
        assert "the 4 clips" in said[0] and "about 3.1e-05 GB (data.cache_gb is 1e-06)" in said[0]
        warn.cache_clear()
    Clips(folder, 16, cache=tmp_path / "none", cache_gb=0).read(0, [1])
    assert "cache" not in capfd.readouterr().err  # meant so


def test_frames_are_cut_to_their_middle_square_and_resized():
    wide = torch.zeros(3, 20, 60, dtype=torch.uint8)
    wide[:, :, 20:40] = 200
    assert (fit(wide, 10) == 200).all()
    assert (fit(wide, 20) == 200).all()
    tall = wide.transpose(1, 2)
    assert (fit(tall, 10) == 200).all()
    checks = torch.zeros(3, 64, 64, dtype=torch.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 200
    assert (fit(checks, 16).float() - 100).abs().max() < 12  # antialiased: no single pixels are picked


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.*expected a folder of clips \(\.mp4"):
        Clips(tmp_path / "none", 16)
    with pytest.raises(UserError, match=r"expected clips \(\.mp4.*found none"):
        Clips(tmp_path, 16)


@pytest.fixture
def damaged(tmp_path):
    """A sound clip, one that is cut off, one that is no video, one that has a picture that is none."""
    write(tmp_path / "anna_1.mp4", ramp())
    whole = write(tmp_path / "cut_1.mov", ramp(60)).read_bytes()
    (tmp_path / "cut_1.mov").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text_1.mp4").write_text("not a video")
    (tmp_path / "frames_1").mkdir()
    (tmp_path / "frames_1" / "0.png").write_text("not a picture")
    return tmp_path


def test_a_damaged_clip_is_an_error_that_names_it(damaged):
    clips = Clips(damaged, 16)
    for clip, name in ((1, "cut_1.mov"), (2, "frames_1/0.png"), (3, "text_1.mp4")):
        for _ in range(2):  # the second time without opening it
            with pytest.raises(DamagedClip, match=name):
                clips.read(clip, [0])
    assert clips.read(0, [5]).shape == (1, 3, 16, 16)


def test_a_frame_more_in_the_containers_list_than_the_decoder_gives_is_the_last_one(tmp_path):
    write(tmp_path / "anna_1.mp4", ramp())
    for cache in (None, tmp_path / "cache"):
        clips = Clips(tmp_path, 16, cache=cache)
        clips._counts[0] = 11
        assert numbers(clips.read(0, [10, 3])) == [9, 3]


def test_training_skips_damaged_clips_by_name_whatever_the_workers(damaged, tmp_path):
    def batches(workers):
        pairs = PairSet(Clips(damaged, 16, cache=tmp_path / f"cache{workers}"), seed=3, augment=NONE)
        sampler = StepBatches(0, 4, 4)
        return list(DataLoader(pairs, batch_sampler=sampler, num_workers=workers, collate_fn=collate))

    alone, helped = batches(0), batches(2)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["source"], b["source"])
        assert torch.equal(a["driving"], b["driving"])
        assert a["skipped"] == b["skipped"]
    skipped = {name for batch in alone for name in batch["skipped"]}
    assert len(skipped) == 3
    assert all(any(part in name for name in skipped) for part in ("cut_1.mov", "frames_1", "text_1.mp4"))


def test_nothing_but_damaged_clips_is_an_error(damaged):
    (damaged / "anna_1.mp4").unlink()
    with pytest.raises(UserError, match="100 damaged clips in a row"):
        PairSet(Clips(damaged, 16), seed=0)[0]


class Numbered:
    """Clips whose frame t of clip c is grey of brightness 16 c + t."""

    def __init__(self, people):
        self.people = people

    def name(self, clip):
        return str(clip)

    def notes(self, clip):
        return ""

    def count(self, clip):
        return 8

    def read(self, clip, frames):
        return torch.stack([torch.full((3, 4, 4), 16 * clip + frame, dtype=torch.uint8) for frame in frames])


def drawn(pairs, count):
    """(clip, source frame, driving frame) of the first pairs."""
    found = []
    for index in range(count):
        s, d = (round(pairs[index][key].float().mean().item()) for key in ("source", "driving"))
        assert s // 16 == d // 16
        found.append((s // 16, s % 16, d % 16))
    return found


def test_a_person_is_drawn_first_then_a_clip_then_two_sorted_frames():
    pairs = PairSet(Numbered([[0, 1, 2, 3], [4]]), seed=0, repeats=100, augment=NONE)
    assert pairs.epoch_length == 200
    found = drawn(pairs, 200)
    assert sum(clip == 4 for clip, _, _ in found) == 100  # every person equally often in an epoch, however many clips
    assert {clip for clip, _, _ in found} == {0, 1, 2, 3, 4}
    assert all(source <= driving for _, source, driving in found)
    same = sum(source == driving for _, source, driving in found)
    assert 10 <= same <= 45  # with replacement: 1 in 8
    assert {source for _, source, _ in found} | {driving for _, _, driving in found} == set(range(8))


def test_pairs_depend_on_seed_and_index_alone():
    def pairs(seed):
        return PairSet(Numbered([[0], [1], [2]]), seed=seed, repeats=4, augment=AugmentSection(hue=0.1))

    again = pairs(1)
    reverse = {index: again[index]["source"] for index in reversed(range(30))}
    assert all(torch.equal(pairs(1)[index]["source"], reverse[index]) for index in (0, 13, 29))
    assert drawn(PairSet(Numbered([[0], [1]]), 1, 8, NONE), 16) != drawn(PairSet(Numbered([[0], [1]]), 2, 8, NONE), 16)
    first, second = (
        drawn(PairSet(Numbered([[0], [1], [2]]), 1, 4, NONE), 24)[part] for part in (slice(12), slice(12, 24))
    )
    assert [c for c, _, _ in first] != [c for c, _, _ in second]  # every epoch has its own order


def test_processes_share_the_batches_of_one():
    alone = list(StepBatches(3, 6, 4))
    assert alone[0] == [12, 13, 14, 15]
    shares = [list(StepBatches(3, 6, 4, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == alone


def test_flips_are_exclusive_and_as_frequent_as_upstream_s():
    pair = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).view(2, 3, 2, 4)
    counts = {"swapped": 0, "mirrored": 0, "same": 0}
    for index in range(400):
        result = augment_pair(pair, AugmentSection(), seeded(0, "test", index))
        name = next(
            name
            for name, expected in (("swapped", pair.flip(0)), ("mirrored", pair.flip(-1)), ("same", pair))
            if torch.equal(result, expected)
        )
        counts[name] += 1
    assert 160 <= counts["swapped"] <= 240
    assert 70 <= counts["mirrored"] <= 130


def test_jitter_treats_both_frames_alike_and_shuffles_its_order():
    frame = torch.randint(40, 200, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pair = torch.stack([frame, frame])
    strong = AugmentSection(time_flip=0, mirror=0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.4)
    results = [augment_pair(pair, strong, seeded(0, "test", index)) for index in range(20)]
    assert all(torch.equal(a, b) for a, b in results)
    assert all(not torch.equal(result, pair) for result in results)
    for name in ("brightness", "contrast", "saturation", "hue"):
        one = AugmentSection(time_flip=0, mirror=0, **{name: 0.3})
        assert any(not torch.equal(augment_pair(pair, one, seeded(0, "test", i)), pair) for i in range(3)), name
    bright = AugmentSection(time_flip=0, mirror=0, brightness=0.1)
    means = [
        augment_pair(pair, bright, seeded(0, "b", i)).float().mean().item() / pair.float().mean().item()
        for i in range(50)
    ]
    assert 0.89 < min(means) < 0.94
    assert 1.06 < max(means) < 1.11
