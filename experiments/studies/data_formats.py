"""How clips are best kept for training: folders of JPEG, H.264 with near key frames, or JPEG packed into LMDB.

`python -m memcomp.experiments.studies.data_formats [--root FOLDER/train] --output data_formats.json` writes the same
frames in each way and measures their size, how near they stay to the frames, what reading a pair costs once a clip is
known, and what a clip's first pair costs when the system has forgotten its files. LMDB is left out unless `lmdb` is
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from memcomp.experiments.data.clips import Clips
from memcomp.experiments.data.made_clips import as_prepared, moving
from memcomp.experiments.files import atomic_write
from memcomp.experiments.video import Frame, Frames

DISTANCES = (250, 50, 20, 10, 5, 1)
QUALITY = 95  # of JPEG, where its nearness to the frames is that of H.264 at crf 16 or better
Reader = Callable[[int, Sequence[int]], Tensor]
Way = tuple[Path, Callable[[], Reader]]  # where the files are, and what opens them anew


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure every way, several rounds in turn, the fastest of each; print the table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", type=Path, help="folder of square clips (default: made ones)")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="memcomp-formats-") as scratch:
        folder, clips = Path(scratch), _frames(args)
        ways: dict[str, Way] = {}
        for distance in DISTANCES:
            ways[f"H.264, a key frame every {distance}"] = _as_video(folder / f"h264_{distance}", clips, distance)
        ways["JPEG folders"] = _as_pictures(folder / "jpeg", clips)
        if importlib.util.find_spec("lmdb"):
            ways["JPEG in LMDB"] = _as_lmdb(folder / "lmdb", clips)
        rows = [_described(name, way, clips) for name, way in ways.items()]
        for _ in range(args.rounds):
            for row in rows:
                _time(row, ways[row["way"]], clips, args.pairs)
    told = {"load": os.getloadavg(), "clips": len(clips), "frames": sum(map(len, clips)), "rows": rows}
    with atomic_write(args.output) as temporary:
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['way']:<32} {row['megabytes']:7.2f} MB {row['psnr']:5.1f} dB {row['cpu_ms']:6.1f} ms CPU a pair "
            f"{row['first_ms']:6.1f} ms a first pair"
        )
    return rows


def _frames(args: argparse.Namespace) -> list[list[Frame]]:
    if args.root is None:
        return [list(moving(seed, args.frames, args.size)) for seed in range(args.clips)]
    paths = Clips(args.root, args.size).paths[: args.clips]
    return [list(islice(Frames(path), args.frames)) for path in paths]


# ---- ways: each writes the clips -------------------------------------------------------------------------------------


def _as_video(folder: Path, clips: list[list[Frame]], distance: int) -> Way:
    folder.mkdir()
    for number, frames in enumerate(clips):
        as_prepared(folder / f"{number:03d}.mp4", iter(frames), distance)
    return folder, partial(_clips, folder, len(clips[0][0]))


def _as_pictures(folder: Path, clips: list[list[Frame]]) -> Way:
    for number, frames in enumerate(clips):
        (folder / f"{number:03d}").mkdir(parents=True)
        for place, frame in enumerate(frames):
            (folder / f"{number:03d}" / f"{place:04d}.jpg").write_bytes(_jpeg(frame))
    return folder, partial(_clips, folder, len(clips[0][0]))


def _clips(folder: Path, size: int) -> Reader:
    return Clips(folder, size).read


def _as_lmdb(folder: Path, clips: list[list[Frame]]) -> Way:
    import lmdb

    with lmdb.open(str(folder), map_size=1 << 34) as store, store.begin(write=True) as writing:
        for number, frames in enumerate(clips):
            for place, frame in enumerate(frames):
                writing.put(f"{number}/{place}".encode(), _jpeg(frame))

    def opened() -> Reader:
        store = lmdb.open(str(folder), readonly=True, lock=False)

        def read(clip: int, frames: Sequence[int]) -> Tensor:
            with store.begin() as reading:
                found = [bytearray(reading.get(f"{clip}/{frame}".encode())) for frame in frames]
            pictures = [torch.frombuffer(data, dtype=torch.uint8) for data in found]
            return torch.stack([decode_jpeg(picture, ImageReadMode.RGB) for picture in pictures])

        return read

    return folder, opened


def _jpeg(frame: Frame) -> bytes:
    return bytes(iio.imwrite("<bytes>", frame, extension=".jpg", quality=QUALITY))


# ---- what is measured ------------------------------------------------------------------------------------------------


def _described(name: str, way: Way, clips: list[list[Frame]]) -> dict[str, Any]:
    """Size on disk, and nearness to the frames (PSNR of all values together)."""
    place, opened = way
    read, squares, count = opened(), 0.0, 0
    for number, frames in enumerate(clips):
        for frame in range(0, len(frames), 10):
            found = read(number, [frame])[0].permute(1, 2, 0).numpy().astype(np.float64)
            squares, count = squares + ((found - frames[frame]) ** 2).sum(), count + found.size
    size = sum(file.stat().st_blocks * 512 for file in _files(place))
    psnr = 10 * np.log10(255**2 / (squares / count))
    return {"way": name, "megabytes": size / 1e6, "psnr": psnr, "cpu_ms": float("inf"), "first_ms": float("inf")}


def _time(row: dict[str, Any], way: Way, clips: list[list[Frame]], pairs: int) -> None:
    """One round: the first pair of each clip from forgotten files, then pairs of known clips; the faster is kept."""
    place, opened = way
    _forget(_files(place))
    draw = random.Random(0)
    drawn = [(clip, sorted(draw.choices(range(len(frames)), k=2))) for clip, frames in enumerate(clips)]
    start = time.perf_counter()
    read = opened()
    for clip, frames in drawn:
        read(clip, frames)
    row["first_ms"] = min(row["first_ms"], 1e3 * (time.perf_counter() - start) / len(clips))
    drawn = [drawn[number % len(clips)] for number in range(pairs)]
    drawn = [(clip, sorted(draw.choices(range(len(clips[clip])), k=2))) for clip, _ in drawn]
    cpu = time.process_time()
    for clip, frames in drawn:
        read(clip, frames)
    row["cpu_ms"] = min(row["cpu_ms"], 1e3 * (time.process_time() - cpu) / pairs)


def _files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]


def _forget(files: Iterable[Path]) -> None:
    """Ask the system to drop what it holds of files in memory."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


if __name__ == "__main__":
    main()
