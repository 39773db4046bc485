"""Files that were on nobody's list, found by someone who tried twenty."""

import os
import stat
import struct
import warnings
import zlib

import av
import numpy as np
import pytest
import torch
from PIL import Image

from memcomp.experiments.cli import main
from memcomp.experiments.errors import CannotWrite, UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.video import BrokenOff, Frames, fit, pictures, read_picture


@pytest.mark.parametrize("place", ["source", "driving", "output"])
def test_links_that_lead_in_a_circle(place, small_run, clips_root, tmp_path, capsys):
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    Image.new("RGB", (32, 32)).save(tmp_path / "face.png")
    paths = {"source": tmp_path / "face.png", "driving": clips_root / "test" / "a_1.mp4", "output": tmp_path / "o.mp4"}
    paths[place] = tmp_path / "loop.mp4"
    words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    status = main(["animate", "--checkpoint", str(small_run), *words])
    if place == "output":  # a link in the way is replaced, as any file is
        assert status == 0 and (tmp_path / "loop.mp4").is_file()
        return
    assert status == 2 and "loop.mp4: expected" in capsys.readouterr().err
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".m4a", ".mov"])
def test_a_song_with_its_cover_is_no_video(suffix, tmp_path):
    path = tmp_path / f"song{suffix}"
    with av.open(str(path), "w", format="mov" if suffix == ".mov" else "mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value  # PyAV 17 takes no flag
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        container.mux([*cover.encode(frame), *cover.encode(None)])
        for start in range(0, 44100, 1024):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 44100, start
            container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    with pytest.raises(UserError, match="has no video stream"):
        list(Frames(path))


@pytest.mark.parametrize("suffix", [".tiff", ".gif", ".png", ".webp"])
def test_of_several_pictures_the_first_is_taken_with_a_word(suffix, tmp_path):
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    pictures[0].save(tmp_path / f"many{suffix}", save_all=True, append_images=pictures[1:])
    said = []
    assert np.abs(read_picture(tmp_path / f"many{suffix}", said.append)[16, 16] - [254.0, 0, 0]).max() < 12
    assert said == [f"{tmp_path / f'many{suffix}'}: 3 pictures, of which the first is taken"]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("enough", [10, 10_000], ids=["made smaller", "as it is"])
def test_a_picture_is_fitted_without_a_warning_of_torch(mode, enough, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "ENOUGH", enough)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (32, 32)).save(path)
    picture = read_picture(path)
    assert picture.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(picture, 2)


@pytest.mark.parametrize("codec, form", [("mpeg4", "mp4"), ("mpeg2video", "mpeg"), ("mpeg4", "avi")])
def test_damage_in_the_middle_ends_a_video_before_it_is_seen(codec, form, tmp_path):
    whole, damaged = tmp_path / f"whole.{form}", tmp_path / f"damaged.{form}"
    noise = np.random.default_rng(0)
    with av.open(str(whole), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "12"})
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for number in range(60):
            picture = np.clip(noise.normal(100 + number, 20, (96, 96, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    content = bytearray(whole.read_bytes())
    middle = int(0.7 * len(content))
    content[middle : middle + 400] = noise.bytes(400)
    damaged.write_bytes(content)
    right, got = list(Frames(whole)), []
    with pytest.raises(BrokenOff, match="damaged after frame") as error:
        for frame in Frames(damaged):
            got.append(frame)
    assert 4 < len(got) < 60 and error.value.shown == len(got)
    assert all(np.array_equal(one, other) for one, other in zip(got, right, strict=False))


def test_what_a_driving_folder_or_video_holds_besides_is_said(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, size in enumerate([(32, 32), (32, 32), (48, 32), (32, 48)]):
        Image.new("RGB", size).save(folder / f"{number}.png")
    for name in ("notes.txt", "sound.wav", ".hidden"):
        (folder / name).touch()
    said = []
    assert len(list(Frames(folder, said.append))) == 4
    assert said == [
        f"{folder}: 2 of 6 entries are no pictures and were not used: notes.txt, sound.wav",
        f"{folder}: frames of several sizes (32×32 and 48×32 among them), each is used as it is",
    ]
    path, said = tmp_path / "two.mkv", []
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
        for stream in streams:
            black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux([*stream.encode(black), *stream.encode(None)])
    list(Frames(path, said.append))
    assert said == [f"{path}: 2 video streams, of which one is used"]


def png_of_16_bits(path, colour_type, channels):
    """Pillow writes no colours of 16 bits: a PNG by its own rules."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(f">{8 * channels}H", *[65535, 0x8000, 0, 65535][:channels] * 8)
    header = struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (6, 4)], ids=["RGB", "RGBA"])
def test_colours_of_16_bits_are_read_with_a_word(colour_type, channels, tmp_path):
    path, said = tmp_path / "deep.png", []
    png_of_16_bits(path, colour_type, channels)
    assert np.array_equal(read_picture(path, said.append)[0, 0], [255, 128, 0])
    assert said == [f"{path}: colours of 16 bits, brought to 8 bits"]


def test_an_output_goes_where_a_link_leads_and_into_no_pipe(tmp_path):
    (tmp_path / "there").mkdir()
    for name, target in {"old.txt": "there/old.txt", "new.txt": "there/new.txt"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "there" / "old.txt").write_text("before")
    for name in ("old.txt", "new.txt"):
        with atomic_write(tmp_path / name) as temporary:
            temporary.write_text("after")
        assert (tmp_path / name).is_symlink() and (tmp_path / "there" / name).read_text() == "after"
    os.mkfifo(tmp_path / "pipe.mp4")
    refused = pytest.raises(CannotWrite, match=r"pipe\.mp4: cannot be written \(it is a pipe or a device\)")
    with refused, atomic_write(tmp_path / "pipe.mp4"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe.mp4").stat().st_mode)


@pytest.mark.parametrize("read", [read_picture, Frames], ids=["picture", "video"])
def test_what_lies_there_instead_is_named(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for name, found in {
        "pipe": "a pipe or a device",
        "link": "a link that leads to nothing",
        "none": "nothing",
    }.items():
        with pytest.raises(UserError, match=f"{name}: expected .* found {found}$"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="expected a picture, found a folder"):
        read_picture(tmp_path)


@pytest.mark.parametrize("content", [{"x": {"w": torch.zeros(2)}}, {"state_dict": {"a.b": torch.zeros(2)}}, {}, [1]])
def test_a_way_out_that_leads_nowhere_is_not_offered(content, tmp_path, capsys):
    file = tmp_path / "other.pth"
    torch.save(content, file)
    said = []
    for command in (["convert", str(file)], ["evaluate", str(file)]):
        assert main([*command, "--output", str(tmp_path / "out")]) == 2
        said.append(capsys.readouterr().err.removeprefix("memcomp: error: ").strip())
    assert all(text.startswith(f"{file}: ") for text in said) and "first:" not in said[1]
    assert said[1].endswith(said[0].removeprefix(f"{file}: "))
