"""`memcomp animate`: each frame of the result belongs to its driving frame, however the work is cut."""

from fractions import Fraction

import imageio.v3 as iio
import pytest
import torch

from memcomp.adapters import Keypoints
from memcomp.experiments.animation import Motion, animate
from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.video import Frames, fit, read_picture


@pytest.fixture
def poses(clips_root):
    return [fit(frame, 32) for frame in Frames(clips_root / "test" / "a_1.mp4")]


@pytest.fixture
def source(clips_root):
    return fit(next(iter(Frames(clips_root / "test" / "b_1.mp4"))), 32)


def run(host, source, poses, motion=Motion(), batch=4):  # noqa: B008 (frozen)
    return [result for _, result in animate(host, source, poses, motion, batch)]


def test_absolute_motion_is_the_host_itself(small_host, source, poses):
    results = run(small_host, source, poses, Motion("absolute"))
    with torch.no_grad():
        for pose, result in zip(poses, results, strict=True):
            assert torch.allclose(result, small_host(source[None], pose[None]).prediction[0], atol=1e-5)


def test_relative_motion_starts_with_the_sources_own_pose(small_host, source, poses):
    results = run(small_host, source, poses)
    with torch.no_grad():
        itself = small_host(source[None], source[None]).prediction[0]
        assert torch.allclose(results[0], itself, atol=1e-4)
        kp_source, first, fifth = (small_host.keypoints(x[None]) for x in (source, poses[0], poses[5]))
        moved = small_host.transfer_motion(kp_source, fifth, first, relative=True, adapt_scale=True)
        expected = small_host.generate(source[None], kp_source, moved).prediction[0]
    assert torch.allclose(results[5], expected, atol=1e-4)
    assert not torch.allclose(results[5], results[0], atol=1e-4)


def test_the_batch_does_not_matter_and_bounds_what_is_read_ahead(small_host, source, poses):
    whole = run(small_host, source, poses, batch=100)
    for batch in (1, 4):
        parts = run(small_host, source, poses, batch=batch)
        assert torch.allclose(torch.stack(parts), torch.stack(whole), atol=1e-5)
    read = []
    frames = animate(small_host, source, (read.append(i) or pose for i, pose in enumerate(poses)), Motion(), 3)
    next(frames)
    assert len(read) == 3


def test_scale_adaptation_is_the_hosts(small_host, source, poses, monkeypatch):
    asked = []
    monkeypatch.setattr(small_host, "transfer_motion", lambda *a, **options: asked.append(options) or a[1])
    run(small_host, source, poses[:1], Motion(adapt_scale=False))
    run(small_host, source, poses[:1])
    assert [options["adapt_scale"] for options in asked] == [False, True]
    assert all(options["relative"] for options in asked)


def test_a_motion_that_the_host_lacks_and_pictures_it_refuses_are_reported(small_host, source, poses, monkeypatch):
    with pytest.raises(UserError, match="motion: expected one of relative, absolute of the host 'fomm', got 'avd'"):
        run(small_host, source, poses[:1], Motion("avd"))
    monkeypatch.setattr(type(small_host), "motion_modes", ("relative", "absolute", "avd"))
    asked = []
    monkeypatch.setattr(small_host, "transfer_motion", lambda *a, **options: asked.append(options) or a[1])
    run(small_host, source, poses[:1], Motion("avd"))
    assert asked[0]["mode"] == "avd"

    def refuse(image):
        raise ValueError("expected pictures with their disparity")

    monkeypatch.setattr(small_host, "keypoints", refuse)
    with pytest.raises(UserError, match="host 'fomm': expected pictures with their disparity"):
        run(small_host, source, poses[:1])


def test_keypoints_on_one_line_and_values_that_are_not_finite_are_reported(small_host, source, poses, monkeypatch):
    line = Keypoints(torch.zeros(1, 4, 2), torch.eye(2).expand(1, 4, 2, 2))
    with monkeypatch.context() as patch:
        patch.setattr(small_host, "keypoints", lambda image: line)
        with pytest.raises(UserError, match=r"first frame: .*one line"):
            run(small_host, source, poses[:1])
    with pytest.raises(UserError, match="not finite"):
        run(small_host, source / 0, poses[:1], Motion("absolute"))


def test_the_command_keeps_rate_and_length(small_run, clips_root, tmp_path, capsys):
    picture = tmp_path / "face.png"
    iio.imwrite(picture, next(iter(Frames(clips_root / "test" / "b_1.mp4")))[:, :40])
    output = tmp_path / "new" / "out.mp4"
    command = ["animate", "--checkpoint", str(small_run), "--source", str(picture)]
    command += ["--driving", str(clips_root / "test" / "a_1.mp4"), "--output", str(output), "--batch", "4"]
    assert main(command) == 0
    assert "9 frames of 32×32 at 10 per second, without sound" in capsys.readouterr().out
    frames = Frames(output)
    assert frames.frame_rate == Fraction(10)
    assert [frame.shape for frame in frames] == [(32, 32, 3)] * 9

    assert main([*command, "--side-by-side", "--motion", "absolute", "--no-adapt-scale"]) == 0
    beside = list(Frames(output))
    assert [frame.shape for frame in beside] == [(32, 96, 3)] * 9
    shown = fit(read_picture(picture), 32)
    assert (torch.from_numpy(beside[4][:, :32].copy()).permute(2, 0, 1) / 255 - shown).abs().mean() < 0.02
    assert [path.name for path in output.parent.iterdir()] == ["out.mp4"]
