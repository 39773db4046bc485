"""`memcomp prepare`: every input worked through, then clips split by person, with a manifest and a contact sheet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memcomp.experiments.errors import UserError, counted
from memcomp.experiments.prepare.inputs import find_inputs, fit_for_names
from memcomp.experiments.prepare.manifest import Line, write_manifest, write_sheet
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.prepare.people import clusters, split
from memcomp.experiments.prepare.records import Record, Records
from memcomp.experiments.prepare.work import Piece, clip_file, look_file
from memcomp.experiments.prepare.workers import Task, work_through

NO_CODE = "no face to tell the person by"
ON_BOTH = "the person would be in train/ and in test/"


@dataclass(frozen=True)
class Prepared:
    """What a preparation has led to."""

    clips: int
    train: int
    """People in train/."""
    test: int
    """People in test/."""
    inputs: int
    without: int
    """Inputs that gave no clip."""
    troubled: Sequence[str]
    """Names of inputs that could not be had, or not be read to their end."""
    both: Sequence[str]
    """People who would be in train/ and in test/; their clips are left out."""

    @property
    def people(self) -> int:
        """How many there are, those of both sides among them."""
        return self.train + self.test + len(self.both)


def prepare(source: Path, output: Path, options: PrepareOptions) -> Prepared:
    """Make clips of everything in `source`, in `output`/train/PERSON and `output`/test/PERSON.

    Whatever has been done before is not done again; stopped anywhere, the same call goes on.

    Args:
        source: a video, a folder of videos, a folder of frames, or a metadata CSV.
        output: folder, empty or of a former call with the same options.
        options: how.

    Raises:
        UserError: the input or an option is wrong, or the folder holds something else.
    """
    inside, outside = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if outside == inside or (source.is_dir() and outside in inside.parents):
        raise UserError(f"--output {output}: expected a folder outside of the input {source}")
    inputs, told_by = find_inputs(source, options)
    heads, people = any(not one.parts for one in inputs), any(one.anonymous for one in inputs)
    task, records = Task(output, options, heads, people), Records(output)
    if not all(map(records.finished, inputs)):
        task.tools()  # what is missing is said before anything is written
    with records.held({"input": str(outside), **options.of_clips()}):
        todo = [one for one in inputs if not records.finished(one)]
        undone = {one.name for one in todo}
        records.forget_but(one for one in inputs if one.name not in undone)
        missing = work_through(task, todo, len(inputs))
        return _arrange(records, missing, told_by, options)


@dataclass
class _Clip:
    """A clip whose person is known."""

    record: Record
    piece: Piece
    person: str
    told_by: str
    side: str = ""
    copy: int = 1
    """Which one of several clips that would have one name."""

    @property
    def name(self) -> str:
        """Of the clip's file in its place; of a row of VoxCeleb's metadata as the published lists of pairs call it."""
        last = self.piece.end - 1 if self.piece.named_end is None else self.piece.named_end
        span = f"{self.piece.first:06d}#{last:06d}"
        return f"{self.person}#{self.record.video}#{span}{f'#{self.copy}' * (self.copy > 1)}.mp4"

    @property
    def place(self) -> str:
        """Relative to the output folder."""
        return f"{self.side}/{self.person}/{self.name}"


def _arrange(records: Records, missing: Mapping[str, str], told_by: str, options: PrepareOptions) -> Prepared:
    """Name people, choose their side, move their clips there; write the manifest and the contact sheet."""
    done = records.all()
    clips = _clips(done, told_by, options)
    sides = _sides(clips, options)
    for clip in clips:
        clip.side = clip.piece.partition or sides[clip.person]
    people = {side: {clip.person for clip in clips if clip.side == side} for side in ("train", "test")}
    both = [] if options.shared_people else sorted(people["train"] & people["test"])
    on_both = {id(clip.piece) for clip in clips if clip.person in both}
    clips = [clip for clip in clips if clip.person not in both]
    named = Counter[str]()
    for clip in clips:
        named[clip.place] += 1
        clip.copy = named[clip.place]
    records.move({f"{clip.record.key}/{clip_file(Path(), clip.piece).name}": clip.place for clip in clips})
    lines = _lines(done, clips, on_both)
    lines += [Line(name, None, None, 0, "missing", why) for name, why in missing.items()]
    lines.sort(key=lambda line: (line.input, -1 if line.first is None else line.first, line.last or 0))
    write_manifest(records.output, lines)
    first = {(clip.side, clip.person): clip for clip in reversed(clips)}
    if first:
        looks = [
            (f"{side} {person}", look_file(records.folder / clip.record.key, clip.piece))
            for (side, person), clip in sorted(first.items())
        ]
        write_sheet(records.output, looks)
    given = {clip.record.name for clip in clips}
    troubled = [line.input for line in lines if line.first is None and line.outcome != "done"]
    every = {line.input for line in lines}
    train, test = (len(people[side].difference(both)) for side in ("train", "test"))
    return Prepared(len(clips), train, test, len(every), len(every - given), troubled, both)


def _clips(done: Sequence[Record], told_by: str, options: PrepareOptions) -> list[_Clip]:
    """The clips of all records with their people, who are named, or found by their codes."""
    every = [(record, piece) for record in done for piece in record.result.pieces if piece.square]
    coded = [piece for _, piece in every if piece.code is not None]
    numbers = clusters([piece.code for piece in coded if piece.code is not None], options.same_person)
    found = {id(piece): f"person{number:05d}" for piece, number in zip(coded, numbers, strict=True)}
    clips = []
    for record, piece in every:
        known = piece.person or record.person
        if known is not None:
            clips.append(_Clip(record, piece, fit_for_names(known), told_by))
        elif id(piece) in found:
            by = f"{record.coder}, average linkage at {options.same_person:g}"
            clips.append(_Clip(record, piece, found[id(piece)], by))
    return clips


def _sides(clips: Sequence[_Clip], options: PrepareOptions) -> dict[str, str]:
    said = {clip.person: clip.piece.partition for clip in clips if clip.piece.partition}
    return split([clip.person for clip in clips], said, options.test_share, options.seed)


def _lines(done: Sequence[Record], clips: Sequence[_Clip], on_both: Container[int]) -> list[Line]:
    """The manifest's lines of what was worked through; `on_both`: pieces whose person is in train/ and in test/."""
    placed = {id(clip.piece): clip for clip in clips}
    lines = []
    for record in done:
        result = record.result
        written = sum(id(piece) in placed for piece in result.pieces)
        outcome = "done" if not result.failed else "incomplete" if result.frames else "failed"
        if result.failed and not result.pieces:
            outcome = "failed"
        reason = result.failed or counted(written, "clip")
        lines.append(Line(record.name, None, None, result.frames, outcome, reason))
        for piece in result.pieces:
            clip = placed.get(id(piece))
            span = (record.name, piece.first, max(piece.end - 1, piece.first), piece.end - piece.first)
            if clip is not None and piece.square is not None:
                who = clip.person, clip.told_by, clip.side, clip.place
                lines.append(Line(*span, "written", piece.why, *who, *piece.square))
            else:
                unplaced = ON_BOTH if id(piece) in on_both else NO_CODE
                lines.append(Line(*span, "left out", unplaced if piece.square else piece.why))
    return lines
