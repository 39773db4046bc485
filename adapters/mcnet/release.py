"""The memory that MCNet was published with: read from and written as upstream's keys, run with given noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from memcomp import CompensationConfig, MemoryCompensation, Tap
from memcomp.adapters.layout import bare_key
from memcomp.checkpoint import from_release, refuse_non_finite
from memcomp.handle import Handle
from memcomp.release import KEYS, release_levels
from memcomp.taps import tap_channels

PREFIX = "mbUnit."  # of the memory's keys in upstream's generator
IMAGE_SIZE = 256  # upstream names the layers of a level by the width of its feature for images of this size
FIXED = ("variant", "split", "identity_conditioning", "start", "attention_scale", "sharing", "temperature")


def level_sizes(taps: Sequence[Tap]) -> list[int]:
    """Width of the feature at each tap but the last, for images of 256×256; of the published generator 32, 64, 128."""
    return [IMAGE_SIZE >> level for level in range(len(taps) - 1, 0, -1)]


def split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of upstream's generator → that of its memory and the rest, both by `bare_key`."""
    plain = {bare_key(key): value for key, value in state.items()}
    unit = {key: value for key, value in plain.items() if key.startswith(PREFIX)}
    return unit, {key: value for key, value in plain.items() if key not in unit}


def read(unit: Mapping[str, Tensor], generator: nn.Module, taps: Sequence[Tap]) -> MemoryCompensation:
    """The published memory, all its sizes read off its weights.

    Args:
        unit: its state, keys with `PREFIX`.
        generator: which it is for.
        taps: of the generator, coarse to fine; the published memory leaves the last one out.

    Raises:
        ValueError: keys are missing or unexpected, values not finite, or sizes do not fit each other, the generator,
            or the memory that is attached to it.
    """
    refuse_non_finite(unit, f"the checkpoint's memory ({PREFIX}*)")
    memory = from_release(unit, PREFIX)
    sizes = (
        ("sizes of the features", release_levels(unit, PREFIX), level_sizes(taps)),
        ("channels", list(memory.channels), tap_channels(generator, taps[:-1])),
        ("num_kp", memory.keypoints, generator.get_submodule("dense_motion_network").num_kp),
    )
    wrong = [f"{what} {theirs}, the host has {ours}" for what, theirs, ours in sizes if theirs != ours]
    if wrong:
        raise ValueError(f"the checkpoint's memory ({PREFIX}*) does not fit the host: {'; '.join(wrong)}")
    handle = Handle.of(generator)
    if handle is not None and (not is_released(handle, taps) or _shapes(handle.compensation) != _shapes(memory)):
        raise ValueError(f"the checkpoint has a memory ({PREFIX}*), but another one is attached: call remove() first")
    return memory


def is_released(handle: Handle, taps: Sequence[Tap]) -> bool:
    """Whether upstream's code has a form for an attached memory: it does what the published one does, where it does."""
    preset, config = CompensationConfig.release(), handle.compensation.config
    same = all(getattr(config, name) == getattr(preset, name) for name in FIXED)
    return same and handle.taps == tuple(taps[:-1])


def write(memory: MemoryCompensation, sizes: Sequence[int]) -> dict[str, Tensor]:
    """The state of a released memory with upstream's keys and shapes: the inverse of `read`.

    Args:
        memory: of variant "release".
        sizes: see `level_sizes`.
    """
    state = memory.state_dict()
    return {
        PREFIX + theirs.format(level=size): _in_their_shape(theirs, state[ours.format(scale=scale)], memory.config)
        for scale, size in enumerate(sizes)
        for theirs, ours in KEYS.items()
    }


def _shapes(memory: MemoryCompensation) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in memory.state_dict().items()}


def _in_their_shape(key: str, tensor: Tensor, config: CompensationConfig) -> Tensor:
    if key in ("mb", "styleconv.modulated_conv.weight"):
        return tensor.unsqueeze(0)
    if key == "conv_kv.weight":
        return tensor.unflatten(1, (2 * config.memory_channels, config.memory_channels, 3, 3))
    return tensor[..., None, None] if key.startswith("conv_kv.attention.fc") and tensor.ndim == 2 else tensor
