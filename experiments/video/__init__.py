"""Videos and pictures in and out, a few frames at a time: any length in constant memory.

What a file says of itself is obeyed: when each frame is shown (`reading`), which way up and how wide its pixels are,
its transparency and its colours (`pixels`, `colours`, `pictures`), and when its sound begins (`sound`). Which files
of a folder are taken, and in which order: `folders`. What comes through a pipe: `piped`.
"""

from memcomp.experiments.video.folders import PICTURES, VIDEOS, ClipFolder, is_clip, pictures_in
from memcomp.experiments.video.forms import SOUNDING, FrameWriter, form_of, write_frames
from memcomp.experiments.video.pictures import Frame, even, fit, picture_size, read_picture, to_frame
from memcomp.experiments.video.piped import Piped, is_pipe, open_frames
from memcomp.experiments.video.reading import DECODER_VERSION, BrokenOff, Frames, Shown, Timetable
from memcomp.experiments.video.seeking import FrameList, sought
from memcomp.experiments.video.sound import keep_audio
from memcomp.experiments.video.timing import FOLDER_RATE, rate_of
from memcomp.experiments.video.writing import write_video

__all__ = [
    "DECODER_VERSION",
    "FOLDER_RATE",
    "PICTURES",
    "SOUNDING",
    "VIDEOS",
    "BrokenOff",
    "ClipFolder",
    "Frame",
    "FrameList",
    "FrameWriter",
    "Frames",
    "Piped",
    "Shown",
    "Timetable",
    "even",
    "fit",
    "form_of",
    "is_clip",
    "is_pipe",
    "keep_audio",
    "open_frames",
    "picture_size",
    "pictures_in",
    "rate_of",
    "read_picture",
    "sought",
    "to_frame",
    "write_frames",
    "write_video",
]
