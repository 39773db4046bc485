"""A frame found by seeking is the frame found in order, on every kind of file; if that is not sure, none is sought."""

import os
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from memcomp.experiments.data import clips as clips_module
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.errors import UserError
from memcomp.experiments.video import Frames, seeking, sought

COUNT = 36
UNEVEN = [Fraction(int(t), 1000) for t in np.cumsum(np.r_[0, np.random.default_rng(0).integers(20, 90, COUNT - 1)])]
SHORT = {"g": "9", "sc_threshold": "0"}


def moving(channels=3, dtype=np.uint8):
    """Noise that drifts under a bright square, so that every frame refers to others, and no two are alike."""
    noise = np.random.default_rng(0).integers(0, 200, (64, 160, channels), np.uint8)
    frames = []
    for i in range(COUNT):
        frame = noise[:, 2 * i : 2 * i + 80].copy()
        frame[10:30, i : i + 20] = 255 - i
        frames.append(frame.astype(dtype) * (257 if dtype == np.uint16 else 1))
    return frames


# name → how `media.write` makes it; whether frames are sought in it
KINDS = {
    "plain.mp4": ({"options": {**SHORT, "bf": "0"}}, True),
    "one_key.mp4": ({"options": {"g": "250"}}, True),
    "b_frames.mp4": ({"options": {**SHORT, "bf": "3"}}, True),
    "b_pyramid.mkv": ({"options": {**SHORT, "bf": "5", "x264-params": "b-pyramid=normal:b-adapt=0"}}, True),
    "uneven.mp4": ({"options": SHORT, "times": UNEVEN}, True),
    "uneven.mkv": ({"options": SHORT, "times": UNEVEN}, True),
    "open_group.mp4": ({"options": {**SHORT, "bf": "3", "x264-params": "open-gop=1"}}, True),
    "open_group.mkv": ({"options": {**SHORT, "bf": "3", "x264-params": "open-gop=1"}}, True),
    "stripes.mp4": ({"options": {**SHORT, "bf": "0", "x264-params": "intra-refresh=1"}}, True),
    "wide_pixels.mp4": ({"options": SHORT, "sample_aspect_ratio": Fraction(4, 3)}, True),
    "hdr.mp4": ({"pix": "yuv420p10le", "options": SHORT, "color_trc": 16, "color_primaries": 9}, True),
    "interlaced.mkv": ({"options": {**SHORT, "flags": "+ildct+ilme", "x264-params": "interlaced=1:tff=1"}}, False),
    "h265.mp4": (
        {"codec": "libx265", "options": {"x265-params": "keyint=9:min-keyint=9:open-gop=0"}},
        True,
    ),
    "open_h265.mkv": ({"codec": "libx265", "options": {"x265-params": "keyint=9:min-keyint=9"}}, True),
    "vp8.webm": ({"codec": "libvpx", "options": {"g": "9", "auto-alt-ref": "1", "lag-in-frames": "10"}}, True),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"g": "9", "auto-alt-ref": "1", "lag-in-frames": "10"}}, True),
    "alpha.webm": ({"codec": "libvpx-vp9", "pix": "yuva420p", "options": {"g": "9"}, "channels": 4}, True),
    "av1.mp4": ({"codec": "libsvtav1", "options": {"g": "9", "preset": "12"}}, False),
    "jpeg.mov": ({"codec": "mjpeg", "pix": "yuvj420p"}, True),
    "prores.mov": ({"codec": "prores_ks", "pix": "yuv422p10le"}, True),
    "mpeg4.mp4": ({"codec": "mpeg4", "options": {"g": "9"}}, False),
    "mpeg4.avi": ({"codec": "mpeg4", "options": {"g": "9"}}, False),
    "reordered.avi": ({"options": {**SHORT, "bf": "2"}, "tick": Fraction(1, 25)}, False),
    "stream.ts": ({"form": "mpegts", "options": SHORT}, False),
}
# made of the packets of another
COPIES = {
    "edit_list.mp4": ("plain.mp4", {"shift": Fraction(13, 25), "avoid_negative_ts": "disabled"}, True),
    "edit_list_b.mp4": ("b_frames.mp4", {"shift": Fraction(13, 25), "avoid_negative_ts": "disabled"}, True),
    "index_first.mp4": ("b_frames.mp4", {"movflags": "faststart"}, True),
    "fragments.mp4": ("b_frames.mp4", {"movflags": "frag_keyframe+empty_moov"}, True),
    "no_cues.mkv": ("plain.mp4", {"live": "1"}, True),
    "from_ts.mp4": ("stream.ts", {}, True),
}


def make(folder, media, name):
    if name in COPIES:
        origin, options, _ = COPIES[name]
        return media.copied(make(folder, media, origin), folder / name, **options)
    options = dict(KINDS[name][0])
    if "codec" in options:
        media.needs(options["codec"])
    frames = moving(options.pop("channels", 3), np.uint16 if name.startswith("hdr") else np.uint8)
    with same_priority():
        return media.write(folder / name, frames, options.pop("times", None), **options)


@contextmanager
def same_priority():
    """SVT-AV1 gives the process of root real-time priority for good, and threads that it starts later starve others."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, param)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="the system has no scheduling policies")
def test_encoders_leave_the_process_as_it_was(tmp_path, media):
    before = os.sched_getscheduler(0)
    make(tmp_path, media, "av1.mp4")
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("name", [*KINDS, *COPIES, "turned.mp4", "late.mkv"])
def test_a_frame_found_by_seeking_is_the_frame_found_in_order(tmp_path, media, name):
    seeks = {**{n: how[1] for n, how in KINDS.items()}, **{n: how[2] for n, how in COPIES.items()}}.get(name, True)
    if name == "turned.mp4":
        path = media.with_matrix(make(tmp_path, media, "plain.mp4"), 0, 1, -1, 0)
    elif name == "late.mkv":
        path, seeks = late(tmp_path, media), False
    else:
        path = make(tmp_path, media, name)
    in_order = list(Frames(path))
    assert len(in_order) >= 20 and all((a != b).any() for a, b in pairwise(in_order))
    found = Frames(path).listed()
    by_seeking = [None if found is None else sought(path, {i}, found) for i in range(len(in_order))]
    assert [picture is not None for picture in by_seeking] == [seeks] * len(in_order)
    for number, (picture, expected) in enumerate(zip(by_seeking, in_order, strict=True)):
        assert picture is None or np.array_equal(picture[number], expected), number
    folder = tmp_path / "clips"
    folder.mkdir()
    path.rename(folder / f"anna_{path.name}")
    clips = Clips(folder, 32)
    expected = torch.stack([clips._fit(picture) for picture in in_order])
    for pair in ((0, 1), (3, len(in_order) - 1), (20, 7), (11, 11)):
        assert torch.equal(clips.read(0, pair), expected[list(pair)]), pair


def late(folder, media):
    """A Matroska file whose first packet is no key frame."""
    made = folder / "late.mkv"
    with av.open(str(make(folder, media, "plain.mp4"))) as given, av.open(str(made), "w") as output:
        target = output.add_stream_from_template(given.streams.video[0])
        for packet in list(given.demux(given.streams.video[0]))[3:]:
            if packet.dts is not None:
                packet.stream = target
                output.mux(packet)
    return made


def count_decoded(monkeypatch, path, numbers):
    """How many pictures are made, and how many frames decoded, to find some by number."""
    plain, decoded = seeking.decoded_group, []

    def watched(*args):
        for frame in plain(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(seeking, "decoded_group", watched)
    found = Frames(path).listed()
    assert set(sought(path, numbers, found)) == set(numbers)
    return len(decoded)


def test_only_the_groups_of_the_wanted_frames_are_decoded(tmp_path, media, monkeypatch):
    path = make(tmp_path, media, "plain.mp4")
    assert count_decoded(monkeypatch, path, {0}) == 1
    assert count_decoded(monkeypatch, path, {35}) == 9
    assert count_decoded(monkeypatch, path, {28, 29}) == 3
    assert count_decoded(monkeypatch, path, {1, 28}) == 4


def test_reading_in_order_converts_only_the_wanted_frames(tmp_path, media, monkeypatch):
    path = make(tmp_path, media, "mpeg4.avi")
    look, drawn = clips_module.Frames.undrawn, []

    def watched(self):
        for number, draw in enumerate(look(self)):
            yield lambda number=number, draw=draw: drawn.append(number) or draw()

    monkeypatch.setattr(clips_module.Frames, "undrawn", watched)
    Clips(path.parent, 32).read(0, [4, 20])
    assert drawn == [4, 20]


@pytest.mark.parametrize("kind", ["plain.mp4", "b_frames.mp4", "vp9.webm"])
def test_damage_in_a_group_is_found_as_it_is_in_order(tmp_path, media, kind):
    """What decodes is the same; where a packet does not, reading in order says so."""
    path = make(tmp_path, media, kind)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(1).integers(0, 256, 400, np.uint8).tobytes()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / f"anna_{kind}").write_bytes(data)

    def outcome(clips, frames):
        try:
            return clips.read(0, frames)
        except UserError as error:
            return str(error)

    for frames in ([0, 2], [2, 12], [10, 35]):
        seeking, plain = Clips(tmp_path / "clips", 32), Clips(tmp_path / "clips", 32)
        plain._sought = lambda path, frames: None
        a, b = outcome(seeking, frames), outcome(plain, frames)
        assert isinstance(b, str) or torch.equal(a, b), frames


def test_a_file_that_is_not_as_listed_is_read_in_order_from_then_on(tmp_path, media, monkeypatch):
    path = make(tmp_path, media, "plain.mp4")
    clips = Clips(path.parent, 32)
    expected = clips.read(0, [5, 30])
    found = clips._lists[path]
    clips._lists[path] = type(found)(found.stamps, [key + 1 for key in found.keys])
    assert torch.equal(clips.read(0, [5, 30]), expected)
    assert path not in clips._lists and torch.equal(clips.read(0, [5, 30]), expected)
