"""When frames are shown: a clock that only goes forward, and how even its steps are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

FOLDER_RATE = Fraction(25)  # frames per second of a folder of pictures, which does not tell
SMALLEST = Fraction(1, 1000)  # seconds between two frames of which a file says the same time
JUMP = Fraction(1, 4)  # seconds; a clock that goes back by more begins anew there


def seconds(stamp: int | None, base: Fraction | None) -> Fraction | None:
    """A timestamp in seconds; None if there is none."""
    return None if stamp is None or base is None else stamp * Fraction(base)


def rate_of(times: Sequence[Fraction | float]) -> Fraction:
    """Frames per second on average, of frames shown at `times` in seconds; 25 for a single one."""
    if len(times) < 2:
        return FOLDER_RATE
    return ((len(times) - 1) / (Fraction(times[-1]) - Fraction(times[0]))).limit_denominator(1001)


class Clock:
    """Places frames in time, each after the one before.

    Args:
        step: seconds from frame to frame where a file does not say.
    """

    def __init__(self, step: Fraction) -> None:
        self.step = step
        self._last: Fraction | None = None
        self._gap: Fraction | None = None
        self._shift = Fraction(0)

    def place(self, time: Fraction | None) -> Fraction:
        """The time of the next frame, which the file says is shown at `time` seconds."""
        last = self._last
        if last is None:
            place = Fraction(0) if time is None else time
        else:
            place = last + self.step if time is None else time + self._shift
            if last - place > JUMP:  # such as recordings put one behind the other
                self._shift += last + self.step - place
                place = last + self.step
            place = max(place, last + SMALLEST)
            self._gap = place - last
        self._last = place
        return place

    def last_step(self, said: Fraction | None) -> Fraction:
        """How long the last frame is shown: what the file says unless the gap before it makes that improbable."""
        usual = self._gap or self.step
        return said if said and said > usual / 2 else usual


class Pace:
    """Watches times go by, and says how even they were.

    Args:
        rate: frames per second that are expected.
    """

    def __init__(self, rate: Fraction) -> None:
        self.rate = rate
        self.first: Fraction | None = None
        self.last = Fraction(0)
        self.count = 0
        self.gaps: tuple[Fraction, Fraction] | None = None  # the smallest and the largest

    def add(self, time: Fraction) -> None:
        """Note the time of a frame."""
        if self.first is None:
            self.first = time
        else:
            gap = time - self.last
            low, high = self.gaps or (gap, gap)
            self.gaps = min(low, gap), max(high, gap)
        self.last, self.count = time, self.count + 1

    def __str__(self) -> str:
        if self.gaps is None or self.first is None:
            return f"at {float(self.rate):g} per second"
        rate = (self.count - 1) / (self.last - self.first)
        if self.gaps[1] - self.gaps[0] > Fraction(2, 1000):  # containers round to milliseconds
            return f"at their own times ({float(rate):.3g} per second on average)"
        return f"at {float(self.rate if abs(rate / self.rate - 1) < 0.002 else rate):g} per second"
