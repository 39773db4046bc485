"""Lists of pairs as upstream writes them: other people's folders, some clips missing, some rows damaged."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.clip_pairs import is_cross
from memcomp.experiments.evaluation.options import CROSS, SAME, PairOptions
from memcomp.experiments.evaluation.pair_lists import ListedClips, ListReport, read_list, write_list
from memcomp.experiments.evaluation.pairs import evaluation_pairs

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


def read(path, root, count=None, report=None):
    """Pairs of a list, of clips below a folder."""
    return read_list(path, ListedClips(root, 32).pair, count, report or ListReport())


def frames(pairs):
    """Name of the source's clip, its frame, the same of the driving one, and the best frame."""
    found = []
    for pair in pairs:
        (source, s), (driving, d) = pair.source_at, pair.driving_at
        found.append((pair.clips.name(source)[:3], s, pair.clips.name(driving)[:3], d, pair.start))
    return found


def test_upstream_s_paths_are_found_by_the_clip_s_name(voxceleb, tmp_path):
    one, two, three = (
        f"{THERE}/{name}" for name in ("id1#a#0001#0009.mp4", "id2#b#0001#0009.mp4", "id3#c#0001#0009.mp4")
    )
    rows = [f"{one}/0000003.png,{two}/0000005.png,{two}/0000002.png", f"{three}/0000004.png,{three}#6,"]
    pairs = read(listed(tmp_path / "a.csv", *rows), voxceleb)
    assert frames(pairs) == [("id1", 2, "id2", 5, 2), ("id3", 4, "id3", 6, 0)]
    assert [is_cross(pair) for pair in pairs] == [True, False]
    frame = iio.imread(voxceleb / "test" / "id1#a#0001#0009.mp4" / "0000003.png")
    assert float(pairs[0].source.mean()) == pytest.approx(frame.mean() / 255, abs=0.01)  # not the fourth file's
    short = [f"{one}/0000001.png,{two}/0000000.png,4", f"{two}/0000001.png,{two}/0000000.png", f"{one},{two},3"]
    pairs = read(listed(tmp_path / "b.csv", *short, header="source,driving,frame"), voxceleb)
    assert frames(pairs) == [("id1", 1, "id2", 0, 4), ("id2", 1, "id2", 0, 0), ("id1", 0, "id2", 3, 3)]


def test_celebv_s_pictures_belong_to_the_person_whose_folder_holds_them(tmp_path):
    for person in ("Ann_Lee", "Ann_Moe"):
        (tmp_path / person / "Image").mkdir(parents=True)
        for number in (54394, 7, 123):
            iio.imwrite(tmp_path / person / "Image" / f"P_{number:010d}.jpg", np.full((32, 32, 3), 99, np.uint8))
    one, two = (f"/data/CelebV/{person}/Image" for person in ("Ann_Lee", "Ann_Moe"))
    rows = [f"{one}/P_0000054394.jpg,{two}/P_0000000007.jpg,", f"{one}/P_0000000123.jpg,{one}/P_0000000007.jpg,"]
    pairs = read(listed(tmp_path / "celebv.csv", *rows), tmp_path)
    assert [is_cross(pair) for pair in pairs] == [True, False]
    assert [(pair.source_at[1], pair.driving_at[1]) for pair in pairs] == [(2, 0), (1, 0)]  # sorted by name
    assert pairs[0].name == "Ann_Lee#2_Ann_Moe#0" and pairs[0].source.shape == (3, 32, 32)


def test_rows_that_cannot_be_used_are_named_and_the_others_stay(voxceleb, tmp_path):
    two = f"{THERE}/id2#b#0001#0009.mp4"
    good = f"{two}/0000001.png,{two}/0000004.png,"
    missing = [
        f"{THERE}/id9#z#0001#0009.mp4/0000001.png,{two}/0000004.png,",
        f"{THERE}/id1#a#0001#0009.mp4/0000002.png,{two}/0000004.png,",
        f"{two}#1,{two}#99,",
    ]
    unreadable = [
        f"{two}/0000001.png,,",
        f"{two}/0000001.png",
        f"{two}/0000001.png,{two}/0000004.png,{THERE}/id1#a#0001#0009.mp4/0000000.png",
        f"{good},one more",
        f'"{two}/0000001.png,{two}/0000004.png,',
        f"{'x' * 300}.mp4#1,{two}#1,",
    ]
    path = listed(tmp_path / "a.csv", good, *missing, *unreadable, good)
    with path.open("ab") as file:
        file.write(b"\xff\xfe,b,\n" + good.encode())
    report = ListReport()
    assert len(read(path, voxceleb, report=report)) == 3
    assert (report.rows, report.pairs, len(report.missing), len(report.unreadable)) == (13, 3, 3, 7)
    numbers = [int(line.split("line ")[1].split(":")[0]) for line in report.missing + report.unreadable]
    assert numbers == [3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert "source" in report.missing[0] and "driving ''" in report.unreadable[0]
    assert "expected a frame of the driving clip" in report.unreadable[2] and "UTF-8" in report.unreadable[6]
    assert "3 of 13 rows taken; 3 missing on disk" in str(report)
    report = ListReport()
    assert len(read(path, voxceleb, 1, report)) == 1 and report.rows == 13  # what is missing is counted all the same
    with pytest.raises(UserError, match=r"found none; none.csv, line 2.*id9.*no such clip below .*; none.csv, line 3"):
        read(listed(tmp_path / "none.csv", *missing[:2]), voxceleb)
    with pytest.raises(
        UserError, match=r"found none; whole.csv, line 2: source 'nobody.mp4': no such clip below"
    ) as told:
        read(listed(tmp_path / "whole.csv", "nobody.mp4,nobody.mp4,"), voxceleb, report=report)
    assert "a.csv" not in str(told.value)  # whose rows stand in the same report
    with pytest.raises(UserError, match="driving is missing"):
        read(listed(tmp_path / "other.csv", header="source,target"), voxceleb)


def test_a_list_that_was_written_names_the_same_pairs(voxceleb, small_recipe, tmp_path):
    two, three = f"{THERE}/id2#b#0001#0009.mp4", "id3#c#0001#0009.mp4"
    rows = [f"{two}/0000001.png,{two}/0000004.png,{two}#3", f"{three}#1,{two}#5,"]
    pairs = read(listed(tmp_path / "a.csv", *rows), voxceleb)
    write_list(tmp_path / "b.csv", {SAME: pairs[:1], CROSS: pairs[1:]})
    assert frames(read(tmp_path / "b.csv", voxceleb)) == frames(pairs)
    heads = evaluation_pairs(small_recipe, [SAME, CROSS], PairOptions(4, 5))
    write_list(tmp_path / "heads.csv", heads)
    again = evaluation_pairs(small_recipe, [SAME, CROSS], PairOptions(files=(tmp_path / "heads.csv",)))
    assert {kind: list(pairs.places) for kind, pairs in again.items()} == {k: list(p.places) for k, p in heads.items()}
    text = (tmp_path / "heads.csv").read_text().splitlines()
    rate = text[1].split(",")[-1]
    wrong = [text[0], f"nobody.mp4#1,nobody.mp4#2,{rate}", text[1].replace(f",{rate}", ",99"), text[1]]
    (tmp_path / "wrong.csv").write_text("\n".join(wrong))
    report = ListReport()
    evaluation_pairs(small_recipe, [SAME], PairOptions(files=(tmp_path / "wrong.csv",)), report)
    assert len(report.unreadable) == 2 and "rate '99'" in report.unreadable[1]


def test_evaluate_and_benchmark_report_what_was_left_out(small_run, voxceleb, tmp_path, capsys):
    two = f"{THERE}/id2#b#0001#0009.mp4"
    rows = [f"{two}/0000001.png,{two}/0000004.png,", "gone.mp4#1,gone.mp4#2,", f"{two}/0000000.png,{two}/0000002.png,"]
    path = str(listed(tmp_path / "a.csv", *rows))
    words = ["--root", str(voxceleb), "--pairs-file", path]
    assert main(["evaluate", str(small_run), *words, "--output", str(tmp_path / "one")]) == 0
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert metrics["pairs"] == {"same identity": 2} and len(metrics["lists"]["missing"]) == 1
    assert "2 of 3 rows taken; 1 missing on disk" in capsys.readouterr().out
    words += ["--repeats", "0", "--no-report"]
    assert main(["benchmark", str(small_run), *words, "--output", str(tmp_path / "two")]) == 0
    content = json.loads((tmp_path / "two" / "benchmark.json").read_text())
    assert content["pairs"] == {"same identity": 2} and content["lists"] == metrics["lists"]
    assert "a.csv, line 3: source 'gone.mp4#1'" in (tmp_path / "two" / "report.md").read_text()
