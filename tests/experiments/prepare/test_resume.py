"""A preparation that is killed goes on, and ends in the folder that one which is left alone ends in."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memcomp.experiments.errors import UserError
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.prepare.prepare import Prepared, prepare
from memcomp.experiments.video import write_video

KILLS = 10
OPTIONS = PrepareOptions(size=16, min_frames=4, least_head=30, every=1, workers=0, test_share=0.5, same_person=30)
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "tempfile.mkstemp")


@pytest.fixture
def folder(tmp_path: Path, bright: None) -> Path:
    """Four videos of two people, one of them damaged; another shows nobody."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, colour in enumerate([(250, 20, 20), (20, 250, 20), (250, 20, 20), (20, 250, 20), (0, 0, 0)]):
        with write_video(raw / f"video{number}.mp4", 25) as append:
            for frame in range(12):
                picture = np.full((80, 96, 3), 20, np.uint8)
                picture[20:60, 20 + frame : 54 + frame] = colour
                append(picture)
    content = (raw / "video3.mp4").read_bytes()
    (raw / "video3.mp4").write_bytes(content[: len(content) // 2])
    return tmp_path


def content(folder: Path) -> dict[str, str]:
    """Every file but the lock, and the hash of what it holds."""
    files = [path for path in sorted(folder.rglob("*")) if path.name != "lock"]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in files
    }


def in_a_process(work: Callable[[], object], kill_at: int = 0) -> tuple[int, int]:
    """Run in a process of its own, killed as it touches files for the `kill_at`-th time; its status, its touches."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        touched, code = 0, 1

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal touched
            if event in EVENTS and not (event == "open" and arguments[1] in ("r", "rb", None)):
                touched += 1
                if touched == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            work()
            os.write(write, str(touched).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(read) as pipe:
        return status, int(pipe.read() or 0)


def test_killed_at_ten_moments(folder: Path) -> None:
    def into(name: str) -> Callable[[], Prepared]:
        return lambda: prepare(folder / "raw", folder / name, OPTIONS)

    status, touched = in_a_process(into("whole"))
    assert status == 0 and touched > 2 * KILLS
    wanted = content(folder / "whole")
    assert sum(name.endswith(".mp4") for name in wanted) == 3
    unfinished = 0
    for kill in range(KILLS):  # each in a folder of its own, from its first touch to its last
        output = f"killed{kill}"
        status, _ = in_a_process(into(output), 1 + kill * (touched - 1) // (KILLS - 1))
        assert os.WIFSIGNALED(status)
        unfinished += content(folder / output) != wanted
        assert in_a_process(into(output))[0] == 0
        assert content(folder / output) == wanted
    assert unfinished >= KILLS - 1  # the last touch may be the last
    for kill in range(KILLS):  # one and the same folder, again and again
        assert os.WIFSIGNALED(in_a_process(into("often"), 3 + 2 * kill)[0])
    assert in_a_process(into("often"))[0] == 0
    assert content(folder / "often") == wanted


def test_a_changed_input_is_done_again(folder: Path) -> None:
    output = folder / "clips"
    first = prepare(folder / "raw", output, OPTIONS)
    assert (first.clips, first.inputs, first.without) == (3, 5, 2) and first.troubled == ["video3.mp4"]
    before = content(output)
    (folder / "raw" / "video3.mp4").write_bytes((folder / "raw" / "video1.mp4").read_bytes())
    (folder / "raw" / "video0.mp4").write_bytes((folder / "raw" / "video4.mp4").read_bytes())
    second = prepare(folder / "raw", output, OPTIONS)
    assert second.clips == 3 and not second.troubled
    names = [Path(name).name for name in content(output) if name.endswith(".mp4")]
    assert {name.split("#")[1] for name in names} == {"video1", "video2", "video3"}
    assert before != content(output)


def test_another_seed_moves_people(folder: Path) -> None:
    """Clips are where a preparation with that seed from the beginning puts them, wherever they were before."""
    prepare(folder / "raw", folder / "moved", OPTIONS)
    for seed in range(6):
        options = replace(OPTIONS, seed=seed)
        prepare(folder / "raw", folder / "moved", options)
    prepare(folder / "raw", folder / "fresh", options)
    assert content(folder / "moved") == content(folder / "fresh")
    prepare(folder / "raw", folder / "moved", replace(OPTIONS, test_share=0.0))
    assert not (folder / "moved" / "test").exists()


def test_folders_in_use_or_of_others_are_left_alone(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="expected an empty folder"):
        prepare(folder / "raw", other, OPTIONS)
    assert os.listdir(other) == ["notes.txt"]
    with pytest.raises(UserError, match="outside of the input"):
        prepare(folder / "raw", folder / "raw" / "clips", OPTIONS)
    prepare(folder / "raw", folder / "clips", OPTIONS)
    from memcomp.experiments.prepare.records import Records

    settings = {"input": os.path.realpath(folder / "raw"), **OPTIONS.of_clips()}
    with Records(folder / "clips").held(settings), pytest.raises(UserError, match="another `memcomp prepare`"):
        prepare(folder / "raw", folder / "clips", OPTIONS)
