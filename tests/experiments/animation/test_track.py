"""The best frame by the host's keypoints, and smoothing that delays nothing, or says by how much."""

import math

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from memcomp.adapters import Keypoints
from memcomp.experiments.animation import Animator, Motion
from memcomp.experiments.animation.track import CausalSmoother, Track, normalised
from memcomp.experiments.cli import main
from memcomp.experiments.video import Frames, fit


def track_of(values, rate=25):
    return Track([Keypoints(part) for part in values.split(4)], [i / rate for i in range(len(values))])


def test_the_best_frame_is_alike_whatever_the_heads_size_and_place():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(11, 6, 2, generator=generator)
    track = track_of(values)
    assert track.best_frame(Keypoints(values[7:8] * 0.3 + 0.4)) == 7
    assert torch.equal(track.keypoints(7).value, values[7:8]) and len(track) == 11
    line = torch.zeros(3, 2)
    assert torch.equal(normalised(line), line)  # no hull to scale by


def test_motion_counts_from_the_best_frame(small_host, clips_root):
    poses = [fit(frame, 32) for frame in Frames(clips_root / "test" / "a_1.mp4")]
    animator = Animator(small_host, poses[6], Motion())  # the source is one of the frames
    track = Track([animator.detect(poses)], [i / 10 for i in range(len(poses))])
    assert track.best_frame(animator.keypoints) == 6
    results = [result for _, result in animator.frames(poses, 4, track=track, reference=6)]
    with torch.no_grad():
        itself = small_host(poses[6][None], poses[6][None]).prediction[0]
    assert torch.allclose(results[6], itself, atol=1e-4)
    plain = [result for _, result in animator.frames(poses, 4)]
    assert torch.allclose(plain[0], itself, atol=1e-4) and not torch.allclose(plain[6], itself, atol=1e-3)


def test_smoothing_whole_videos_shifts_nothing_and_calms_noise():
    times = torch.arange(200) / 25
    slow = torch.stack([torch.sin(times), torch.cos(times)], dim=1)[:, None]  # (T, 1, 2)
    track = track_of(slow)
    track.smooth(0.1)
    inner = slice(20, -20)
    late = [(track.value[20:-20] - slow[20 + shift : 180 + shift]).abs().mean() for shift in (-1, 0, 1)]
    assert late[1] < 0.02 and late[1] < min(late[0], late[2])  # as it was, not a frame later or sooner
    assert abs(late[0] - late[2]) < 0.1 * late[0]
    noise = 0.1 * torch.randn(slow.shape, generator=torch.Generator().manual_seed(1))
    noisy = track_of(slow + noise)
    noisy.smooth(0.1)
    assert (noisy.value - track.value)[inner].std() < 0.6 * noise.std()


def test_a_step_is_smoothed_alike_on_both_sides_and_causally_later():
    step = torch.zeros(101, 1, 2)
    step[50] = 1
    track = track_of(step)
    track.smooth(0.2)
    assert torch.allclose(track.value, track.value.flip(0), atol=1e-3) and track.value.argmax() // 2 == 50
    causal = CausalSmoother(0.2, 25)
    jacobians = torch.eye(2).expand(101, 1, 2, 2)
    parts = [causal(Keypoints(step[i : i + 10], jacobians[i : i + 10])) for i in range(0, 101, 10)]
    answered = torch.cat([part.value for part in parts])
    assert not answered[:50].any() and torch.allclose(parts[0].jacobian, jacobians[:10])
    shares = answered[50:, 0, 0]
    mean = float((shares * torch.arange(51)).sum() / shares.sum()) / 25
    assert mean == pytest.approx(1 / 25 / (math.exp(1 / 5) - 1), rel=0.02)  # about 0.18 s: the delay that is said


def test_the_command_names_the_best_frame_and_does_without(small_run, clips_root, tmp_path, capsys):
    frames = list(Frames(clips_root / "test" / "a_1.mp4"))
    iio.imwrite(tmp_path / "face.png", frames[5])
    words = ["animate", "--checkpoint", str(small_run), "--source", str(tmp_path / "face.png")]
    words += ["--driving", str(clips_root / "test" / "a_1.mp4"), "--output", str(tmp_path / "out.mp4")]
    shown = {}
    for option in ([], ["--no-best-frame"], ["--motion", "absolute"], ["--no-best-frame", "--smooth", "0.3"]):
        assert main([*words, *option]) == 0
        said = capsys.readouterr().out
        assert ("motion counts from frame 5 (0.50 s) of " in said) == (not option)
        shown[" ".join(option)] = np.stack(list(Frames(tmp_path / "out.mp4"))).astype(int)
    plain = shown["--no-best-frame"]
    assert np.abs(shown[""][0] - plain[0]).max() > 2
    assert np.abs(shown["--no-best-frame --smooth 0.3"] - plain).max() > 2
