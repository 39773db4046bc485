"""Recipes: typed, strict YAML. Every key is a field below; a wrong one is an error that names the nearest right one."""

import argparse
import dataclasses
import json
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from memcomp.experiments.errors import UserError
from memcomp.experiments.schema import Reader, Schema, join, nearest

if TYPE_CHECKING:
    from memcomp import CompensationConfig


@dataclass(frozen=True)
class HostSection:
    """The generator. `model` uses upstream's own `model_params` names and is checked by `create_host`."""

    name: str = "fomm"
    model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MemorySection:
    """The memory. In YAML, the fields of `CompensationConfig` stand beside `preset`, `mode` and `scales`."""

    preset: Literal["paper", "release"] = "paper"
    mode: str = "inplace"
    scales: Literal["all"] | tuple[int, ...] = "all"
    config: dict[str, Any] = field(default_factory=dict)  # every field of CompensationConfig, resolved

    def compensation(self) -> "CompensationConfig":
        """The configuration to attach with."""
        from memcomp import CompensationConfig

        return CompensationConfig.from_dict(self.config)


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
    repeats: int = 1  # times that each person is seen in one epoch
    workers: int = 0  # processes that read data; 0 = the training process itself
    cache: str | None = None  # folder for rendered heads and decoded clips; null = the user's cache folder
    cache_gb: float = 4.0  # clips: decoded frames kept on disk at most
    augment: AugmentSection = field(default_factory=AugmentSection)


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
    consistency: float = 0.0
    generator_gan: float = 0.0
    feature_matching: float = 0.0
    discriminator_gan: float = 1.0
    transform: TransformSection = field(default_factory=TransformSection)


@dataclass(frozen=True)
class OptimSection:
    """Adam, one for each part of the host, and its schedule."""

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    lr: float = 2e-4
    memory_lr: float | None = None  # null = lr
    betas: tuple[float, ...] = (0.5, 0.999)
    warmup: int = 0  # steps of linear increase
    schedule: Literal["constant", "cosine_tail", "multistep"] = "constant"
    tail: float = 0.4  # cosine_tail: share of the steps over which the rate falls to zero
    milestones: tuple[int, ...] = ()  # multistep: epochs
    gamma: float = 0.1  # multistep: factor at each milestone
    clip: float | None = None  # largest gradient norm of each part
    skip_limit: int = 20  # steps in a row with a gradient that is not finite before training stops


@dataclass(frozen=True)
class LogSection:
    """What is written while training."""

    every: int = 1
    sample_every: int = 500
    checkpoint_every: int = 500
    held_out_every: int = 200
    held_out_pairs: int = 16


@dataclass(frozen=True)
class Recipe:
    """One training run: everything that decides its outcome."""

    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:1 …
    threads: int | None = None
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = True
    size: int = 256  # height and width of the pictures
    host: HostSection = field(default_factory=HostSection)
    memory: MemorySection | None = None
    init: str | None = None
    freeze_host: bool = False
    data: DataSection = field(default_factory=DataSection)
    loss: LossSection = field(default_factory=LossSection)
    optim: OptimSection = field(default_factory=OptimSection)
    log: LogSection = field(default_factory=LogSection)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, as the YAML holds it (memory fields beside `preset`); `recipe_from_dict` inverts it."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        if plain["memory"] is not None:
            plain["memory"].update(plain["memory"].pop("config"))
        return plain

    def to_yaml(self) -> str:
        """The resolved recipe as YAML: every key, with no default left out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: one of the package's by name ("fomm", "demo/fomm") or a YAML file by path.

    Args:
        name_or_path: name or path.
        overrides: "optim.lr=1e-3" and the like; the value is YAML.

    Raises:
        UserError: no such recipe; not YAML; an unknown key (with the nearest right one) or a value of a wrong type.
    """
    text, origin = _find(str(name_or_path))
    raw = _yaml(text, origin)
    recipe_from_dict(raw, origin)  # first without overrides, so that each error names its own origin
    return _with_overrides(raw, overrides, origin)


def with_overrides(recipe: Recipe, overrides: Sequence[str], origin: str) -> Recipe:
    """The recipe with some keys changed, as in `load_recipe`; `origin` is named in errors.

    Raises:
        UserError: as `load_recipe`.
    """
    return _with_overrides(recipe.to_dict(), overrides, origin)


def recipe_from_dict(raw: Mapping[str, Any], origin: str) -> Recipe:
    """Check a plain dict and make the recipe of it; `origin` (a file) is named in errors.

    Raises:
        UserError: as `load_recipe`.
    """
    recipe = _SCHEMA.read(raw, origin)
    _check(recipe, origin)
    return recipe


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    root = resources.files("memcomp.recipes")
    files = [(f"{folder}{item.name}") for folder in ("", "demo/") for item in (root / folder).iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp recipes`."""
    parser.add_argument("name", nargs="?", help="print this recipe, with its comments")


def run(args: argparse.Namespace) -> None:
    """`memcomp recipes`: list the packaged recipes with their first comment, or print one."""
    if args.name:
        print(_find(args.name)[0], end="")
        return
    for name in recipe_names():
        print(f"{name:23} {_find(name)[0].splitlines()[0].lstrip('# ')}")


# ---------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, without silently keeping the last of two equal keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(problem=f"key {key!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _find(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace"), str(path)
    bare = name.removesuffix(".yaml")
    if bare in recipe_names():
        resource = resources.files("memcomp.recipes").joinpath(f"{bare}.yaml")
        return resource.read_text(encoding="utf-8"), f"recipe {bare}"
    raise UserError(
        f"{name}: expected a recipe file or one of {', '.join(recipe_names())}" + nearest(bare, recipe_names())
    )


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{origin}{place}: expected YAML, {getattr(error, 'problem', None) or 'unreadable'}") from None


def _with_overrides(raw: dict[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    for override in overrides:
        _override(raw, override)
    return recipe_from_dict(raw, f"{origin} with {' '.join(overrides)}" if overrides else origin)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override!r}: expected key=value, such as optim.lr=1e-3")
    *path, last = key.strip().split(".")
    for part in path:
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise UserError(f"{override!r}: {part!r} holds a single value, not keys")
    raw[last] = _yaml(text, f"override {override!r}")


# ---------------------------------------------------------------- checking


def _memory(value: Any, key: str, reader: Reader) -> MemorySection:
    """`preset`, `mode` and `scales` are the section's own; every other key belongs to `CompensationConfig`."""
    from memcomp import CompensationConfig  # here, since it brings torch

    own, theirs = typing.get_type_hints(MemorySection), typing.get_type_hints(CompensationConfig)
    del own["config"]
    reader.check_keys(value, key, [*own, *theirs])
    parsed = {name: reader.read((own | theirs)[name], item, join(key, name)) for name, item in value.items()}
    section = MemorySection(**{name: parsed.pop(name) for name in list(parsed) if name in own})
    try:
        config = getattr(CompensationConfig, section.preset)(**parsed)
    except ValueError as error:
        raise UserError(f"{reader.origin}: {key}: {error}") from None
    return dataclasses.replace(section, config=config.to_dict())


_SCHEMA = Schema(Recipe, {MemorySection: _memory})
_NO_TERMS = ("discriminator_gan", "feature_matching", "transform")  # they add nothing to the generator's loss alone
_POSITIVE = (  # no number of a recipe is negative, and these are not 0 either
    "size threads data.identities data.frames data.rate data.repeats loss.perceptual.scales loss.transform.points_tps "
    "optim.steps optim.epochs optim.batch_size optim.lr optim.memory_lr optim.clip "
    "log.every log.sample_every log.checkpoint_every log.held_out_every log.held_out_pairs"
)
_MOST = dict.fromkeys(("data.augment.time_flip", "data.augment.mirror", "loss.perceptual.scales", "optim.tail"), 1.0)
_MOST |= {"data.augment.hue": 0.5, "seed": 2**63 - 1}


def _check(recipe: Recipe, origin: str) -> None:
    """What types cannot say."""
    optim, data, loss = recipe.optim, recipe.data, recipe.loss
    rules: list[tuple[object, str]] = [
        ((optim.steps is None) != (optim.epochs is None), "optim: expected either steps or epochs, and not both"),
        (data.kind != "clips" or data.root, "data.root: expected the folder with train/ and test/ clips"),
        (loss.consistency == 0 or recipe.memory is not None, "loss.consistency: expected 0 without a memory"),
        (not recipe.freeze_host or recipe.memory is not None, "freeze_host: without a memory nothing would be trained"),
        (len(optim.betas) == 2 and max(optim.betas) < 1, "optim.betas: expected two numbers below 1"),
        (any(value for key, value in vars(loss).items() if key not in _NO_TERMS), "loss: expected at least one term"),
        (loss.perceptual is None or loss.perceptual.scales, "loss.perceptual.scales: expected at least one number"),
    ]
    for key in _SCHEMA.keys:
        value: Any = recipe
        for name in key.split("."):
            value = getattr(value, name, None)
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) in (int, float):
                above, most = key in _POSITIVE.split(), _MOST.get(key, math.inf)
                rules.append((number > 0 or not above, f"{key}: expected a number above 0, got {number}"))
                rules.append((0 <= number <= most, f"{key}: expected 0 … {most}, got {number}"))
    for holds, message in rules:
        if not holds:
            raise UserError(f"{origin}: {message}")
