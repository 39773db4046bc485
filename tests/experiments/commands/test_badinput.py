"""Wrong input on the command line: exit code 2, one line that names the thing, nothing half-written."""

import re
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.cli import main


@pytest.fixture
def files(tmp_path, small_recipe, small_run, small_host, clips_root):
    """Good and bad inputs; the working folder's contents before each command."""
    iio.imwrite(tmp_path / "face.png", np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    damaged = tmp_path / "clips" / "test"
    damaged.mkdir(parents=True)
    whole = (clips_root / "test" / "a_1.mp4").read_bytes()
    (damaged / "broken_1.mp4").write_bytes(whole[: len(whole) // 2])
    save_run(tmp_path / "whole.safetensors", small_recipe, small_host, 7)
    with safe_open(tmp_path / "whole.safetensors", "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(tmp_path / "whole.safetensors")
    key = next(key for key, value in tensors.items() if value.ndim == 4)
    tensors[key] = tensors[key].clone()
    save_file(tensors, tmp_path / "bare.safetensors", {"format": metadata["format"], "recipe": "{"})
    tensors[key][0, 0, 0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors", metadata)
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)))
    return {
        "tmp": str(tmp_path),
        "run": str(small_run),
        "clips": str(clips_root),
        "nan_key": key.removeprefix("model."),
    }


ANIMATE = "animate --checkpoint {run} --source {tmp}/face.png --driving {clips}/test/a_1.mp4 --output {tmp}/out.mp4"
EVALUATE = "evaluate {run} --pairs 2 --output {tmp}/out"
CASES = {
    "no checkpoint": (ANIMATE.replace("{run}", "{tmp}/none.safetensors"), "none.safetensors: expected a checkpoint"),
    "no source": (ANIMATE.replace("face", "none"), "none.png: expected a picture, found nothing"),
    "source is no picture": (ANIMATE.replace("face.png", "text.mp4"), "text.mp4: expected a picture"),
    "no driving": (ANIMATE.replace("a_1", "none"), "none.mp4: expected a video or a folder of pictures"),
    "driving is no video": (ANIMATE.replace("{clips}/test/a_1", "{tmp}/text"), "text.mp4: expected a video"),
    "driving is an empty folder": (
        ANIMATE.replace("{clips}/test/a_1.mp4", "{tmp}/empty"),
        "empty: expected a folder of",
    ),
    "output of no form": (ANIMATE.replace("out.mp4", "out.avi"), "out.avi: expected an output name that ends in .mp4"),
    "output below a file": (ANIMATE.replace("out.mp4", "file/out.mp4"), "file: expected a folder that can be written"),
    "a size that is lost": (
        "train demo/fomm --output {tmp}/out size=63",
        "size: expected one that it keeps, it makes 62 of 63",
    ),
    "a motion of another host": (ANIMATE + " --motion avd", "expected one of relative, absolute of the host 'fomm'"),
    "batch of none": (ANIMATE + " --batch 0", "--batch: expected 1 or more, got 0"),
    "no such device": (ANIMATE + " --device teapot", "device: expected auto, cpu or cuda, got 'teapot'"),
    "not a checkpoint": (
        EVALUATE.replace("{run}", "{tmp}/text.safetensors"),
        "text.safetensors: expected a checkpoint",
    ),
    "folder without a run": (EVALUATE.replace("{run}", "{tmp}/empty"), "empty: expected a run's folder"),
    "weights not finite": (EVALUATE.replace("{run}", "{tmp}/nan.safetensors"), "{nan_key} is not finite"),
    "checkpoint without its recipe": (
        EVALUATE.replace("{run}", "{tmp}/bare.safetensors"),
        "bare.safetensors: expected recipe, step and info",
    ),
    "another width": (
        EVALUATE + " host.model.generator_params.block_expansion=6",
        r"has shape \(8, 4, 3, 3\), the recipe's host expects \(8, 6, 3, 3\)",
    ),
    "wrong key": (EVALUATE + " data.rot=x", "unknown key 'data.rot'; did you mean 'data.root'"),
    "evaluation's output below a file": (
        EVALUATE.replace("{tmp}/out", "{tmp}/file/out"),
        "expected a folder that can be",
    ),
    "a pair's number out of range": (EVALUATE + " --seed 99999999999999999999", "--seed: expected 0 or more, got 9999"),
    "videos of no frame": (EVALUATE + " --video-frames 0", "--video-frames: expected 1 or more, got 0"),
    "negative width": (
        EVALUATE + " host.model.generator_params.block_expansion=-3",
        "block_expansion: expected a number above 0, got -3",
    ),
    "output is the driving video": (
        ANIMATE.replace("{tmp}/out.mp4", "{clips}/test/a_1.mp4"),
        "a_1.mp4: expected an output that is neither",
    ),
    "name too long": (ANIMATE.replace("face", 300 * "o"), "oo.png: File name too long"),
    "clips of odd size": (
        "heads --output {tmp}/out --size 33 --identities 1 --frames 1",
        "size = 33, expected an even number",
    ),
    "pairs file is no text": (
        EVALUATE + " --pairs-file {tmp}/bytes.csv data.kind=clips data.root={clips}",
        "bytes.csv: expected columns source, driving",
    ),
    "comparison of no pairs": (
        "compare demo/fomm demo/fomm_mcnet --pairs 0 --output {tmp}/out",
        "--pairs: expected 1 or more, got 0",
    ),
    "comparison without its file of pairs": (
        "compare demo/clips_fomm demo/clips_fomm_mcnet --pairs-file {tmp}/no.csv --output {tmp}/out data.root={clips}",
        "no.csv: expected a CSV file of pairs",
    ),
    "no pairs": (EVALUATE + " --pairs 0", "--pairs: expected 1 or more, got 0"),
    "clips: none": (EVALUATE + " data.kind=clips data.root={tmp}/empty", "empty: expected clips"),
    "clips: no folder": (EVALUATE + " data.kind=clips data.root={tmp}/none", "none: expected a folder of clips"),
    "clips: damaged": (EVALUATE + " --same data.kind=clips data.root={tmp}/clips", "broken_1.mp4: expected a video"),
    "no pairs file for heads": (EVALUATE + " --pairs-file {tmp}/pairs.csv", "pairs.csv: expected a CSV file of pairs"),
    "no pairs file": (
        EVALUATE + " --pairs-file {tmp}/pairs.csv data.kind=clips data.root={clips}",
        "pairs.csv: expected a CSV file of pairs, found nothing",
    ),
    "demo of no steps": ("demo --steps 0 --output {tmp}/out", "--steps: expected 1 or more, got 0"),
    "demo's host of no steps": ("demo --host-steps 0 --output {tmp}/out", "--host-steps: expected 1 or more, got 0"),
    "demo of an unknown key": ("demo foo=3 --output {tmp}/out", "unknown key 'foo'"),
    "unknown option": (EVALUATE + " --parse 3", "unrecognized arguments: --parse 3"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_one_line_and_exit_code_2(case, files, tmp_path, capsys):
    command, message = CASES[case]
    before = sorted(path for path in tmp_path.rglob("*"))
    try:
        code = main(command.format(**files).split())
    except SystemExit as exit:  # argparse's own
        code = exit.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("memcomp")
    assert re.search(message.format(**files), lines[0]), lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_installed_command_prints_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "memcomp.experiments.cli", "evaluate", str(tmp_path / "none"), "--pairs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"memcomp: error: {tmp_path / 'none'}: expected a checkpoint, found nothing\n"
    assert done.stdout == ""
