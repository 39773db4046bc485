"""Terminals that are not UTF-8, disks that are full, homes that cannot be written: one line, the right exit code, and
nothing lost or half-written. A limit on the size of files stands in for a full disk: the system refuses for real."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from memcomp import CompensationConfig, MemoryCompensation, save
from memcomp.experiments.checkpoints.run_file import load_run, save_run
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.cli import main
from memcomp.experiments.data import cache
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.data.heads_set import HeadClips, HeadsSet
from memcomp.experiments.data.motion_pairs import MotionPairs
from memcomp.experiments.errors import CannotWrite

REASON = "cannot be written (File too large)"


@contextmanager
def largest_file(size):
    """Files can be no larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def nothing_left_out(monkeypatch):
    """A cache that an earlier test could not write is tried again."""
    monkeypatch.setattr(cache, "_left_out", set())


@pytest.fixture
def train(small_recipe, tmp_path):
    """Train the small host for three steps on heads: `train(folder, *words)` → exit code."""
    (tmp_path / "small.yaml").write_text(small_recipe.to_yaml())
    words = ["optim.batch_size=2", "data.identities=2", "log.held_out_pairs=2", "loss.perceptual=null"]

    def run(folder, *more):
        return main(["train", str(tmp_path / "small.yaml"), *words, "optim.steps=3", *more, "--output", str(folder)])

    return run


def error(capsys):
    """The one line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memcomp:")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def face(tmp_path):
    """A source picture."""
    Image.new("RGB", (48, 48), (200, 120, 90)).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def left_over(folder):
    """Names of temporary files."""
    return [path.name for path in folder.rglob(".*")]


# ---- disks -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(train, capsys, tmp_path):
    run = tmp_path / "run"
    with largest_file(60_000):  # the log fits, the first checkpoint does not
        assert train(run) == 2
    last = run / "checkpoints" / "last.safetensors"
    assert f"{run}/checkpoints/best.safetensors: {REASON}" in error(capsys)  # weights alone, and written first
    assert not last.exists() and not left_over(run)
    assert train(run) == 0
    before = last.read_bytes()
    with largest_file(2000), pytest.raises(CannotWrite, match="last"):
        save_run(last, load_run(last).recipe, load_host(run)[0], 9)
    assert last.read_bytes() == before and not left_over(run)


def test_a_video_that_does_not_fit_is_not_there(small_run, clips_root, face, capsys, tmp_path):
    clip = clips_root / "test" / "a_1.mp4"
    words = ["--checkpoint", small_run, "--source", face, "--driving", clip, "--output", tmp_path / "out.mp4"]
    with largest_file(600):
        assert main(["animate", *map(str, words)]) == 2
    assert f"{tmp_path / 'out.mp4'}: {REASON}" in error(capsys)
    assert list(tmp_path.iterdir()) == [face]


def test_tables_that_do_not_fit_are_named(small_run, capsys, tmp_path):
    words = ["evaluate", small_run, "--pairs", "2", "--output", tmp_path / "out"]
    assert main(list(map(str, words))) == 0  # the heads are in the cache now
    capsys.readouterr()
    before = (tmp_path / "out" / "pairs.csv").read_bytes()
    with largest_file(100):
        assert main(list(map(str, words))) == 2
    assert f"{tmp_path / 'out' / 'pairs.csv'}: {REASON}" in error(capsys)
    assert (tmp_path / "out" / "pairs.csv").read_bytes() == before and not left_over(tmp_path / "out")


def test_a_converted_checkpoint_that_does_not_fit_is_not_there(small_run, capsys, tmp_path):
    with largest_file(2000):
        words = [
            "convert",
            str(small_run),
            "--to",
            "upstream",
            "--without-memory",
            "--output",
            str(tmp_path / "made.pth"),
        ]
        assert main(words) == 2
    assert f"{tmp_path / 'made.pth'}: {REASON}" in error(capsys)
    assert not list(tmp_path.iterdir())


def test_a_memory_that_does_not_fit_leaves_the_one_before(tmp_path):
    memory = MemoryCompensation([8], 4, CompensationConfig(memory_channels=4, memory_size=(4, 4)))
    save(memory, tmp_path / "memory.safetensors")
    before = (tmp_path / "memory.safetensors").read_bytes()
    with largest_file(100), pytest.raises(OSError, match="memory"):
        save(memory, tmp_path / "memory.safetensors")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_what_is_printed_into_a_full_disk(small_run, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    words = ["evaluate", str(small_run), "--pairs", "2", "--output", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "memcomp.experiments.cli", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 3 and (tmp_path / "out" / "metrics.json").is_file()
    last = done.stderr.splitlines()[-1]
    assert last.startswith("memcomp: error: standard output: cannot be written (No space left on device)"), last


@pytest.mark.parametrize("command", ["train", "evaluate", "animate", "heads", "inspect"])
def test_a_folder_that_is_a_file(command, small_run, clips_root, face, capsys, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    clip = str(clips_root / "test" / "a_1.mp4")
    words = {
        "train": ["demo/fomm"],
        "evaluate": [str(small_run)],
        "animate": ["--checkpoint", str(small_run), "--source", str(face), "--driving", clip],
        "heads": [],
        "inspect": [str(small_run)],
    }[command]
    output = taken / ("out.mp4" if command == "animate" else "out")
    assert main([command, *words, "--output", str(output)]) == 2
    assert str(taken) in error(capsys)
    assert taken.read_text() == "mine"


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights_with_a_cache(train, tmp_path):
    """Weights of the small training, as they are with a cache."""
    assert train(tmp_path / "cached") == 0
    return load_file(tmp_path / "cached" / "model.safetensors")


def same(weights, folder):
    found = load_file(folder / "model.safetensors")
    return all(torch.equal(value, found[name]) for name, value in weights.items())


def warning(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memcomp: warning:")]
    assert len(lines) == 1 and "MEMCOMP_CACHE" in lines[0] and "data.cache" in lines[0], lines
    return lines[0]


def test_heads_without_a_cache_train_alike(train, weights_with_a_cache, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "run", f"data.cache={tmp_path / 'file' / 'cache'}") == 0
    assert str(tmp_path / "file" / "cache") in warning(capsys)
    assert same(weights_with_a_cache, tmp_path / "run")


@pytest.mark.parametrize("kind", ["heads", "motions", "clips"])
def test_a_cache_that_fills_up_is_left_out(kind, clips_root, capsys, tmp_path):
    def read(folder):
        heads = HeadsSet("train", 2, 12, 32, cache_dir=folder)
        if kind == "heads":
            return HeadClips(heads).read(1, [3, 7])
        if kind == "motions":
            return torch.cat([MotionPairs(heads, 0)[i]["driving"] for i in range(3)])
        return Clips(clips_root / "test", 32, cache=folder).read(1, [2, 5])

    wanted = read(tmp_path / "cached")
    assert any(path.is_file() for path in (tmp_path / "cached").rglob("*"))
    with largest_file(5000):
        assert torch.equal(read(tmp_path / "full"), wanted) and torch.equal(read(tmp_path / "full"), wanted)
    assert str(tmp_path / "full") in warning(capsys)
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]


def test_a_home_that_cannot_be_written(train, weights_with_a_cache, capsys, monkeypatch, tmp_path):
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEMCOMP_CACHE", raising=False)
    assert train(tmp_path / "run", "data.cache=null") == 0
    assert str(tmp_path / "home" / ".cache" / "memcomp") in warning(capsys)
    assert same(weights_with_a_cache, tmp_path / "run")


def test_clips_are_decoded_each_time_without_a_cache(small_run, clips_root, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["evaluate", str(small_run), "--root", str(clips_root), "--pairs", "3", "--videos", "0"]
    assert main([*words, f"data.cache={tmp_path / 'cache'}", "--output", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert main([*words, f"data.cache={tmp_path / 'file'}", "--output", str(tmp_path / "b")]) == 0
    warning(capsys)
    assert (tmp_path / "a" / "pairs.csv").read_bytes() == (tmp_path / "b" / "pairs.csv").read_bytes()


def test_a_user_without_a_home(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MEMCOMP_CACHE", raising=False)
    monkeypatch.setattr(cache.Path, "home", none)
    assert cache.cache_folder().name == "memcomp"
    assert str(cache.cache_folder("mine")) == "mine"


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_results_reach_a_terminal_that_is_not_utf8(encoding, small_run, tmp_path):
    words = ["evaluate", str(small_run), "--pairs", "2", "--output", str(tmp_path / "прогон")]
    done = subprocess.run(
        [sys.executable, "-m", "memcomp.experiments.cli", *words],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "L1" in text and "?" in text  # the arrow, and the folder's name
    assert (tmp_path / "прогон" / "metrics.json").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_errors_reach_it_too(encoding):
    done = subprocess.run(
        [sys.executable, "-m", "memcomp.experiments.cli", "recipes", "нет" if encoding != "utf-8" else b"no\xff"],
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert done.stderr.decode(encoding).startswith("memcomp: error: ")


def test_a_clip_whose_name_is_not_utf8(small_run, clip_writer, tmp_path):
    root = tmp_path / "clips" / "test"
    root.mkdir(parents=True)
    for seed, name in enumerate((b"a\xff_1.mp4", b"b\xfe_1.mp4")):
        made = clip_writer(tmp_path / f"{seed}.mp4", seed)
        os.rename(made, os.path.join(os.fsencode(root), name))
    words = ["evaluate", str(small_run), "--root", str(root.parent), "--pairs", "2", "--videos", "1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "pairs.csv").is_file()
