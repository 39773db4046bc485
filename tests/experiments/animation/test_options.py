"""The options of `memcomp animate`: several inputs, forms, sizes, precisions, and what does not go together."""

import functools

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from memcomp.experiments.animation import Animator, Motion
from memcomp.experiments.animation import files as files_of_animation
from memcomp.experiments.cli import main
from memcomp.experiments.video import Frames, fit


@pytest.fixture
def files(clips_root, tmp_path):
    """Two faces and two driving videos."""
    for name in ("b_1", "c_1"):
        iio.imwrite(tmp_path / f"{name}.png", next(iter(Frames(clips_root / "test" / f"{name}.mp4"))))
    faces = [str(tmp_path / f"{name}.png") for name in ("b_1", "c_1")]
    return faces, [str(clips_root / "test" / f"{name}.mp4") for name in ("a_1", "a_2")]


@pytest.fixture
def animate(small_run, files, tmp_path):
    def command(*words, sources=1, drivings=1, output="out"):
        faces, videos = files
        given = ["--source", *faces[:sources], "--driving", *videos[:drivings], "--output", str(tmp_path / output)]
        return main(["animate", "--checkpoint", str(small_run), *given, "--no-best-frame", *map(str, words)])

    return command


def shown(path):
    return np.stack(list(Frames(path))).astype(int)


def test_several_sources_and_drivings_are_files_of_a_folder(animate, tmp_path, capsys):
    assert animate("--form", "png", sources=2, drivings=2) == 0
    names = ["b_1_a_1", "b_1_a_2", "c_1_a_1", "c_1_a_2"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert len(capsys.readouterr().out.splitlines()) == 4
    several = {name: shown(tmp_path / "out" / name) for name in names}
    assert animate(output="alone") == 0
    assert np.array_equal(shown(tmp_path / "alone"), several["b_1_a_1"])
    assert not np.array_equal(several["b_1_a_1"], several["c_1_a_1"])


def test_a_driving_video_is_looked_at_once_for_all_sources(animate, monkeypatch, tmp_path, capsys):
    looked, look = [], files_of_animation._look
    monkeypatch.setattr(files_of_animation, "_look", lambda *words: looked.append(words[1].frames.path) or look(*words))
    assert animate("--best-frame", "--form", "png", sources=2, drivings=2) == 0
    assert [path.stem for path in looked] == ["a_1", "a_2"]
    assert capsys.readouterr().out.count("motion counts from frame") == 4
    assert animate("--best-frame", output="alone") == 0
    assert np.array_equal(shown(tmp_path / "alone"), shown(tmp_path / "out" / "b_1_a_1"))


def test_a_grid_holds_sources_above_results(animate, tmp_path):
    assert animate(output="alone") == 0
    assert animate("--grid", sources=2, output="grid") == 0
    grid = shown(tmp_path / "grid")
    assert grid.shape == (9, 64, 96, 3)
    assert np.abs(grid[:, 32:, 32:64] - shown(tmp_path / "alone")).max() <= 1
    assert (grid[:, 32:, :32] == 255).all()  # nothing below the driving frame
    assert (grid[:, :32, 32:64] == grid[:1, :32, 32:64]).all() and (grid[0, :32, :32] != grid[-1, :32, :32]).any()
    assert animate("--grid", "--labels", sources=2, output="labelled") == 0
    labelled = shown(tmp_path / "labelled")
    assert labelled.shape == (9, 64 + 28, 96, 3) and np.array_equal(labelled[:, 28:], grid)
    assert labelled[0, :28].min() < 100 < labelled[0, :28].mean()


def test_every_form_says_that_it_is_synthetic_and_whether_it_has_sound(animate, tmp_path, capsys):
    assert animate(output="plain") == 0
    pictures = shown(tmp_path / "plain")
    for name, sound in (
        ("a.mp4", ", without sound"),
        ("a.webm", ", without sound"),
        ("a.gif", "the form has no sound"),
    ):
        assert animate(output=name) == 0
        assert sound in capsys.readouterr().out
        assert np.abs(shown(tmp_path / name) - pictures).mean() < 8
    for name in ("a.mp4", "a.webm"):
        with av.open(str(tmp_path / name)) as container:
            about = {key.lower(): value for key, value in container.metadata.items()}
        assert about["comment"].startswith("synthetic")
    assert b"synthetic" in (tmp_path / "a.gif").read_bytes()
    assert "synthetic" in Image.open(tmp_path / "plain" / "frame_000000.png").text["Comment"]


def test_another_size_and_the_contact_sheet(animate, tmp_path, capsys):
    assert animate("--size", 48, "--contact-sheet", output="a.mp4") == 0
    assert "9 frames of 48×48" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "a_sheet.png").convert("RGB"))
    assert sheet.shape[1] > 3 * sheet.shape[0] and sheet.std() > 10
    assert animate("--size", 33, output="b.mp4") == 2
    assert "size: the host 'fomm' takes no pictures of 33×33" in capsys.readouterr().err
    assert animate("--size", 63, "--checkpoint", "demo", output="b.mp4") == 2
    assert "size: expected one that the host 'fomm' keeps, it makes 62 of 63" in capsys.readouterr().err
    assert not (tmp_path / "b.mp4").exists()


def test_half_precision_and_compilation_change_little(small_host, clips_root, monkeypatch):
    source, *poses = [fit(frame, 32) for frame in Frames(clips_root / "test" / "a_1.mp4")][:6]
    plain = torch.stack([result for _, result in Animator(small_host, source, Motion()).frames(poses, 2)])
    half = Animator(small_host, source, Motion(), dtype=torch.bfloat16)
    rounded = torch.stack([result for _, result in half.frames(poses, 2)])
    assert rounded.dtype == torch.float32 and 0 < (rounded - plain).abs().mean() < 0.02
    assert torch.equal(half.keypoints.value, Animator(small_host, source, Motion()).keypoints.value)
    batches = []
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled = Animator(small_host, source, Motion(), compiled=True)
    generate = compiled._generate
    compiled._generate = lambda encoded, moved: batches.append(len(moved.value)) or generate(encoded, moved)
    again = torch.stack([result for _, result in compiled.frames(poses, 2)])
    assert torch.allclose(again, plain, atol=1e-5) and batches == [2, 2, 2]  # the last one filled up


def test_where_nothing_compiles_one_line_says_so(animate, tmp_path, monkeypatch, capsys):
    def refuse(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=refuse))
    assert animate("--compile", output="out.mp4") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "compile: expected what torch.compile needs, a C++ compiler (CXX, g++) and on a GPU Triton: " in line
    assert "No working C++ compiler found" in line and not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--paste", "--grid"], "--paste: expected without --side-by-side and --grid"),
        (["--grid", "--side-by-side"], "--grid: expected without --side-by-side"),
        (["--face", "1"], "--face: expected with --crop auto"),
        (["--labels"], "--labels: expected with --side-by-side or --grid"),
        (["--smooth", "-1"], "--smooth: expected 0 or more, got -1"),
        (["--smooth", "nan"], "--smooth: expected 0 or more, got nan"),
        (["--crop", "0,0,90"], "b_1.png: expected a square of 8 pixels or more inside of its 48×48, got 0,0,90"),
    ],
)
def test_what_does_not_go_together_is_refused(words, said, animate, tmp_path, capsys):
    assert animate(*words, output="new.mp4") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new.mp4").exists()


def test_several_results_need_a_folder(animate, tmp_path, capsys):
    assert animate(sources=2, output="new.mp4") == 2
    assert "new.mp4: expected a folder for 2 results, or --grid" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert animate() == 2
    assert "out: expected a new or an empty folder" in capsys.readouterr().err
