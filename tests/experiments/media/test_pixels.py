"""Colours against sRGB truth, whatever a file keeps them as; the same for sources and for training frames."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from memcomp.experiments.data.clips import Clips
from memcomp.experiments.errors import UserError
from memcomp.experiments.video import Frames, read_picture
from memcomp.experiments.video import pictures as pictures_module

# of a colour chart: skins, sky, foliage, the primaries, greys
CHART = np.array(
    [
        (115, 82, 68),
        (194, 150, 130),
        (98, 122, 157),
        (87, 108, 67),
        (133, 128, 177),
        (103, 189, 170),
        (214, 126, 44),
        (80, 91, 166),
        (193, 90, 99),
        (94, 60, 108),
        (157, 188, 64),
        (224, 163, 46),
        (56, 61, 150),
        (70, 148, 73),
        (175, 54, 60),
        (231, 199, 31),
        (187, 86, 149),
        (8, 133, 161),
        (255, 255, 255),
        (200, 200, 200),
        (122, 122, 122),
        (52, 52, 52),
        (0, 0, 0),
        (255, 0, 0),
    ],
    np.uint8,
).reshape(4, 6, 3)
PATCH = 16
TO_BT2020 = np.array(((0.627404, 0.329283, 0.043313), (0.069097, 0.919540, 0.011362), (0.016391, 0.088013, 0.895595)))
TO_P3 = np.array(((0.822462, 0.177538, 0.0), (0.033194, 0.966806, 0.0), (0.017083, 0.072397, 0.910520)))


def chart(colours=CHART):
    return colours.repeat(PATCH, 0).repeat(PATCH, 1)


def patches(picture):
    """The mean of each patch's middle."""
    height, width = picture.shape[:2]
    grid = picture.reshape(height // PATCH, PATCH, width // PATCH, PATCH, -1)[:, 5:11, :, 5:11]
    return grid.mean((1, 3))


def linear(colours):
    signal = colours / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def pq(light):
    """Signal of light, white (203 cd/m²) = 1."""
    power = (light * 203 / 10_000).clip(0) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light):
    """Signal of a display's light, white (75 % of the signal) = 1, on a display of 1000 cd/m²."""
    display = light * 0.203
    luminance = np.maximum(display @ (0.2627, 0.6780, 0.0593), 1e-9)[..., None]
    scene = display * luminance ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene.clip(0)), upper)


def gamma(light):
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("curve", "primaries", "numbers", "named"),
    [
        (pq, TO_BT2020, (16, 9), "PQ"),
        (pq, TO_P3, (16, 12), "PQ"),
        (hlg, TO_BT2020, (18, 9), "HLG"),
        (gamma, TO_BT2020, (1, 9), "wide-gamut"),
        (gamma, TO_P3, (13, 12), "wide-gamut"),
    ],
)
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "ffv1")])
def test_high_dynamic_range_and_wide_colours_become_srgb(
    tmp_path, media, curve, primaries, numbers, named, name, codec
):
    signal = curve(linear(CHART) @ primaries.T)
    frame = (chart(signal).clip(0, 1) * 65535).round().astype(np.uint16)
    options = {"crf": "6"} if codec == "libx264" else {}
    colours = {"color_trc": numbers[0], "color_primaries": numbers[1]}
    path = media.write(tmp_path / name, [frame] * 2, codec=codec, pix="yuv444p10le", options=options, **colours)
    said = []
    picture = next(iter(Frames(path, said.append)))
    assert np.abs(patches(picture) - CHART).max() < 12
    assert len(said) == 1 and named in said[0] and said[0].endswith("brought to sRGB")


@pytest.mark.parametrize(
    ("name", "codec", "pix"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "libx264", "yuv444p10le"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.mkv", "ffv1", "bgr0"),
    ],
)
def test_ordinary_videos_are_left_as_they_are(tmp_path, media, name, codec, pix):
    path = media.write(tmp_path / name, [chart()] * 3, codec=codec, pix=pix, options={"crf": "6", "b:v": "0"})
    said = []
    assert np.abs(patches(next(iter(Frames(path, said.append)))) - CHART).max() < 8
    assert said == []


def cut_out(hidden):
    """The chart, transparent in its first column, where `hidden` stands, half so in its second."""
    alpha = np.full((*CHART.shape[:2], 1), 255, np.uint8)
    alpha[:, 0], alpha[:, 1] = 0, 128
    colours = CHART.copy()
    colours[:, 0] = hidden
    expected = CHART.astype(float)
    expected[:, 0] = 255
    expected[:, 1] = 255 + (expected[:, 1] - 255) * 128 / 255
    return chart(np.concatenate([colours, alpha], axis=2)), expected


@pytest.mark.parametrize("hidden", [(255, 0, 255), (0, 0, 0)])
def test_transparent_pictures_are_laid_over_white(tmp_path, hidden):
    pixels, expected = cut_out(hidden)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    said = []
    read_picture(tmp_path / "a.png", said.append)
    assert len(said) == 1 and "transparency" in said[0]
    Image.fromarray(chart()).convert("RGBA").save(tmp_path / "opaque.png")
    assert np.array_equal(read_picture(tmp_path / "opaque.png", said.append), chart()) and len(said) == 1
    image.save(tmp_path / "a.webp", lossless=True, exact=True)
    image.save(tmp_path / "a.tif")
    grey = image.convert("LA")
    grey.save(tmp_path / "grey.png")
    for name in ("a.png", "a.webp", "a.tif"):
        assert np.abs(patches(read_picture(tmp_path / name)) - expected).max() <= 1, name
    assert (patches(read_picture(tmp_path / "grey.png"))[:, 0] == 255).all()
    palette = Image.fromarray(np.where(pixels[..., 3:] == 0, 0, pixels)).quantize(64)  # as editors save it
    palette.save(tmp_path / "palette.png")
    assert patches(read_picture(tmp_path / "palette.png"))[:, 0].min() > 250
    cut = Image.fromarray(pixels[..., :3])
    cut.save(tmp_path / "key.png", transparency=hidden)  # one colour means transparent
    assert (patches(read_picture(tmp_path / "key.png"))[:, 0] == 255).all()


def test_transparent_videos_and_training_frames_are_laid_over_white_too(tmp_path, media):
    pixels, expected = cut_out((255, 0, 255))
    media.write(tmp_path / "anna_1.mov", [pixels] * 2, codec="qtrle", pix="argb")
    media.write(tmp_path / "b.mkv", [pixels] * 2, codec="ffv1", pix="bgra")
    media.write(tmp_path / "c.webm", [pixels] * 2, codec="libvpx-vp9", pix="yuva420p", options={"crf": "6", "b:v": "0"})
    (tmp_path / "carl_1").mkdir()
    Image.fromarray(pixels).save(tmp_path / "carl_1" / "0.png")
    for name, off in (("anna_1.mov", 1), ("b.mkv", 1), ("c.webm", 10), ("carl_1", 1)):
        assert np.abs(patches(next(iter(Frames(tmp_path / name)))) - expected).max() <= off, name
    clips = Clips(tmp_path, 64, paths=[tmp_path / "anna_1.mov", tmp_path / "carl_1"])
    first, second = (clips.read(clip, [0])[0].permute(1, 2, 0).numpy() for clip in (0, 1))
    assert np.array_equal(first, second)
    gif = Image.fromarray(pixels[..., :3]).quantize(64)
    gif.save(tmp_path / "a.gif", transparency=gif.getpixel((2, 2)))
    assert patches(next(iter(Frames(tmp_path / "a.gif"))))[:, 0].min() > 250


def test_grey_of_sixteen_and_thirty_two_bits_and_floating_point(tmp_path):
    grey = chart().mean(2).astype(np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tif")
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "32.tif")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    for name in ("16.png", "16.tif", "32.tif", "float.tif"):
        said = []
        assert np.array_equal(read_picture(tmp_path / name, said.append), grey[..., None].repeat(3, 2)), name
        assert len(said) == 1 and "8 bits" in said[0]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.float32([[0, 255]]), "floating-point pixels in [0, 1], found 0 to 255"),
        (np.float32([[-0.5, 1]]), "floating-point pixels in [0, 1], found -0.5 to 1"),
        (np.float32([[np.nan, 1]]), "floating-point pixels in [0, 1], found nan to nan"),
        (np.int32([[0, 70_000]]), "32-bit pixels in [0, 65535], found 0 to 70000"),
        (np.int32([[-1, 5]]), "32-bit pixels in [0, 65535], found -1 to 5"),
    ],
)
def test_numbers_of_unknown_meaning_are_refused(tmp_path, values, found):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError) as caught:
        read_picture(tmp_path / "a.tif")
    assert found in str(caught.value) and "save it with 8 or 16 bits" in str(caught.value)


def test_a_colour_profile_is_obeyed(tmp_path):
    """The profile of a made-up display whose red and blue are exchanged; sRGB's own changes nothing."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.fromarray(chart()).save(tmp_path / "a.png", icc_profile=srgb.tobytes())
    assert np.array_equal(read_picture(tmp_path / "a.png"), chart())
    data = bytearray(srgb.tobytes())
    red, blue = data.index(b"rXYZ", 128), data.index(b"bXYZ", 128)
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    at = data.index("sRGB".encode("utf-16-be"))
    data[at : at + 8] = "XRGB".encode("utf-16-be")
    Image.fromarray(chart()[..., ::-1]).save(tmp_path / "b.png", icc_profile=bytes(data))
    assert np.abs(read_picture(tmp_path / "b.png").astype(int) - chart()).max() <= 3
    Image.fromarray(chart()).save(tmp_path / "c.png", icc_profile=b"not a profile")
    assert np.array_equal(read_picture(tmp_path / "c.png"), chart())


def test_pictures_over_pillows_limit_are_read_and_bombs_refused_with_the_reason(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(chart()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert np.array_equal(read_picture(path), chart())
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(pictures_module, "ENOUGH", 2000)
    assert read_picture(path).shape == (32, 48, 3)
    monkeypatch.setattr(pictures_module, "LARGEST", 5000)
    with pytest.raises(UserError, match=r"a\.png: expected a picture of up to .* pixels, found 96×64; make it smaller"):
        read_picture(path)


def test_frames_in_a_folder_follow_the_numbers_in_their_names(tmp_path):
    for i in (0, 2, 10, 100):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"frame{i}.png")
    Image.new("RGB", (8, 8), (1, 0, 0)).save(tmp_path / "frame².png")
    (tmp_path / "._frame0.png").write_bytes(b"not a picture")
    assert [int(frame[0, 0, 0]) for frame in Frames(tmp_path)] == [0, 2, 10, 100, 1]


def test_a_truncated_picture_is_refused_with_the_reason(tmp_path):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(data, "JPEG")
    (tmp_path / "a.jpg").write_bytes(data.getvalue()[:900])
    with pytest.raises(UserError, match=r"a\.jpg: expected a picture, it cannot be read as one \(.*truncated"):
        read_picture(tmp_path / "a.jpg")
