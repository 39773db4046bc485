"""Which files of a folder are clips, whose they are, in which order their frames come, and what is told of the rest."""

from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import pytest

from memcomp.experiments.cli import main
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.clip_pairs import draw_pairs, is_cross
from memcomp.experiments.evaluation.options import CROSS
from memcomp.experiments.evaluation.pair_lists import ListedClips, ListReport, read_list, write_list
from memcomp.experiments.video import VIDEOS, Frames

# suffix → container, codec, pixels
FORMS = {
    ".mkv": ("matroska", "libx264", "yuv420p"),
    ".AVI": ("avi", "mpeg4", "yuv420p"),
    ".m4v": ("mp4", "libx264", "yuv420p"),
    ".MTS": ("mpegts", "libx264", "yuv420p"),
    ".wmv": ("asf", "wmv2", "yuv420p"),
    ".gif": ("gif", "gif", "rgb8"),
}


def video(path: Path, form: str | None = None, codec: str = "libx264", pix: str = "yuv420p", **colours: int) -> Path:
    """Six frames; frame t is grey of brightness 20 t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.pix_fmt, stream.height, stream.width = pix, 32, 32
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for t in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * t, np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pix)))
        container.mux(stream.encode(None))
    return path


def picture(path: Path, brightness: int = 0, dtype: type = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (32, 32, 3) if dtype is np.uint8 else (32, 32)
    iio.imwrite(path, np.full(shape, brightness, dtype))
    return path


def junk(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\5\x16\7" + bytes(80))
    return path


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "names",
    [
        ("frame2.png", "frame10.png", "frame100.png"),
        ("9.jpg", "10.png", "11.PNG"),
        ("s1-2.png", "s1-10.png", "s2-1.png"),
        ("a3.png", "a20.png", "a².png"),  # str.isdigit takes the last for a number, int does not
    ],
)
def test_frames_come_in_the_order_of_their_numbers(tmp_path, names):
    for i, name in enumerate(names):
        picture(tmp_path / "anna_1" / name, 40 * i)
        junk(tmp_path / "anna_1" / f"._{name}")
    junk(tmp_path / "anna_1" / ".DS_Store")
    for frames in (Clips(tmp_path, 32).read(0, [0, 1, 2]), list(Frames(tmp_path / "anna_1"))):
        assert [round(float(np.asarray(frame).mean()) / 40) for frame in frames] == [0, 1, 2]


def test_clips_keep_the_order_of_their_characters(tmp_path):
    for name in ("anna_2.mp4", "anna_10.mp4", "anna_1.mp4", "Ben_1.mkv"):
        junk(tmp_path / "flat" / name)
        junk(tmp_path / "people" / name.partition("_")[0] / name)
    expected = ["Ben_1.mkv", "anna_1.mp4", "anna_10.mp4", "anna_2.mp4"]  # what a seed draws depends on it
    for form in ("flat", "people"):
        clips = Clips(tmp_path / form, 32)
        assert [path.name for path in clips.paths] == expected
        assert clips.people == [[0], [1, 2, 3]]


@pytest.mark.parametrize("suffix", FORMS)
def test_every_suffix_of_the_list_is_a_clip_whatever_its_case(tmp_path, suffix):
    video(tmp_path / f"anna_1{suffix}", *FORMS[suffix])
    clips = Clips(tmp_path, 16)
    assert (clips.name(0), clips.count(0), clips.owners) == (f"anna_1{suffix}", 6, ["anna"])
    assert [round(float(frame.float().mean()) / 20) for frame in clips.read(0, [0, 2, 5])] == [0, 2, 5]
    listed = "mp4 m4v mov mkv webm avi mpg ts mts wmv flv 3gp ogv gif"
    assert {f".{name}" for name in listed.split()} <= set(VIDEOS)


def people_of(root: Path) -> Path:
    """Two people, each with a `01`, once a video and once a folder of pictures; the second has another."""
    video(root / "anna" / "01.mp4")
    for t in range(3):
        picture(root / "ben" / "01" / f"{t}.png", 40 * t)
    video(root / "ben" / "take_2.mkv")
    return root


def test_a_folder_of_clips_is_a_person(tmp_path, capsys):
    clips = Clips(people_of(tmp_path), 32)
    assert clips.owners == ["anna", "ben", "ben"] and clips.people == [[0], [1, 2]]
    assert [clips.name(i) for i in range(3)] == ["anna/01.mp4", "ben/01", "ben/take_2.mkv"]
    assert all(is_cross(pair) for pair in draw_pairs(clips, 8, 0, cross=True))
    same = draw_pairs(clips, 20, 0, cross=False)
    assert not any(is_cross(pair) for pair in same)
    assert {pair.name.split("#")[0] for pair in same} == {"anna/01", "ben/01", "ben/take_2"}
    assert capsys.readouterr().err == ""


def test_celebv_s_folders_of_pictures_are_people(tmp_path):
    for name in ("Ann_Lee", "Ann_Moe"):
        picture(tmp_path / name / "Image" / "0.png")
    clips = Clips(tmp_path, 32)
    assert clips.owners == ["Ann_Lee", "Ann_Moe"] == [clips.label(i) for i in range(2)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["a_1.mp4", "anna/01.mp4"], r"beside.*a_1\.mp4.*beside folders of clips \(anna\)"),
        (["a_1/000.png", "anna/01/000.png"], r"beside.*\(a_1\) beside folders of clips \(anna\)"),
        (["a_1.mp4", "b_1/0.png", "c/1.gif", "d/1/0.png"], r"\(a_1\.mp4, b_1\) beside folders of clips \(c, d\)"),
        (["anna/01.mp4", "anna/01.webp", "ben/01.mp4"], r"anna: .*videos \(01\.mp4\) beside pictures \(01\.webp\)"),
    ],
)
def test_both_forms_at_one_level_are_refused(tmp_path, entries, message):
    for entry in entries:
        junk(tmp_path / "beside" / entry)
    with pytest.raises(UserError, match=message):
        Clips(tmp_path / "beside", 32)


@pytest.mark.parametrize(
    ("unused", "message"),
    [
        (["notes.txt"], "1 of 3 entries of {} not used: notes.txt"),
        ([".hidden/1.mp4", "._a_1.mp4", "cover.jpg"], "3 of 5 entries of {} not used: cover.jpg, ._a_1.mp4, .hidden"),
        (
            ["__MACOSX/._a_1.mp4", "empty/", "b/c/1.mp4", "a_2/masks/0.png", "x.mp3"],
            "5 of 7 entries of {} not used: __MACOSX, a_2/masks, b, …",
        ),
    ],
)
def test_what_is_not_used_is_counted_and_named_once(tmp_path, capsys, unused, message):
    junk(tmp_path / "a_1.mp4")
    junk(tmp_path / "a_2" / "0.png")
    for entry in unused:
        (tmp_path / entry).mkdir() if entry.endswith("/") else junk(tmp_path / entry)
    for _ in range(2):
        assert [path.name for path in Clips(tmp_path, 32).paths] == ["a_1.mp4", "a_2"]
    assert capsys.readouterr().err == f"memcomp: warning: {message.format(tmp_path)}\n"


def test_what_is_not_used_of_people_s_folders_is_named_with_theirs(tmp_path, capsys):
    people_of(tmp_path)
    for entry in ("ben/notes.txt", "ben/deep/er/1.mp4", "anna/._01.mp4", "list.csv", ".git/1.mp4", "nobody/x.txt"):
        junk(tmp_path / entry)
    assert len(Clips(tmp_path, 32)) == 3
    assert "6 of 9 entries of" in (told := capsys.readouterr().err)
    assert "not used: ben/deep, ben/notes.txt, list.csv, …" in told


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "found none: it is empty"),
        (["notes.txt", "0.png", "._a.mp4"], "found none among 3 entries: 0.png, notes.txt, ._a.mp4"),
        (["id1/xyz/0001.mp4"], "found none among 1 entry: id1; id1/xyz/0001.mp4 lies too deep"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "benchmark"])
def test_a_folder_without_clips_is_refused_in_one_line(
    tmp_path, small_run, small_recipe, capsys, entries, message, command
):
    for split in ("train", "test"):
        (tmp_path / "clips" / split).mkdir(parents=True)
        for entry in entries:
            junk(tmp_path / "clips" / split / entry)
    words = commands_on(tmp_path, small_run, small_recipe)[command]
    before = tree(tmp_path)
    assert main(words) == 2
    told = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert len(told) == 1 and message in told[0] and "expected clips (.mp4, .m4v" in told[0]
    assert tree(tmp_path) == before


def commands_on(tmp_path, run, recipe):
    """Command → words, on the clips of `tmp_path`."""
    (tmp_path / "small.yaml").write_text(recipe.to_yaml())
    root, output = str(tmp_path / "clips"), ["--output", str(tmp_path / "out" / "run")]
    few = ["optim.steps=2", "optim.batch_size=2", "log.held_out_pairs=2", "data.shared_people=true"]
    few.append(f"data.cache={tmp_path}/cache")
    return {
        "train": ["train", str(tmp_path / "small.yaml"), "data.kind=clips", f"data.root={root}", *few, *output],
        "evaluate": ["evaluate", str(run), "--root", root, "--pairs", "2", *few[-1:], *output],
        "benchmark": ["benchmark", str(run), "--root", root, "--pairs=2", "--repeats=0", "--no-report", *output],
    }


@pytest.mark.parametrize("command", ["train", "evaluate", "benchmark"])
@pytest.mark.parametrize("both", [False, True])
def test_people_s_folders_are_trained_and_measured_on(tmp_path, small_run, small_recipe, capsys, command, both):
    for split in ("train", "test"):
        people_of(tmp_path / "clips" / split)
        junk(tmp_path / "clips" / split / "notes.txt")
        if both:
            video(tmp_path / "clips" / split / "carl_1.mp4")
    words = commands_on(tmp_path, small_run, small_recipe)[command]
    assert main(words) == (2 if both else 0)
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("memcomp:")]
    root = tmp_path / "clips"
    if both:
        split = "train" if command == "train" else "test"
        assert len(told) == 1 and told[0].startswith(f"memcomp: error: {root / split}: expected clips, or a folder of")
        assert not (tmp_path / "out").exists()
        return
    splits = ["train", "test"] if command == "train" else ["test"]
    assert told == [f"memcomp: warning: 1 of 4 entries of {root / split} not used: notes.txt" for split in splits]


def test_a_split_without_its_test_is_not_taken_for_a_person(tmp_path, small_run, small_recipe, capsys):
    video(tmp_path / "clips" / "train" / "anna_1.mp4")
    assert main(commands_on(tmp_path, small_run, small_recipe)["evaluate"]) == 2
    assert f"{tmp_path / 'clips' / 'test'}: expected a folder of clips" in capsys.readouterr().err


def test_lists_tell_people_by_their_folders(tmp_path):
    people_of(tmp_path / "test")
    video(tmp_path / "ben_3.mp4")
    for name in ("id1#a.mp4", "id2#a.mp4", ".trash/01.mp4"):
        video(tmp_path / "vox" / name)
    rows = {
        "anna/01.mp4#0,ben/01/1.png": True,
        "/else/where/test/ben/01/2.png,ben/take_2.mkv#1": False,
        "ben/01#0,ben_3.mp4#1": False,
        "vox/id1#a.mp4#0,vox/id2#a.mp4#1": True,  # one folder of two people, in VoxCeleb's naming
        "vox/id1#a.mp4#0,vox/id1#a.mp4#1": False,
    }
    unusable = ["01.mp4#0,01.mp4#1", "vox/.trash/01.mp4#0,vox/.trash/01.mp4#1", "ben/._01.mp4#0,ben/01#0"]
    path, report = tmp_path / "list.csv", ListReport()
    path.write_text("\n".join(["source,driving", *rows, *unusable]))
    pairs = read_list(path, ListedClips(tmp_path, 32).pair, None, report)
    assert [is_cross(pair) for pair in pairs] == list(rows.values()) and len(report.missing) == 3
    assert pairs[0].name == "anna/01#0_ben/01#1"
    drawn = draw_pairs(Clips(tmp_path / "test", 32), 4, 0, cross=True)
    write_list(path, {CROSS: drawn})
    again = read_list(path, ListedClips(tmp_path, 32).pair, None, report)
    assert [pair.name for pair in again] == [pair.name for pair in drawn] and all(map(is_cross, again))


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_what_reading_converts_is_told_in_one_line(tmp_path, small_run, small_recipe, capsys, command):
    root = tmp_path / "clips" / "test"
    video(root / "anna_1.mp4", color_trc=18, color_primaries=9)
    picture(root / "ben_1" / "1.png", 30_000, np.uint16)
    picture(root / "ben_1" / "2.png", 40_000, np.uint16)
    video(root / "carl_1.mp4")
    (tmp_path / "clips" / "train").symlink_to(root)
    words = commands_on(tmp_path, small_run, small_recipe)[command]
    assert main([word.replace("steps=2", "steps=6").replace("pairs=2", "pairs=8") for word in words]) == 0
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("memcomp:")]
    assert len(told) == 1 and "converted: " in told[0]
    assert "anna_1.mp4: HDR (HLG), brought to sRGB" in told[0] and "ben_1/1.png: pixels of 16 bits" in told[0]
    assert "carl_1" not in told[0]
