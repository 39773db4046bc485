"""Which values the keys of a recipe may have, beyond their types."""

import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from memcomp.config import CompensationConfig
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.reader import Reader, Schema, join
from memcomp.experiments.recipe.sections import NO_TERMS, MemorySection, Recipe


def _memory(value: Any, key: str, reader: Reader) -> MemorySection:
    """`preset`, `mode` and `scales` are the section's own; every other key belongs to `CompensationConfig`."""
    own, theirs = typing.get_type_hints(MemorySection), typing.get_type_hints(CompensationConfig)
    del own["config"]
    reader.check_keys(value, key, [*own, *theirs])
    parsed = {name: reader.read((own | theirs)[name], item, join(key, name)) for name, item in value.items()}
    section = {name: parsed.pop(name) for name in list(parsed) if name in own}
    preset = section.get("preset", MemorySection.preset)
    try:
        return MemorySection(**section, config=getattr(CompensationConfig, preset)(**parsed))
    except ValueError as error:
        raise UserError(f"{reader.origin}: {key}: {error}") from None


SCHEMA = Schema(Recipe, {MemorySection: _memory})
_POSITIVE = (  # no number of a recipe is negative, and these are not 0 either
    "size threads host.widened data.identities data.frames data.rate data.repeats loss.perceptual.scales "
    "loss.transform.points_tps optim.steps optim.epochs optim.batch_size optim.accumulate optim.lr optim.memory_lr "
    "optim.clip log.every log.sample_every log.checkpoint_every log.checkpoint_minutes log.keep log.held_out_every "
    "log.held_out_pairs"
)
_WIDTHS = (  # of upstream's model_params, wherever they stand in `host.model`
    "num_kp num_channels image_channel feature_channel reshape_channel reshape_depth compress num_bins "
    "num_tps num_blocks num_down_blocks num_layers block_expansion "
    "max_features scale_factor temperature id_bottle_size pose_bottle_size"
)
_MOST = dict.fromkeys(("data.augment.time_flip", "data.augment.mirror", "loss.perceptual.scales", "optim.tail"), 1.0)
_MOST |= {"optim.ema": 1.0, "data.augment.hue": 0.5, "seed": 2**63 - 1, "data.workers": 1024}
NO_TEACHER = (
    "loss.headpose: expected who teaches it: data.pose: true, of procedural heads; of faces loss.pose_teacher, "
    "the file of a head-pose network in Hopenet's format, such as hopenet_robust_alpha1.pkl"
)
OF_MOTION = (  # terms that train nothing but keypoints and motion
    "equivariance_value",
    "equivariance_jacobian",
    "keypoint_distance",
    "background",
    "keypoint_prior",
    "headpose",
    "expression",
    "motion",
    "visibility",
)
Rule = tuple[bool, str]  # whether it holds, and what to say if not


def check(recipe: Recipe, origin: str, *, to_train: bool = True) -> None:
    """Check what types cannot say.

    Args:
        recipe: to check.
        origin: where it is from, for the error.
        to_train: it must say what to train, and for how long.

    Raises:
        UserError: naming `origin`, the key and what was expected.
    """
    rules = [*_combinations(recipe), *(_training(recipe) if to_train else ()), *_ranges(recipe)]
    for holds, message in rules:
        if not holds:
            raise UserError(f"{origin}: {message}")


def _training(recipe: Recipe) -> Iterator[Rule]:
    optim, loss = recipe.optim, recipe.loss
    terms = any(value for key, value in vars(loss).items() if key not in NO_TERMS)
    yield optim.steps is not None or optim.epochs is not None, "optim: expected either steps or epochs, got neither"
    yield recipe.trains, "loss: expected at least one term"
    yield not terms or recipe.stage is None, f"loss: expected no term: stage {recipe.stage} has a loss of its own"


def _combinations(recipe: Recipe) -> Iterator[Rule]:
    """What one key demands of another."""
    optim, data, loss = recipe.optim, recipe.data, recipe.loss
    mode = None if recipe.memory is None else recipe.memory.mode
    yield (
        optim.steps is None or optim.epochs is None,
        "optim: expected either steps or epochs, and not both: to count steps, unset the other by "
        "optim.epochs=null; to count epochs, by optim.steps=null",
    )
    yield data.kind != "clips" or bool(data.root), "data.root: expected the folder with train/ and test/ clips"
    yield loss.consistency == 0 or recipe.memory is not None, "loss.consistency: expected 0 without a memory"
    yield loss.consistency == 0 or mode != "skip_control", "loss.consistency: expected 0 with memory.mode skip_control"
    yield loss.teacher == 0 or recipe.memory is not None, "loss.teacher: expected 0 without a memory"
    yield loss.teacher == 0 or mode != "skip_control", "loss.teacher: expected 0 with memory.mode skip_control"
    yield data.frames > 1, f"data.frames: expected 2 or more, got {data.frames}"
    true_depth = "data.depth: expected false, only procedural heads have a true depth"
    yield data.kind == "heads" or not data.depth, true_depth
    true_motion = "data.motion: expected false, only procedural heads (without depth) have a true motion"
    yield not data.motion or (data.kind == "heads" and not data.depth), true_motion
    true_pose = "data.pose: expected false, only procedural heads (without depth and motion) have a true pose"
    yield not data.pose or (data.kind == "heads" and not data.depth and not data.motion), true_pose
    exact = "data.correspondence: expected false, only of procedural heads (without depth, motion and pose) it is known"
    yield not data.correspondence or (data.kind == "heads" and not (data.depth or data.motion or data.pose)), exact
    known = "data.correspondence: expected true with loss.motion or loss.visibility, false without both"
    yield (loss.motion > 0 or loss.visibility > 0) == data.correspondence, known
    yield loss.headpose == 0 or data.pose or loss.pose_teacher is not None, NO_TEACHER
    yield loss.pose_teacher is None or not data.pose, "loss.pose_teacher: expected null with data.pose, which is exact"
    yield not recipe.freeze_host or loss.generator_gan == 0, "loss.generator_gan: expected 0 with freeze_host"
    yield not (recipe.freeze_host and recipe.freeze_motion), "freeze_motion: expected false with freeze_host"
    yield not recipe.freeze_motion or recipe.stage is None, "freeze_motion: expected false in a further stage"
    for name in ("motion", "visibility"):
        yield not recipe.freeze_host or getattr(loss, name) == 0, f"loss.{name}: expected 0 with freeze_host"
    for name in OF_MOTION:
        yield not recipe.freeze_motion or getattr(loss, name) == 0, f"loss.{name}: expected 0 with freeze_motion"
    untrained = "freeze_host: without a memory nothing would be trained"
    yield not recipe.freeze_host or recipe.memory is not None, untrained
    yield recipe.capacity is None or recipe.memory is not None, "capacity: expected a memory to be as large as"
    yield recipe.capacity is None or not recipe.freeze_host, "capacity: expected freeze_host: false"
    yield len(optim.betas) == 2 and max(optim.betas) < 1, "optim.betas: expected two numbers below 1"
    scales = loss.perceptual is None or loss.perceptual.scales
    yield bool(scales), "loss.perceptual.scales: expected at least one number"


def _ranges(recipe: Recipe) -> Iterator[Rule]:
    """The range of every number."""
    for key in SCHEMA.keys:
        value: Any = recipe
        for name in key.split("."):
            value = getattr(value, name, None)
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) in (int, float):
                above, most = key in _POSITIVE.split(), _MOST.get(key, math.inf)
                yield number > 0 or not above, f"{key}: expected a number above 0, got {number}"
                yield 0 <= number <= most, f"{key}: expected 0 … {most}, got {number}"
    for key, value in _leaves(recipe.host.model, "host.model"):
        if key.split(".")[-1] in _WIDTHS.split() and type(value) in (int, float):
            yield value > 0, f"{key}: expected a number above 0, got {value}"


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every single value below a mapping, with its dotted key."""
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, item in value.items():
        yield from _leaves(item, join(key, name))
