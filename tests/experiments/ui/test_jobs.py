"""What the page does, without the page: jobs, limits, sessions, and what a pixel reads. Gradio is not needed."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from memcomp.experiments.animation import Animator, Motion
from memcomp.experiments.checkpoints.shipped import weights_folder
from memcomp.experiments.errors import UserError
from memcomp.experiments.ui.attention import look, read_pixel
from memcomp.experiments.ui.jobs import Order, Stopped, run_job
from memcomp.experiments.ui.limits import Limits
from memcomp.experiments.ui.models import read_models, usual
from memcomp.experiments.ui.sessions import Sessions
from memcomp.experiments.ui.studio import NONE, Asked, Studio
from memcomp.experiments.video import Frames, fit, read_picture, to_frame, write_frames


@pytest.fixture(scope="module")
def choices(small_run):
    """The demo's host, and a small one with and without its memory."""
    return read_models(["demo", str(small_run)], torch.device("cpu"))


@pytest.fixture
def brought(clips_root, tmp_path):
    """Uploads: two pictures and two clips."""
    uploads = tmp_path / "uploads"
    for name, clip in (("a", "a_1"), ("b", "b_1")):
        (uploads / name).mkdir(parents=True)
        Image.fromarray(next(iter(Frames(clips_root / "test" / f"{clip}.mp4")))).save(uploads / name / "face.png")
        (uploads / name / "clip.mp4").write_bytes((clips_root / "test" / f"{clip}.mp4").read_bytes())
    return uploads


@pytest.fixture
def studio(choices, brought, tmp_path):
    return Studio(choices, Limits(), Sessions(tmp_path / "results", brought))


def asked(brought, source="a", driving="b", *names, **others):
    return Asked(str(brought / source / "face.png"), str(brought / driving / "clip.mp4"), *names, **others)


def test_what_there_is_to_choose_from(choices, small_run):
    name = small_run.name
    assert [choice.name for choice in choices] == ["demo", f"{name}, memory off", f"{name}, with memory"]
    assert [choice.name for choice in usual(choices)] == ["demo", f"{name}, with memory"]
    assert usual(choices[:1]) == (choices[0], None)


def test_a_job_makes_what_the_hosts_make(choices, brought, tmp_path):
    source, driving = brought / "a" / "face.png", brought / "b" / "clip.mp4"
    told = []
    order = Order(source, driving, tuple(choices), best_frame=False)
    result = run_job(order, Limits(), tmp_path, lambda *words: told.append(words))
    assert [moved.choice.name for moved in result.moved] == [choice.name for choice in choices]
    assert told[-1] == (27, 27, choices[-1].name) and [done for done, _, _ in told] == sorted(d for d, _, _ in told)
    poses = [to_tensor(to_frame(fit(frame, 32))) for frame in Frames(driving)]
    expected = {}
    for moved in result.moved[1:]:
        with moved.choice.acting() as host:
            made = Animator(host, fit(read_picture(source), 32), Motion()).frames(poses, 8)
        with moved.choice.acting(), write_frames(tmp_path / "expected.mp4", Fraction(10)) as append:
            for _, one in made:
                append(to_frame(one))
        expected[moved.choice.memory] = np.stack(list(Frames(tmp_path / "expected.mp4")))
        assert np.array_equal(np.stack(list(Frames(moved.download))), expected[moved.choice.memory])
    assert not np.array_equal(expected[True], expected[False])
    for file, size in ((result.driving, 64), (result.moved[0].video, 64), (result.moved[1].video, 32)):
        shown = list(Frames(file).timed())
        assert len(shown) == 9 and shown[0].picture.shape == (size, size, 3)
        assert [float(one.time) for one in shown] == pytest.approx([n / 10 for n in range(9)], abs=1e-3)
    assert next(iter(Frames(result.together))).shape[1] % 5 == 0
    assert "9 frames in 0.90 s" in result.words and "synthetic" in result.words


def test_downloads_have_the_clip_s_sound_or_it_is_said_that_they_have_none(choices, brought, sounding, tmp_path):
    driving = sounding(brought / "b" / "clip.mp4", brought / "b" / "loud.mp4", seconds=1.5)
    result = run_job(Order(brought / "a" / "face.png", driving, (choices[0], choices[2])), Limits(), tmp_path)
    heard = sounds(driving)
    assert len(heard) > 10
    for file in (*(moved.download for moved in result.moved), result.together):
        assert sounds(file) == heard  # copied
    played = [len(sounds(file)) for file in (result.driving, *(moved.video for moved in result.moved))]
    assert played[:2] == [0, 0] and played[2] > 10  # one of those that play together
    assert ", with the clip's sound; " in result.words
    silent = run_job(Order(brought / "a" / "face.png", brought / "b" / "clip.mp4", choices[:1]), Limits(), tmp_path)
    assert not sounds(silent.together) and ", without sound: the clip has none that can be read" in silent.words


def test_hosts_whose_names_are_alike_have_a_file_each(choices, brought, tmp_path):
    alike = [dataclasses.replace(choices[0], name=name) for name in ("side by side", "side_by_side")]
    order = Order(brought / "a" / "face.png", brought / "b" / "clip.mp4", tuple(alike))
    result = run_job(order, Limits(), tmp_path)
    names = [moved.download.name for moved in result.moved]
    assert names == ["side_by_side_2.mp4", "side_by_side_3.mp4"] and result.together.name == "side_by_side.mp4"


def sounds(path):
    """The packets of a file's sound."""
    with av.open(str(path)) as container:
        return [
            bytes(packet) for stream in container.streams.audio for packet in container.demux(stream) if packet.size
        ]


def to_tensor(frame):
    return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255


def test_motion_counts_from_the_frame_that_is_most_like_the_source(choices, brought, tmp_path):
    driving = brought / "b" / "clip.mp4"
    picture = tmp_path / "fifth.png"
    Image.fromarray(list(Frames(driving))[5]).save(picture)
    moved = run_job(Order(picture, driving, (choices[2],)), Limits(), tmp_path).moved[0]
    assert moved.reference == 5


def test_the_page_of_each_person_shows_that_person(studio, brought):
    """Two jobs at a time, one with the memory and one without, through one host."""
    memory, off = list(studio.choices)[2], list(studio.choices)[1]
    alone = {}
    for key, name in (("a", memory), ("b", off)):
        alone[key] = frames_of(studio.animate(f"alone {key}", asked(brought, key, "b", name)))
    meet = threading.Barrier(2, timeout=60)

    def job(key, name):
        def together(done, total, what):
            if done == 0:
                meet.wait()  # both are at work before either goes on

        return frames_of(studio.animate(key, asked(brought, key, "b", name), together))

    with ThreadPoolExecutor(2) as pool:
        both = {key: pool.submit(job, key, name) for key, name in (("a", memory), ("b", off))}
    for key, future in both.items():
        assert np.array_equal(future.result(), alone[key])
    assert np.abs(alone["a"].astype(int) - alone["b"]).mean() > 1


def frames_of(result):
    return np.stack(list(Frames(result.moved[0].video)))


def test_a_pixel_reads_what_it_reads_in_the_frame_that_is_shown(choices, brought, tmp_path):
    order = Order(brought / "a" / "face.png", brought / "b" / "clip.mp4", choices[1:])
    result = run_job(order, Limits(), tmp_path)
    moved = result.remembering()
    assert moved is not None and moved.choice is choices[2]
    seen = look(moved, 7)
    written = list(Frames(moved.download))[7]
    assert np.abs(seen.picture.astype(int) - written).mean() < 5
    readings = read_pixel(seen, 0.3, 0.8)
    assert [one.scale for one in readings] == [0, 1]
    for view, one in zip(seen.views, readings, strict=True):
        height, width = one.readers.shape
        assert torch.allclose(one.shares.sum(), torch.tensor(1.0), atol=1e-5) and one.shares.shape == (4, 4)
        assert one.shares[one.row, one.column] == one.shares.max()
        assert torch.allclose(one.readers[int(0.8 * height), int(0.3 * width)], one.shares.max(), atol=1e-6)
        # who reads the place: the sum over all places is how much the whole picture reads
        usage = view.attention().usage[0]
        assert torch.allclose(one.readers.mean(), usage[one.row, one.column], atol=1e-6)
    with pytest.raises(UserError, match="whose memory acts"):
        look(result.moved[0], 0)
    with pytest.raises(UserError, match="frame: expected 0 … 8, got 9"):
        look(moved, 9)


def test_looking_at_a_memory_does_not_see_other_jobs(studio, brought):
    memory = list(studio.choices)[2]
    studio.animate("a", asked(brought, "a", "b", memory))
    studio.frame("a", 3)
    before = studio.pick("a", 0.5, 0.5).words
    stop = threading.Event()

    def work():
        while not stop.is_set():
            studio.animate("b", asked(brought, "b", "a", memory))

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(work)
        studio.frame("a", 3)
        after = studio.pick("a", 0.5, 0.5).words
        stop.set()
        busy.result()
    assert after == before


def test_a_click_shows_the_pictures_of_a_reading(studio, brought):
    memory = list(studio.choices)[2]
    studio.animate("a", asked(brought, "a", "b", "demo", memory))
    frame = studio.frame("a", studio.usual_frame("a"))
    assert np.asarray(Image.open(frame)).shape == (480, 480, 3)
    first, second = studio.pick("a", 0.1, 0.1), None
    assert {np.asarray(Image.open(path)).std() > 0 for path in (first.still, first.memory, first.readers)} == {True}
    memories = np.asarray(Image.open(first.memory))
    second = studio.pick("a", 0.7, 0.6)
    assert not first.memory.exists()  # one picture of each kind is kept
    assert np.asarray(Image.open(second.memory)).shape == memories.shape
    assert "| 0 | row " in second.words and "of 4×4" in second.words and "of 2.77 nats" in second.words


def test_what_a_page_cannot_ask_for(studio, brought, tmp_path):
    (tmp_path / "secret.png").write_bytes((brought / "a" / "face.png").read_bytes())
    (brought / "a" / "broken.mp4").write_bytes(b"no video")
    good = asked(brought, "a", "b", "demo")
    cases = {
        "source picture: expected one, none is chosen": Asked(None, good.driving, "demo"),
        "driving clip: expected one, none is chosen": Asked(good.source, "", "demo"),
        "source picture: expected a file that was uploaded here": Asked(
            str(tmp_path / "secret.png"), good.driving, "demo"
        ),
        "host: expected one of demo, ": Asked(good.source, good.driving, "../x"),
        "smoothing: expected 0 … 2 seconds, got 9": asked(brought, "a", "b", "demo", smooth=9),
        "motion: expected one of relative, absolute": asked(brought, "a", "b", "demo", motion="x"),
        "broken.mp4: expected a video, it cannot be read as one": Asked(
            good.source, str(brought / "a" / "broken.mp4"), "demo"
        ),
        "clip.mp4: expected a picture, it cannot be read as one": Asked(good.driving, good.driving, "demo"),
    }
    for message, one in cases.items():
        with pytest.raises(UserError) as caught:
            studio.animate("a", one)
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)  # files by their names alone
    for call in (lambda: studio.frame("a", 0), lambda: studio.pick("a", 0.5, 0.5)):
        with pytest.raises(UserError, match="there is none yet"):
            call()
    studio.animate("a", asked(brought, "a", "b", "demo", NONE))
    assert studio.usual_frame("a") == 0
    with pytest.raises(UserError, match="expected a host whose memory acts"):
        studio.pick("a", 0.5, 0.5)


def test_files_are_bounded(brought, tmp_path, monkeypatch):
    picture, clip = brought / "a" / "face.png", brought / "a" / "clip.mp4"
    assert len(list(Limits(seconds=0.9).clip(clip))) == 9
    with pytest.raises(UserError, match=r"up to 0.5 s and 15 frames, it goes on; cut it, or start memcomp ui with"):
        list(Limits(seconds=0.5).clip(clip))
    with pytest.raises(UserError, match=r"up to 0.2 s and 6 frames, it has 9"):
        next(Limits(seconds=0.2).clip(clip))
    with pytest.raises(UserError, match=r"face.png: expected a file of up to 0 MB, found 0.0 MB"):
        Limits(megabytes=0).picture(picture)
    monkeypatch.setattr("memcomp.experiments.ui.limits.PIXELS", 48 * 48 - 1)
    for call in (lambda: Limits().picture(picture), lambda: list(Limits().clip(clip))):
        with pytest.raises(UserError, match=r"million pixels, found 48×48"):
            call()


def test_a_clip_that_breaks_off_is_used_as_far_as_it_goes(studio, brought):
    broken = brought / "b" / "cut.webm"
    with write_frames(broken, Fraction(10)) as append:
        for seed in range(9):  # noise, so that every frame takes room in the file
            append(np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    content = broken.read_bytes()
    broken.write_bytes(content[: int(len(content) * 0.7)])
    result = studio.animate("a", Asked(str(brought / "a" / "face.png"), str(broken), "demo"))
    count = len(list(Frames(result.moved[0].video)))
    assert 0 < count < 9 and f"{count} frames" in result.words
    assert "incomplete: cut.webm" in result.words and str(brought) not in result.words


def test_a_closed_page_leaves_nothing(studio, brought, tmp_path):
    results = tmp_path / "results"
    studio.animate("a", asked(brought, "a", "b", "demo"))
    studio.animate("a", asked(brought, "a", "b", "demo"))
    studio.animate("b", asked(brought, "b", "b", "demo"))
    assert [len(list(session.iterdir())) for session in results.iterdir()] == [1, 1]  # the last job's alone
    studio.sessions.end("a")
    left = sorted(str(path.relative_to(brought)) for path in brought.rglob("*") if path.is_file())
    assert left == ["a/clip.mp4", "b/clip.mp4", "b/face.png"]  # a/clip.mp4 nobody named; the other page has b's
    with pytest.raises(UserError, match="load it again"):
        studio.animate("a", asked(brought, "b", "b", "demo"))
    studio.sessions.end("b")
    studio.sessions.end("never seen")
    assert not list(results.iterdir()) and [path.name for path in brought.rglob("*.*")] == ["clip.mp4"]


def test_a_page_that_is_closed_while_it_works_leaves_nothing(studio, brought, tmp_path):
    def close(done, total, what):
        studio.sessions.end("a")

    with pytest.raises(Stopped):
        studio.animate("a", asked(brought, "a", "b", "demo"), close)
    assert not list((tmp_path / "results").iterdir())
    assert sorted(path.parent.name + "/" + path.name for path in brought.rglob("*.*")) == ["a/clip.mp4", "b/face.png"]


def test_rendered_heads_to_try_it_with(studio):
    picture, clip = studio.heads("a")
    assert read_picture(picture).shape == (128, 128, 3) and len(list(Frames(clip))) == 50
    result = studio.animate("a", Asked(str(picture), str(clip), "demo"))
    assert len(list(Frames(result.driving))) == 50


def test_a_host_that_takes_no_plain_pictures_is_refused_at_once():
    weights = str(weights_folder() / "true_motion_paper.safetensors")
    with pytest.raises(UserError, match=r"true_motion_paper.safetensors: expected a host that moves plain pictures; "):
        read_models([weights], torch.device("cpu"))
