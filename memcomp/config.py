"""What a compensation is made of, as data: typed, strict, saved with the weights."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Variant = Literal["paper", "release"]
Split = Literal["half", "interleaved", "none"]
Start = Literal["paper", "identity", "residual"]
Sharing = Literal["memory", "networks"]
MemoryInit = Literal["released", "unit"]
_CHOICES = {"variant": Variant, "split": Split, "start": Start, "sharing": Sharing, "memory_init": MemoryInit}
_COUNTS = ("memory_channels", "kernels", "identity_hidden", "identity_code", "kernel_hidden", "queries")
RUNTIME = ("queries",)  # choices of a run that change no weight's meaning


@dataclass(frozen=True)
class CompensationConfig:
    """The choices of a memory compensation. Start from a preset: `CompensationConfig.paper(start="identity")`.

    Raises ValueError, naming the field, for a value of the wrong kind or out of range.
    """

    variant: Variant = "paper"
    """"paper": Eq. 1-3. "release": the authors' published unit (see memcomp/release.py)."""
    memory_channels: int = 512
    """C_m >= 1."""
    memory_size: tuple[int, int] = (32, 32)
    """(H_m, W_m)."""
    memory_init: MemoryInit = "released"
    """Deviation of M_o at the start. "released": sqrt(2 / (C_m H_m W_m)). "unit": 1, for small learning rates only."""
    split: Split = "half"
    """Which channels are compensated: the second "half" (Eq. 3), every odd one ("interleaved"), all ("none")."""
    identity_conditioning: bool = True
    """False: no IICM, M_o in place of M_s (Table 2)."""
    start: Start = "paper"
    """"paper": the compensated channels replace the feature's. "identity": through a gate that starts at zero.
    "residual": what is read is added to the feature, through an output convolution that starts at zero."""
    attention_scale: float = 1.0
    """Factor on F_Q^T F_K > 0: 1 in Eq. 2, 1/4 as released."""
    sharing: Sharing = "memory"
    """What the scales have in common: M_o ("memory", paper), or also IICM and attention ("networks", released)."""
    consistency: bool = True
    """False: a recording holds no term of Eq. 4, its loss is zero (Table 2)."""
    kernels: int = 4
    """Kernels mixed by a dynamic convolution."""
    temperature: float = 34.0
    """Temperature of the softmax over these kernels, > 0."""
    identity_hidden: int = 128
    """Hidden width of the MLP that makes S_id."""
    identity_code: int = 512
    """Width of S_id in variant "release"; in "paper" S_id scales the memory's channels itself, so it is C_m."""
    kernel_hidden: int | None = None
    """Hidden width of the kernel attention; None: C_m // 4 + 1 as released, but at least 16."""
    noise: bool = False
    """Variant "release": draw noise in training mode when none is supplied."""
    place: bool = False
    """A term of the logits compares where query and key are (see memcomp/placed.py, as for what follows)."""
    driving: bool = False
    """S_id knows the driving keypoints too: where the head goes. The host must show them."""
    visibility: bool = False
    """Query and descriptor know what the source shows: (B, 1, h, w) in [0, 1], from the host."""
    context: tuple[int, ...] = ()
    """Sides of the grids on which (visible) features are averaged for the query; () = none."""
    normalised: bool = False
    """Query and key are compared by direction, at a learned temperature."""
    queries: int | None = None
    """Largest side of the grid on which the memory is asked; None: every place of the feature. May change any time."""

    def __post_init__(self) -> None:
        for name in ("memory_size", "context"):
            if isinstance(getattr(self, name), (list, tuple)):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choice in _CHOICES.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name} must be one of {get_args(choice)}, not {getattr(self, name)!r}")
        size = self.memory_size
        if not (isinstance(size, tuple) and len(size) == 2 and all(_positive(s, int) for s in size)):
            raise ValueError(f"memory_size must be two positive integers (H_m, W_m), not {size!r}")
        if not (isinstance(self.context, tuple) and all(_positive(side, int) for side in self.context)):
            raise ValueError(f"context must be a list of positive integers, not {self.context!r}")
        for name in _COUNTS:
            value = getattr(self, name)
            if not (_positive(value, int) or (name in ("kernel_hidden", "queries") and value is None)):
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        for name in ("attention_scale", "temperature"):
            if not _positive(getattr(self, name), (int, float)):
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)!r}")
        for name in ("identity_conditioning", "consistency", "noise", "place", "driving", "visibility", "normalised"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.noise and (self.variant != "release" or not self.identity_conditioning):
            raise ValueError("noise needs variant 'release' with identity_conditioning: nothing else adds any")
        if self.variant == "release" and (self.reads_by_place or self.driving or self.start == "residual"):
            fields = "place, driving, visibility, context, normalised, queries and start 'residual'"
            raise ValueError(f"{fields} need variant 'paper'")
        if self.driving and not self.identity_conditioning:
            raise ValueError("driving needs identity_conditioning: it is S_id that knows the driving keypoints")

    @property
    def reads_by_place(self) -> bool:
        """Whether the memory is read as memcomp/placed.py does, not as the paper does."""
        return self.place or self.visibility or self.normalised or bool(self.context) or self.queries is not None

    @classmethod
    def paper(cls, **overrides: Any) -> "CompensationConfig":
        """The paper's equations; where the paper is silent (kernels, temperature, widths, M_o's start) as released."""
        return cls.from_dict(overrides)

    @classmethod
    def release(cls, **overrides: Any) -> "CompensationConfig":
        """The authors' published unit."""
        preset = {
            "variant": "release",
            "split": "interleaved",
            "attention_scale": 0.25,
            "sharing": "networks",
        }
        return cls.from_dict(preset | overrides)

    @classmethod
    def placed(cls, **overrides: Any) -> "CompensationConfig":
        """The memory read by place, pose and visibility, added to all channels (see memcomp/placed.py).

        M_o starts with deviation one. At the published widths it takes 1.13 to 1.22 times the operations of
        `paper` in inference; with ``split="half"``, as the paper splits the channels, 1.00 to 1.05. Where features are
        small and C_m is not (64 at 32×32 of 48 channels) it takes 1.44 times as many, half the channels 1.15.
        """
        preset = {
            "split": "none",
            "start": "residual",
            "memory_init": "unit",
            "place": True,
            "driving": True,
            "visibility": True,
            "normalised": True,
        }
        return cls.from_dict(preset | overrides)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold; `from_dict` takes them back."""
        return asdict(self) | {"memory_size": list(self.memory_size), "context": list(self.context)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CompensationConfig":
        """The config of these values; fields left out take the paper's.

        Raises:
            ValueError: naming an unknown field and the nearest right one.
        """
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1, cutoff=0)
                raise ValueError(f"unknown field {key!r} of CompensationConfig: did you mean {near[0]!r}?")
        return cls(**values)


def _positive(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf
