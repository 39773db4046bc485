"""Still pictures, animated WebP, and pictures as tensors."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import kind_of
from memcomp.experiments.video.pixels import Frame, over_white

LARGEST = 500_000_000  # pixels; Pillow refuses 179 million
DEEP = {"F": "floating point", "I": "32 bits"} | {f"I;16{order}": "16 bits" for order in ("", "L", "B", "N")}
ENOUGH = 50_000_000  # what has more pixels is halved until it has not: working on it takes twelve bytes for each
_limit = threading.Lock()


def read_picture(path: str | Path, say: Callable[[str], None] | None = None) -> Frame:
    """Read a still picture (of a moving one the first), (H, W, 3) uint8 sRGB, upright as its EXIF says.

    Transparency is laid over white, a colour profile is brought to sRGB, 16 bits become 8 by 1/257.

    Args:
        path: picture file.
        say: is told in words what was converted.

    Raises:
        UserError: nothing is there, it is not a picture, has too many pixels, or numbers of unknown meaning.
    """
    with _opened(path) as image:
        deep = _is_deep(image)  # forgotten when its pixels are read
        frame, notes = _frame(image, path), _notes(image, deep)
    while frame.shape[0] * frame.shape[1] > ENOUGH:
        frame = np.array(Image.fromarray(frame).reduce(2))
    if say is not None:
        for note in notes:
            say(f"{path}: {note}")
    return frame


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture as it is stored, in pixels, without decoding it.

    Raises:
        UserError: as `read_picture`, as far as the file's head tells.
    """
    with _opened(path) as image:
        return image.size


def moving_pictures(path: str | Path) -> Iterator[tuple[Frame, Fraction]]:
    """Read the pictures of an animated WebP, which no video decoder knows: each, and how many seconds it is shown."""
    with _opened(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()  # which tells how long
            yield _frame(image, path), Fraction(int(image.info.get("duration") or 100), 1000)


def fit(frame: Frame, size: int) -> torch.Tensor:
    """The largest centred square of a frame (H, W, 3) uint8, resized to (3, size, size) float in [0, 1]."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    image = square.permute(2, 0, 1).float() / 255  # (3, side, side)
    if side == size:
        return image
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def even(frame: Frame) -> Frame:
    """A frame (H, W, 3) without its last row or column where they are of an odd number: codecs take even sides only."""
    return frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]


def to_frame(image: torch.Tensor) -> Frame:
    """(3, H, W) float in [0, 1] → (H, W, 3) uint8."""
    return (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture of up to `LARGEST` pixels; what Pillow cannot read becomes a `UserError`."""
    if not Path(path).is_file():
        raise UserError(f"{path}: expected a picture, found {kind_of(Path(path))}")
    try:
        with _without_limit():
            opened = Image.open(path)
        with opened as image:
            if image.width * image.height > LARGEST:
                most, size = f"{LARGEST // 10**6} million", f"{image.width}×{image.height}"
                raise UserError(f"{path}: expected a picture of up to {most} pixels, found {size}; make it smaller")
            yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path}: expected a picture, it cannot be read as one") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for truncated and malformed files
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: expected a picture, it cannot be read as one ({reason})") from None


@contextmanager
def _without_limit() -> Iterator[None]:
    """Lift Pillow's limit, which is one for all threads, while a file is opened."""
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _frame(image: Image.Image, path: str | Path) -> Frame:
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        grey = _eight_bits(np.asarray(image), path)
        return np.repeat(grey[..., None], 3, axis=2)
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        return over_white(np.dstack([_srgb(rgba.convert("RGB"), profile), np.asarray(alpha)]))
    return _srgb(image, profile)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _is_deep(image: Image.Image) -> bool:
    """Whether the file holds values of 16 bits; of colours Pillow reads the upper eight."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _notes(image: Image.Image, deep: bool) -> list[str]:
    """Say in words what `_frame` changes in a picture beyond its orientation and profile."""
    if image.mode in DEEP:
        return [f"pixels of {'16 bits' if deep else DEEP[image.mode]}, brought to 8 bits"]  # early Pillow calls all I
    many = getattr(image, "n_frames", 1)
    first = [f"{many} pictures, of which the first is taken"] if many > 1 else []
    first += ["colours of 16 bits, brought to 8 bits"] if deep else []
    transparent = _has_alpha(image) and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255
    return [*first, *(["transparency, laid over white"] if transparent else [])]


def _eight_bits(values: np.ndarray, path: str | Path) -> Frame:
    """Grey of 16 bits, or of 32 bits with the same range, or of floating point in [0, 1], as uint8."""
    most = 1 if values.dtype.kind == "f" else 65535
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= most):
        kind = "floating-point" if most == 1 else "32-bit"
        raise UserError(
            f"{path}: expected {kind} pixels in [0, {most}], found {low:g} to {high:g}; save it with 8 or 16 bits"
        )
    return (values * (255 / most) + 0.5).astype(np.uint8)


def _srgb(image: Image.Image, profile: bytes | None) -> Frame:
    """8-bit pixels as sRGB; a profile that says nothing of use is left aside."""
    if profile and image.mode in ("L", "RGB", "CMYK"):
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(own):
                srgb = ImageCms.createProfile("sRGB")
                changed = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
                return np.array(changed or image.convert("RGB"))
        except (ImageCms.PyCMSError, OSError):
            pass
    return np.array(image.convert("RGB"))
