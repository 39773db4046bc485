"""A head turned to another view, without a driving video and on top of one; and how far it turned."""

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from memcomp.adapters import create_host
from memcomp.experiments.animation import Animator, Motion
from memcomp.experiments.cli import main
from memcomp.experiments.studies import free_view
from memcomp.experiments.video import Frames, fit, to_frame

MODEL = {
    "common_params": {"num_kp": 4, "feature_channel": 4},
    "kp_detector_params": {
        **{"temperature": 0.1, "block_expansion": 4, "max_features": 8, "scale_factor": 0.5, "num_blocks": 2},
        **{"reshape_channel": 32, "reshape_depth": 4},
    },
    "he_estimator_params": {"block_expansion": 4, "widths": [8, 8, 12, 16]},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 16, "num_down_blocks": 1, "reshape_channel": 4, "reshape_depth": 4},
        **{"num_resblocks": 1, "estimate_occlusion_map": True},
        "dense_motion_params": {
            **{"block_expansion": 4, "max_features": 8, "num_blocks": 2, "reshape_depth": 4, "compress": 2},
        },
    },
}
TURN = (30.0, -10.0, 5.0)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A small host with a free view, and its folder."""
    torch.manual_seed(0)
    made = create_host("facevid2vid", MODEL).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("host")
    made.save_pretrained(folder, size=32)
    return made, folder


@pytest.fixture(scope="module")
def picture(clips_root, tmp_path_factory):
    """A file, and what a host is given of it."""
    path = tmp_path_factory.mktemp("picture") / "face.png"
    frame = next(iter(Frames(clips_root / "test" / "b_1.mp4")))
    iio.imwrite(path, frame)
    return path, fit(frame, 32)


def test_a_source_turns_from_its_own_pose_to_the_view(host, picture, tmp_path, capsys):
    network, folder = host
    path, source = picture
    command = ["animate", "--checkpoint", str(folder), "--source", str(path), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "turn"), "--yaw", "30", "--pitch=-10", "--roll", "5"]) == 0
    assert "25 frames of 32×32" in capsys.readouterr().out
    written = [iio.imread(file) for file in sorted((tmp_path / "turn").iterdir())]
    assert len(written) == 25
    animator = Animator(network, source, Motion())
    assert np.array_equal(written[0], to_frame(animator.itself()))
    (view,) = animator.view(torch.tensor([TURN]))
    assert np.array_equal(written[-1], to_frame(view)) and not np.array_equal(written[-1], written[0])
    assert main([*command, "--output", str(tmp_path / "turn.mp4"), "--yaw", "30"]) == 0
    assert len(list(Frames(tmp_path / "turn.mp4"))) == 25


def test_a_turn_is_added_to_the_driving_motion(host, picture, clips_root):
    network, _ = host
    _, source = picture
    poses = [fit(frame, 32) for frame in Frames(clips_root / "test" / "a_1.mp4")][:3]
    for mode in ("relative", "absolute"):
        animator = Animator(network, source, Motion(mode, adapt_scale=False, turn=TURN))
        made = [result for _, result in animator.frames(poses, 2)]
        with torch.inference_mode():
            kp, first = network.keypoints(torch.stack(poses)), network.keypoints(poses[0][None])
            turned, relative = network.turned(kp, torch.tensor(TURN)), mode == "relative"
            moved = network.transfer_motion(animator.keypoints, turned, first, relative=relative, adapt_scale=False)
            three = source.expand(3, -1, -1, -1)
            expected = network.generate(three, animator.keypoints.expand(3), moved).prediction
        torch.testing.assert_close(torch.stack(made), expected, atol=1e-5, rtol=0)
        plain = Animator(network, source, Motion(mode, adapt_scale=False))
        assert not torch.allclose(torch.stack([result for _, result in plain.frames(poses, 2)]), expected, atol=1e-3)


def test_a_whole_video_is_turned_smoothed_and_its_best_frame_found(host, picture, clips_root, tmp_path):
    command = ["animate", "--checkpoint", str(host[1]), "--source", str(picture[0]), "--device", "cpu", "--yaw", "20"]
    driving = ["--driving", str(clips_root / "test" / "a_1.mp4"), "--smooth", "0.1", "--no-adapt-scale"]
    assert main([*command, *driving, "--output", str(tmp_path / "moved.mp4")]) == 0
    assert len(list(Frames(tmp_path / "moved.mp4"))) == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--driving: expected a video to follow, or degrees by --yaw, --pitch or --roll"),
        (["--yaw", "10", "--grid"], "--grid: expected with --driving"),
        (["--yaw", "10", "--smooth", "1"], "--smooth: expected with --driving"),
        (["--yaw", "100"], "argument --yaw: expected a number from -90 to 90, got 100"),
        (["--yaw", "10", "--checkpoint", "demo"], "the host 'fomm' has no free view; facevid2vid has"),
        (["--yaw", "10", "--output", "{picture}"], "expected an output that is neither the source nor"),
    ],
)
def test_what_cannot_be_turned_is_refused(host, picture, tmp_path, capsys, words, said):
    words = [word.format(picture=picture[0]) for word in words]
    command = [
        "animate",
        "--checkpoint",
        str(host[1]),
        "--source",
        str(picture[0]),
        "--output",
        str(tmp_path / "x.mp4"),
    ]
    try:
        status = main([*command, *words])
    except SystemExit as stopped:  # argparse
        status = stopped.code
    assert status == 2 and said in capsys.readouterr().err and not (tmp_path / "x.mp4").exists()


class Reader:
    """Reads, of a source and its views, half of what was asked plus one degree."""

    about = "half"

    def __call__(self, pictures):
        return [np.array([1.0, 0, 0]), *(np.array([yaw / 2 + 1, 0, 0]) for yaw in free_view.YAWS)]


def test_measured_yaw_is_compared_with_asked_yaw(host, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(free_view, "create_backend", lambda *_: Reader())
    free_view.main([str(host[1]), "--heads", "2", "--json", str(tmp_path / "found.json")])
    said = capsys.readouterr().out
    errors = [abs(1 - yaw / 2) for yaw in free_view.YAWS]
    assert f"r 1.000, slope 0.50, mean error {sum(errors) / 7:.1f}° (of the sources 1.0°)" in said
    assert "asked -30°: measured -14.0° ± 0.0" in said and (tmp_path / "found.json").is_file()
