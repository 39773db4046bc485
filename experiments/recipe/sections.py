"""The sections of a recipe: every key, its type and its default. `recipe.load` reads them from YAML."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from memcomp.config import CompensationConfig

BESIDE = {"beside": True}  # a field whose own fields stand in its place, as keys of the section that it is in


@dataclass(frozen=True)
class HostSection:
    """The generator. `model` uses upstream's own `model_params` names and is checked by `create_host`."""

    name: str = "fomm"
    model: dict[str, Any] = field(default_factory=dict)
    widened: float = 1.0  # by what factor `capacity` made the generator in `model` wider: a note, nothing follows


@dataclass(frozen=True)
class MemorySection:
    """The memory. In YAML, the fields of `config` stand beside `preset`, `mode` and `scales`."""

    preset: Literal["paper", "release", "placed"] = "paper"
    mode: Literal["inplace", "skip", "skip_control"] = "inplace"
    scales: Literal["all"] | tuple[int, ...] = "all"
    config: CompensationConfig = field(default=CompensationConfig(), metadata=BESIDE)


@dataclass(frozen=True)
class AugmentSection:
    """Augmentation of a pair of frames; both frames get the same."""

    time_flip: float = 0.5  # probability of swapping source and driving
    mirror: float = 0.5  # probability of mirroring, drawn only if the pair was not swapped (as upstream)
    brightness: float = 0.0  # factor drawn in [1 - x, 1 + x]
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift drawn in [-x, x] of the colour circle


@dataclass(frozen=True)
class DataSection:
    """Where pairs of frames come from."""

    kind: Literal["heads", "clips"] = "heads"
    root: str | None = None  # clips: folder with train/ and test/
    identities: int = 200  # heads: people to train on
    frames: int = 16  # heads: frames of each
    rate: float = 25.0  # heads: frames per second of their motion
    seed: int = 0  # heads: which people
    depth: bool = False  # heads: pictures with their true disparity as fourth channel
    motion: bool = False  # heads: pictures with their exact motion as four further channels
    pose: bool = False  # heads: training pictures with their exact head pose as three further channels
    correspondence: bool = False  # heads: training pictures with where and whether the source shows them
    repeats: int = 1  # times that each person is seen in one epoch
    workers: int = 0  # processes that read data; 0 = the training process itself
    cache: str | None = None  # folder for rendered heads and decoded clips; null = the user's cache folder
    cache_gb: float = 4.0  # clips: decoded frames kept on disk at most
    shared_people: bool = False  # clips: let a person be in train/ and in test/
    augment: AugmentSection = field(default_factory=AugmentSection)

    @property
    def channels(self) -> int:
        """Channels that a host needs: colours, the disparity where it is given, the motion where it is.

        Pose and correspondence are for the loss alone, so that hosts are measured without.
        """
        return 3 + self.depth + 4 * self.motion

    @property
    def loaded_channels(self) -> int:
        """Channels of a training picture: those of the host, and the pose or correspondence, which the loss reads."""
        return self.channels + 3 * self.pose + 3 * self.correspondence

    @property
    def loaded_as_float(self) -> bool:
        """Whether training pictures are float32 in [0, 1]; otherwise they are bytes."""
        return self.motion or self.pose or self.correspondence


@dataclass(frozen=True)
class PerceptualSection:
    """The perceptual pyramid loss (FOMM, §3.3): features of a fixed network at several scales of the picture."""

    backbone: str = "vgg19"  # any timm model
    layers: tuple[str, ...] | None = None  # its submodules; null = those that timm names
    layer_weights: tuple[float, ...] | None = None  # null = 1 each
    scales: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    weights: str = "hub"  # "hub", "package:NAME" or a file
    weight: float = 10.0


@dataclass(frozen=True)
class TransformSection:
    """The random warp of the equivariance losses."""

    sigma_affine: float = 0.05
    sigma_tps: float = 0.005
    points_tps: int = 5


@dataclass(frozen=True)
class LossSection:
    """Weights of the loss terms; 0 leaves a term out."""

    perceptual: PerceptualSection | None = None
    pyramid_l1: float = 0.0
    ssim: float = 0.0
    equivariance_value: float = 0.0
    equivariance_jacobian: float = 0.0
    keypoint_distance: float = 0.0
    warp: float = 0.0
    background: float = 0.0
    keypoint_prior: float = 0.0
    headpose: float = 0.0
    expression: float = 0.0
    motion: float = 0.0
    visibility: float = 0.0
    pose_teacher: str | None = None  # of headpose: the file of a head-pose network; null = the pictures tell it
    consistency: float = 0.0
    teacher: float = 0.0
    generator_gan: float = 0.0
    feature_matching: float = 0.0
    discriminator_gan: float = 1.0
    transform: TransformSection = field(default_factory=TransformSection)


NO_TERMS = (
    "discriminator_gan",
    "feature_matching",
    "pose_teacher",
    "transform",
)  # they add nothing to the generator's loss alone


@dataclass(frozen=True)
class OptimSection:
    """Adam, one for each part of the host, and its schedule."""

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    accumulate: int = 1  # parts in which each process works on its share of a batch, for memory's sake
    ema: float | None = None  # decay of the running average of the weights that is measured and kept; null = none
    lr: float = 2e-4
    memory_lr: float | None = None  # null = lr
    betas: tuple[float, ...] = (0.5, 0.999)
    warmup: int = 0  # steps of linear increase
    schedule: Literal["constant", "cosine_tail", "multistep"] = "constant"
    tail: float = 0.4  # cosine_tail: share of the steps over which the rate falls to zero
    milestones: tuple[int, ...] = ()  # multistep: epochs
    gamma: float = 0.1  # multistep: factor at each milestone
    weight_decay: float = 0.0  # Adam's: the parameters, so often, are added to their gradients
    clip: float | None = None  # largest gradient norm of each part
    clip_norm: Literal[2, "inf"] = 2  # which norm
    clip_parts: tuple[str, ...] | None = None  # sections of the host; null = all
    skip_limit: int = 20  # steps in a row with a gradient that is not finite before training stops


@dataclass(frozen=True)
class LogSection:
    """What is written while training."""

    every: int = 1
    sample_every: int = 500
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = 10.0  # minutes after which a checkpoint is due as well; null = steps alone
    keep: int = 2  # checkpoints kept: the newest, and those before it
    keep_best: bool = True  # the weights of the least held-out loss as well
    held_out_every: int = 200
    held_out_pairs: int = 16


@dataclass(frozen=True)
class Recipe:
    """One training run: everything that decides its outcome."""

    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:1 … | mps
    threads: int | None = None
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: bool = True
    compile: bool = False  # host and memory by torch.compile
    size: int = 256  # height and width of the pictures
    host: HostSection = field(default_factory=HostSection)
    memory: MemorySection | None = None
    capacity: Literal["parameters", "flops"] | None = None  # instead of the memory a host as large as both together
    init: str | None = None
    freeze_host: bool = False
    freeze_motion: bool = False
    stage: str | None = None  # a further training stage of the host; null = the main one
    data: DataSection = field(default_factory=DataSection)
    loss: LossSection = field(default_factory=LossSection)
    optim: OptimSection = field(default_factory=OptimSection)
    log: LogSection = field(default_factory=LogSection)

    @property
    def trains(self) -> bool:
        """Whether it says what is minimised; if not, it describes a host and its data alone."""
        return self.stage is not None or any(value for key, value in vars(self.loss).items() if key not in NO_TERMS)

    @property
    def label(self) -> str:
        """The host and what is attached to it, for tables: "fomm", "fomm + memory", "fomm + skips + memory" …"""
        if self.memory is None:
            return self.host.name + (f", {self.host.widened:.3g} times as wide" if self.host.widened != 1 else "")
        kinds = {"inplace": "memory", "skip": "skips + memory", "skip_control": "skips"}
        return f"{self.host.name} + {kinds[self.memory.mode]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, as the YAML holds it (memory fields beside `preset`); `recipe_from_dict` inverts it."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        if plain["memory"] is not None:
            plain["memory"].update(plain["memory"].pop("config"))
        return plain

    def to_yaml(self) -> str:
        """The resolved recipe as YAML: every key, with no default left out."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)
