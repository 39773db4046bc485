"""Lists of pairs as upstream writes them: other people's folders, some clips missing, some rows damaged."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

from memcomp.experiments.cli import main
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.data.eval_pairs import is_cross, read_pairs
from memcomp.experiments.errors import UserError

THERE = "/somewhere/else/vox1_frames/test"


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory, clip_writer):
    """A root with test/: two people's folders of frames in VoxCeleb's naming, the first of which lacks one frame."""
    root = tmp_path_factory.mktemp("vox")
    generator = np.random.default_rng(0)
    for name, numbers in (("id1#a#0001#0009.mp4", (0, 1, 3, 4)), ("id2#b#0001#0009.mp4", range(6))):
        (root / "test" / name).mkdir(parents=True)
        for number in numbers:
            picture = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            iio.imwrite(root / "test" / name / f"{number:07d}.png", picture)
    clip_writer(root / "test" / "id3#c#0001#0009.mp4", 3)
    return root


def listed(path, *rows, header="source,driving,best_frame"):
    """Write a list."""
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_upstream_s_paths_are_found_by_the_clip_s_name(voxceleb, tmp_path):
    clips = Clips(voxceleb / "test", 32)
    one, two, three = (
        f"{THERE}/{name}" for name in ("id1#a#0001#0009.mp4", "id2#b#0001#0009.mp4", "id3#c#0001#0009.mp4")
    )
    rows = [f"{one}/0000003.png,{two}/0000005.png,{two}/0000002.png", f"{three}/0000004.png,{three}#6,"]
    pairs = read_pairs(listed(tmp_path / "a.csv", *rows), clips, 9)
    assert [(p.source_at, p.driving_at, p.start) for p in pairs] == [((0, 2), (1, 5), 2), ((2, 4), (2, 6), 0)]
    assert [is_cross(pair) for pair in pairs] == [True, False]
    frame = iio.imread(voxceleb / "test" / "id1#a#0001#0009.mp4" / "0000003.png")
    assert float(pairs[0].source.mean()) == pytest.approx(frame.mean() / 255, abs=0.01)  # not the fourth file's
    number = read_pairs(
        listed(tmp_path / "b.csv", f"{one}/0000001.png,{two}/0000000.png,4", header="source,driving,frame"), clips, 9
    )
    empty = read_pairs(
        listed(tmp_path / "c.csv", f"{two}/0000001.png,{two}/0000000.png", header="source,driving,frame"), clips, 9
    )
    assert (number[0].start, empty[0].start) == (4, 0)


def test_rows_that_cannot_be_used_are_named_and_the_others_stay(voxceleb, tmp_path):
    clips = Clips(voxceleb / "test", 32)
    two = f"{THERE}/id2#b#0001#0009.mp4"
    good = f"{two}/0000001.png,{two}/0000004.png,"
    bad = [
        f"{THERE}/id9#z#0001#0009.mp4/0000001.png,{two}/0000004.png,",
        f"{THERE}/id1#a#0001#0009.mp4/0000002.png,{two}/0000004.png,",
        f"{two}/0000001.png,,",
        f"{two}/0000001.png",
        f"{two}/0000001.png,{two}/0000004.png,{THERE}/id1#a#0001#0009.mp4/0000000.png",
    ]
    path = listed(tmp_path / "a.csv", good, *bad, good)
    left_out = []
    assert len(read_pairs(path, clips, 100, left_out)) == 2
    assert [line.split(":")[0] for line in left_out] == [f"{path}, line {number}" for number in range(3, 8)]
    assert (
        "source" in left_out[0]
        and "driving ''" in left_out[2]
        and "best_frame is not of the driving clip" in left_out[4]
    )
    assert len(read_pairs(path, clips, 1, left_out := [])) == 1 and not left_out  # no further than needed
    with pytest.raises(UserError, match=r"line 3: source '.*id9.*expected <clip>#<frame> or <clip>/<frame>.png"):
        read_pairs(path, clips, 100)
    with pytest.raises(UserError, match=r"expected pairs, found none; .*line 2"):
        read_pairs(listed(tmp_path / "none.csv", bad[0]), clips, 100, [])


def test_evaluate_and_benchmark_report_what_was_left_out(small_run, voxceleb, tmp_path, capsys):
    two = f"{THERE}/id2#b#0001#0009.mp4"
    rows = [f"{two}/0000001.png,{two}/0000004.png,", "gone.mp4#1,gone.mp4#2,", f"{two}/0000000.png,{two}/0000002.png,"]
    path = str(listed(tmp_path / "a.csv", *rows))
    words = ["data.kind=clips", f"data.root={voxceleb}", "--pairs-file", path]
    assert main(["evaluate", str(small_run), *words, "--output", str(tmp_path / "one")]) == 0
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert metrics["pairs"] == {"same identity": 2} and len(metrics["pairs_left_out"]) == 1
    assert "1 rows of the list of pairs left out" in capsys.readouterr().out
    words = ["--set", "data.kind=clips", "--set", f"data.root={voxceleb}", "--pairs-file", path, "--repeats", "0"]
    assert main(["benchmark", str(small_run), *words, "--output", str(tmp_path / "two")]) == 0
    content = json.loads((tmp_path / "two" / "benchmark.json").read_text())
    assert content["pairs"] == {"same identity": 2} and content["pairs_left_out"] == metrics["pairs_left_out"]
    assert "a.csv, line 3: source 'gone.mp4#1'" in (tmp_path / "two" / "report.md").read_text()
