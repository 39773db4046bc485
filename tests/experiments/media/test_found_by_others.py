"""Files that were on nobody's list, found by someone who tried twenty."""

import warnings

import av
import numpy as np
import pytest
from PIL import Image

from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.video import Frames, fit, pictures, read_picture


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
        cover.disposition = av.stream.Disposition.attached_pic
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
