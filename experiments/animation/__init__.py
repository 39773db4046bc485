"""A picture moved as driving frames move: from files to a file, or frames in and frames out for live use.

`animate` is a generator over driving frames of any origin; `animate_files` reads, moves and writes, each in a thread of
its own (`pipeline`), in memory that does not grow with the video. `motion` says how motion is transferred, `track` what
the keypoints of a whole video tell (its best frame, zero-phase smoothing), `square` and `paste` cut a face out of a
picture and put it back.
"""

from memcomp.experiments.animation.animator import Animator, animate
from memcomp.experiments.animation.files import Animated, animate_files
from memcomp.experiments.animation.motion import Motion
from memcomp.experiments.animation.options import AnimationOptions
from memcomp.experiments.animation.turning import turn_files

__all__ = ["Animated", "AnimationOptions", "Animator", "Motion", "animate", "animate_files", "turn_files"]
