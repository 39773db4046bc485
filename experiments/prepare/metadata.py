"""VoxCeleb-style metadata: which parts of which videos show whom, and where; and yt-dlp, which fetches videos."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from memcomp.experiments.errors import UserError, few
from memcomp.experiments.files import existing_file
from memcomp.experiments.prepare.boxes import Box
from memcomp.experiments.video import VIDEOS

NEEDED = ("video_id", "start", "end", "bbox", "fps", "width", "height")
PARTITIONS = ("train", "test")
DOWNLOADER = "yt-dlp"


@dataclass(frozen=True)
class Part:
    """A part of a video that shows one head: a row of the CSV."""

    line: int
    start: Fraction
    """Seconds."""
    end: Fraction
    """Seconds; the frame that is shown then is no longer meant."""
    box: Box
    """In shares of the picture's sides."""
    person: str | None
    partition: str | None


def read_metadata(path: Path, shared_people: bool) -> dict[str, list[Part]]:
    """Read a CSV of video_id, start, end, bbox, fps, width, height, and perhaps partition and person_id.

    `start` and `end` are in frames at `fps`, `bbox` is left-top-right-bottom in pixels of `width` × `height`. Where
    there is no person_id, a video_id PERSON#VIDEO tells the person.

    Args:
        path: of the CSV.
        shared_people: take a person of two partitions.

    Returns:
        The parts of each video, by its id.

    Raises:
        UserError: a column is missing, a row cannot be read, or a person is in two partitions.
    """
    found: dict[str, list[Part]] = {}
    try:
        with existing_file(path, "metadata CSV").open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if lacking := [name for name in NEEDED if name not in (reader.fieldnames or ())]:
                raise UserError(f"{path}: expected columns {', '.join(NEEDED)}, it lacks {', '.join(lacking)}")
            for row in reader:
                try:
                    video, part = _part(row, reader.line_num)
                except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
                    raise UserError(f"{path}: line {reader.line_num}: {error}") from None
                found.setdefault(video, []).append(part)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a metadata CSV, it cannot be read as one ({error})") from None
    if not found:
        raise UserError(f"{path}: expected rows, it holds none")
    if not shared_people:
        _refuse_shared(path, found)
    return found


def _part(row: Mapping[str, str], line: int) -> tuple[str, Part]:
    person, sign, video = row["video_id"].strip().rpartition("#")
    if not video or not row.get("video_id"):
        raise ValueError("expected a video_id, found none")
    known = (row.get("person_id") or "").strip() or (person if sign else "")
    numbers = re.fullmatch(r"\s*(-?[\d.]+)-(-?[\d.]+)-(-?[\d.]+)-(-?[\d.]+)\s*", row["bbox"])
    if not numbers:
        raise ValueError(f"bbox {row['bbox']!r}: expected left-top-right-bottom")
    left, top, right, bottom = (float(number) for number in numbers.groups())
    width, height, rate = (Fraction(row[name]) for name in ("width", "height", "fps"))
    start, end = Fraction(row["start"]) / rate, Fraction(row["end"]) / rate
    if not (left < right and top < bottom and width > 0 and height > 0 and rate > 0 and 0 <= start < end):
        raise ValueError("expected left < right, top < bottom, 0 <= start < end, and fps, width, height above 0")
    box = Box(left / float(width), top / float(height), right / float(width), bottom / float(height))
    partition = (row.get("partition") or "").strip().lower() or None
    if partition not in (None, *PARTITIONS):
        raise ValueError(f"partition {partition!r}: expected train or test")
    return video, Part(line, start, end, box, known or None, partition)


def _refuse_shared(path: Path, found: Mapping[str, list[Part]]) -> None:
    sides: dict[str, set[str]] = {}
    for part in (part for parts in found.values() for part in parts if part.person and part.partition):
        sides.setdefault(str(part.person), set()).add(str(part.partition))
    if both := sorted(person for person, names in sides.items() if len(names) > 1):
        raise UserError(
            f"{path}: expected each person in one partition, {len(both)} of {len(sides)} are in train and in test: "
            f"{few(both)}; --shared-people takes them"
        )


def download(video: str, folder: Path) -> Path:
    """Fetch a video of YouTube by its id with yt-dlp, which must be on the path.

    Raises:
        UserError: there is no yt-dlp, or it does not succeed.
    """
    if shutil.which(DOWNLOADER) is None:
        raise UserError(f"{video}: expected as a video in {folder}, or {DOWNLOADER} on the path to download it")
    if not re.fullmatch(r"[\w-]+", video, re.ASCII):
        raise UserError(f"{video}: expected as a video in {folder}; it is no id that {DOWNLOADER} could download")
    form = ["--no-playlist", "--no-progress", "-f", "bestvideo[ext=mp4]/best[ext=mp4]/best"]
    name = ["-o", str(folder / f"{video}.%(ext)s").replace("%", "%%").replace("%%(ext)s", "%(ext)s")]
    done = subprocess.run(
        [DOWNLOADER, *form, *name, "--", f"https://www.youtube.com/watch?v={video}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    made = [folder / f"{video}{suffix}" for suffix in VIDEOS if (folder / f"{video}{suffix}").is_file()]
    if done.returncode or not made:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{video}: {DOWNLOADER} did not download it ({said})")
    return made[0]
