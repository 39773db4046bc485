"""Procedural heads as a data set: splits, cache, evaluation pairs, clips on disk."""

import argparse
import csv
from multiprocessing import get_context
from pathlib import Path

import imageio.v3 as imageio
import pytest
import torch

from memcomp.experiments.commands import heads as heads_command
from memcomp.experiments.data import heads_set
from memcomp.experiments.data.heads import Poses, disocclusion, render
from memcomp.experiments.data.heads_files import write_clips
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.errors import UserError


def small(tmp_path: Path, split: str = "train", **changes: int) -> HeadsSet:
    sizes = {"identities": 3, "frames": 2, "size": 32, "seed": 0} | changes
    return HeadsSet(split, **sizes, cache_dir=tmp_path)


def test_splits_and_seeds_share_nobody(tmp_path: Path) -> None:
    sets = [small(tmp_path, split, seed=seed, identities=50) for split in heads_set.SPLITS for seed in (0, 1)]
    people = [s.identity(i) for s in sets for i in range(len(s))]
    assert len({p.seed for p in people}) == len(people) == 300
    last = small(tmp_path, "train", identities=heads_set.MOST_IDENTITIES)
    assert last.identity(len(last) - 1).seed < small(tmp_path, "val").identity(0).seed


def test_frames_come_from_the_cache_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(tmp_path).frames(1)
    assert first.shape == (2, 3, 32, 32) and first.dtype == torch.uint8
    rendered = render(small(tmp_path).identity(1), small(tmp_path).poses(1), 32).image
    assert torch.equal(first, (rendered * 255).round().to(torch.uint8))

    def must_not_render(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(heads_set, "render", must_not_render)
    assert torch.equal(small(tmp_path).frames(1), first)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_rendered_again(tmp_path: Path, damage: str) -> None:
    heads = small(tmp_path)
    first = heads.frames(0)
    path = heads.path(0)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[100] ^= 255
    path.write_bytes({"cut": content[:-7], "flipped": content, "empty": b""}[damage])
    assert torch.equal(small(tmp_path).frames(0), first)
    assert torch.equal(small(tmp_path).frames(0), first)  # the repaired file


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = small(tmp_path)

    def fail(self: Path, data: bytes) -> None:
        self.open("wb").write(data[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(KeyboardInterrupt):
            heads.frames(0)
    assert list(heads.folder.iterdir()) == []
    assert heads.frames(0).float().std() > 5


def test_other_parameters_are_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = small(tmp_path)
    paths = {heads.path(0), heads.path(1), small(tmp_path, size=64).path(0), small(tmp_path, frames=3).path(0)}
    paths |= {small(tmp_path, seed=1).path(0), small(tmp_path, "val").path(0)}
    monkeypatch.setattr(heads_set, "RENDERER_VERSION", -1)
    assert len(paths | {heads.path(0)}) == 7


def test_the_cache_folder_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCOMP_CACHE", str(tmp_path / "here"))
    assert HeadsSet("train", 1, 1, 32).path(0).is_relative_to(tmp_path / "here")


def test_several_processes_may_render_the_same_clip(tmp_path: Path) -> None:
    heads = small(tmp_path)
    with get_context("spawn").Pool(2) as pool:
        first, second = pool.map(heads.frames, [2, 2])
    assert torch.equal(first, second) and torch.equal(first, heads.frames(2))


def test_render_all_shows_progress_and_fills_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = small(tmp_path)
    heads.render_all()
    assert "3/3" in capsys.readouterr().err
    assert all(heads.path(i).is_file() for i in range(3))
    heads.render_all()
    assert capsys.readouterr().err == ""  # nothing left to do


def test_same_identity_pairs(tmp_path: Path) -> None:
    heads = small(tmp_path, "test", frames=5)
    pairs = heads.same_identity(4, seed=7)
    assert [p.name for p in pairs] == [p.name for p in heads.same_identity(4, seed=7)]
    assert [p.name for p in pairs] != [p.name for p in heads.same_identity(4, seed=8)]
    for pair in pairs:
        assert torch.equal(pair.driving, pair.target) and not torch.equal(pair.source, pair.target)
        assert pair.source.shape == (3, 32, 32) and pair.disoccluded.shape == (1, 32, 32)
        assert pair.disoccluded.dtype == torch.bool


def test_cross_identity_targets_are_the_sources_person_in_the_driving_pose(tmp_path: Path) -> None:
    heads = small(tmp_path, "test", frames=4)
    pair = heads.cross_identity(3, seed=1)[2]
    source, driving = pair.name.split("_")
    a, s = (int(v) for v in source.removeprefix("test").split("-"))
    b, d = (int(v) for v in driving.removeprefix("test").split("-"))
    assert a != b
    who, pose = heads.identity(a), heads.poses(b)[d]
    assert (render(who, pose, 32).image[0] - pair.target).abs().mean() < 1e-4
    assert (render(heads.identity(b), pose, 32).image[0] - pair.driving).abs().mean() < 1e-4
    assert (render(who, heads.poses(a)[s], 32).image[0] - pair.source).abs().mean() < 1e-4
    assert torch.equal(disocclusion(who, heads.poses(a)[s], pose, 32)[0], pair.disoccluded)
    torch.testing.assert_close(pair.driving_angles, heads.angles(b)[d])
    corner = (slice(None), slice(0, 3), slice(0, 3))  # the background is the source's
    assert (pair.target[corner] - pair.source[corner]).abs().max() < 0.05 < (pair.target - pair.driving).abs().max()


def test_pairs_are_a_sequence(tmp_path: Path) -> None:
    pairs = small(tmp_path).cross_identity(5)
    assert len(pairs) == 5 and len(pairs[1:3]) == 2
    with pytest.raises(IndexError):
        pairs[5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identities": 0}, "identities = 0"),
        ({"frames": 0}, "frames = 0"),
        ({"size": 8}, "size = 8"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_wrong_numbers_are_named(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(tmp_path, **changes)


def test_wrong_split_and_lonely_cross_identity_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'dev'.*train, val, test"):
        small(tmp_path, "dev")
    with pytest.raises(UserError, match="2 or more identities"):
        small(tmp_path, identities=1).cross_identity(1)


def test_clips_are_ordinary_videos_with_a_table(tmp_path: Path) -> None:
    heads = small(tmp_path / "cache", "val", identities=2, frames=4, size=64)
    videos = write_clips(tmp_path / "clips", heads)
    assert [v.parent.name for v in videos] == ["val", "val"] and len({v.stem for v in videos}) == 2
    video = imageio.imread(videos[0], plugin="pyav")
    assert video.shape == (4, 64, 64, 3)
    original = heads.frames(0).permute(0, 2, 3, 1).numpy()
    assert abs(video.astype(float) - original).mean() < 12
    rows = list(csv.DictReader(videos[0].with_suffix(".csv").open()))
    assert len(rows) == 4 and {"frame", "yaw", "mouth", "x0", "y67", "visible67"} <= set(rows[0])
    table = Poses.from_tensor(torch.tensor([[float(v) for v in list(r.values())[1:13]] for r in rows]))
    torch.testing.assert_close(table.as_tensor(), heads.poses(0).as_tensor(), atol=1e-2, rtol=1e-3)
    assert sorted(p.suffix for p in videos[0].parent.iterdir()) == [".csv", ".csv", ".mp4", ".mp4"]


def test_the_command_writes_a_sheet_or_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    heads_command.add_arguments(parser)
    common = ["--identities", "2", "--size", "32", "--frames", "2"]
    heads_command.run(parser.parse_args(["--output", str(tmp_path / "sheet.png"), *common]))
    assert imageio.imread(tmp_path / "sheet.png").shape == (64, 256, 3)
    heads_command.run(parser.parse_args(["--output", str(tmp_path / "clips"), *common]))
    assert len(list((tmp_path / "clips" / "test").glob("*.mp4"))) == 2
    assert "2 clips of 2 frames" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"\.png"):
        heads_command.run(parser.parse_args(["--output", str(tmp_path / "sheet.jpg"), *common]))
