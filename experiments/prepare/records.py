"""What is remembered of a preparation, so that it goes on wherever it stopped: hidden files in the output."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import writable_folder
from memcomp.experiments.output.tables import write_json
from memcomp.experiments.prepare.inputs import Input
from memcomp.experiments.prepare.work import Result

FOLDER = ".prepare"
SETTINGS, PLACES, LOCK = "settings.json", "places.json", "lock"


@dataclass(frozen=True)
class Record:
    """What became of one input."""

    key: str
    name: str
    video: str
    person: str | None
    coder: str
    """What made its identity codes."""
    result: Result
    stamp: list[Any]


class Records:
    """The records of an output folder, and the clips that wait there for their people.

    Args:
        output: folder that is prepared into.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, output / FOLDER

    @contextmanager
    def held(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Begin, or go on with, a preparation with these settings; nobody else may meanwhile.

        Raises:
            UserError: the folder holds something else, or clips made with other settings, or is in use.
        """
        known = self.folder / SETTINGS
        if self.output.exists() and not known.is_file() and set(_names(self.output)) - {FOLDER}:
            raise UserError(f"{self.output}: expected an empty folder, or one that `memcomp prepare` has begun")
        writable_folder(self.folder)
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.output}: another `memcomp prepare` is writing into it") from None
            self._sweep()
            if known.is_file():
                _compare(self.output, json.loads(known.read_text("utf-8")), settings)
            else:
                write_json(known, settings)
            yield

    def staging(self, name: str) -> Path:
        """Where the clips of an input wait."""
        return self.folder / key_of(name)

    def write(self, one: Input, result: Result, coder: str) -> None:
        """Remember what became of an input, and what coded its people."""
        content = {"name": one.name, "video": one.video, "person": one.person, "coder": coder, "stamp": stamp_of(one)}
        write_json(self.staging(one.name).with_suffix(".json"), {**content, "result": result.as_json()})

    def finished(self, one: Input) -> bool:
        """Whether an input is done, and has not changed since; one that was fetched may be gone."""
        content = self._read(key_of(one.name))
        if content is None:
            return False
        stamp = stamp_of(one)
        return content["stamp"] == stamp or (one.path is None and content["stamp"][0] == stamp[0])

    def forget_but(self, kept: Iterable[Input]) -> None:
        """Remove what is known of all other inputs, and their clips: some have changed, some are there no more."""
        keys = {key_of(one.name) for one in kept}
        places = self.places()
        gone = [name for name in places if name.split("/")[0] not in keys]
        for name in gone:
            for place in places.pop(name):
                (self.output / place).unlink(missing_ok=True)
                self._tidy((self.output / place).parent)
        if gone:
            write_json(self.folder / PLACES, places)
        for entry in list(self.folder.iterdir()):
            if entry.is_dir() and entry.name not in keys:
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.suffix == ".json" and entry.name not in (SETTINGS, PLACES) and entry.stem not in keys:
                entry.unlink(missing_ok=True)

    def all(self) -> list[Record]:
        """All records, by the names of the inputs."""
        found = []
        for file in self.folder.glob("*.json"):
            content = None if file.name in (SETTINGS, PLACES) else self._read(file.stem)
            if content is not None:
                result = Result.from_json(content.pop("result"))
                found.append(Record(key=file.stem, result=result, **content))
        return sorted(found, key=lambda record: record.name)

    def places(self) -> dict[str, list[str]]:
        """Where each clip that has left its waiting place may be, relative to the output folder."""
        file = self.folder / PLACES
        return json.loads(file.read_text("utf-8")) if file.is_file() else {}

    def move(self, wanted: Mapping[str, str]) -> None:
        """Bring clips, by their names below the hidden folder, to where they are wanted below the output folder.

        Stopped anywhere, it can be done again: a clip is at one of its known places or still waits.
        """
        places = self.places()
        for name in places.keys() - wanted.keys():  # wanted nowhere any more: back to where it waited
            for place in places[name]:
                if (self.output / place).is_file():
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(self.output / place, self.folder / name)
                    self._tidy((self.output / place).parent)
        known = {name: [*dict.fromkeys([*places.get(name, []), place])] for name, place in wanted.items()}
        if known != places:
            write_json(self.folder / PLACES, known)
        for name, place in wanted.items():
            target = self.output / place
            for source in (self.folder / name, *(self.output / other for other in known[name] if other != place)):
                if source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source, target)
                    self._tidy(source.parent)
        if known != (now := {name: [place] for name, place in wanted.items()}):
            write_json(self.folder / PLACES, now)

    def _tidy(self, folder: Path) -> None:
        """Remove a person's folder, and that of a side, if it is empty."""
        with suppress(OSError):
            while self.folder not in (folder, folder.parent) and folder != self.output:
                folder.rmdir()
                folder = folder.parent

    def _read(self, key: str) -> dict[str, Any] | None:
        file = self.folder / f"{key}.json"
        return json.loads(file.read_text("utf-8")) if file.is_file() else None

    def _sweep(self) -> None:
        """Remove what a process that was killed has left half-written."""
        for folder in (self.output, self.folder):
            for name in _names(folder):
                if name.startswith((".writable-", ".manifest-", ".sheet-")) or (
                    folder == self.folder and name[0] == "."
                ):
                    (folder / name).unlink()


def key_of(name: str) -> str:
    """A short name for what is kept of an input."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def stamp_of(one: Input) -> list[Any]:
    """What changes when an input does: what metadata say of it, then its sizes and times."""
    return [hashlib.sha256(repr(one.parts).encode()).hexdigest()[:16], *one.stamp()]


def _names(folder: Path) -> Sequence[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _compare(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f"{output}: was begun with {name} = {before.get(name)}, expected the same, not {now[name]}; "
                "name another --output"
            )
