"""What a host generator is to the rest of the project: keypoints, motion and pictures, losses, taps, folders."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from memcomp import KeypointTap, MemoryCompensation, Tap
from memcomp.adapters.folder import Pretrained, write_pretrained
from memcomp.adapters.layout import Layout, Sections, layout_of
from memcomp.adapters.outputs import EncodedSource, HostOutput, Keypoints
from memcomp.adapters.sections import Sectioned
from memcomp.adapters.shared.draws import draw_each, to_device
from memcomp.handle import Handle


class Host(Sectioned):
    """A talking-head generator with its keypoint detector: the contract that training and evaluation rely on.

    Images are (B, 3, H, W), RGB, in [0, 1]. Fresh weights come from torch's global generator (`torch.manual_seed`).
    """

    loss_names: ClassVar[tuple[str, ...]] = ()  # what `loss_terms` can be asked for
    motion_modes: tuple[str, ...] = ("relative", "absolute")  # others: `mode=` of the host's `transfer_motion`
    published: ClassVar[Mapping[str, Any]] = {}  # the `model` of the checkpoints that upstream published
    layouts: ClassVar[tuple[Layout, ...]] = ()  # its generators in upstream's code: for `attach`, and for `recognise`
    section_files: ClassVar[Mapping[str, re.Pattern[str]]] = {}  # sections in files of their own → what their keys are
    free_view: ClassVar[bool] = False  # its keypoints tell the head's pose, which `turned` changes
    encoder: ClassVar[tuple[str, ...]] = ()  # modules of the generator that its `encode` runs; for `encode_source`
    epoch_entry: ClassVar[str] = "epoch"  # of upstream's checkpoints: where the training epoch stands
    not_weights: ClassVar[Mapping[str, str]] = {}  # other entries of upstream's sections → what they are

    @abstractmethod
    def keypoints(self, image: Tensor) -> Keypoints:
        """Keypoints of images (B, 3, H, W)."""

    @abstractmethod
    def generate(self, source: Tensor, kp_source: Keypoints, kp_driving: Keypoints) -> HostOutput:
        """The source images (B, 3, H, W) in the driving pose."""

    def forward(self, source: Tensor, driving: Tensor) -> HostOutput:
        """The source images in the pose of the driving images, both (B, 3, H, W)."""
        return self.generate(source, self.keypoints(source), self.keypoints(driving))

    def encode_source(self, source: Tensor) -> EncodedSource:
        """Compute once what does not depend on the driving frame, of one source image (1, 3, H, W).

        Keypoints, and if the host names its `encoder` what the generator's `encode` makes, which `generate` takes as
        `encoded` then. Weights, mode and hooks must stay as they are between this and `generate_from`.
        """
        generator: Any = self.sections()[self.generator_section]
        once = bool(self.encoder) and not watched(generator, *self.encoder)
        return EncodedSource(source, self.keypoints(source), tuple(generator.encode(source)) if once else None)

    def generate_from(self, encoded: EncodedSource, kp_driving: Keypoints) -> HostOutput:
        """The encoded source in each of the driving poses, (B, K, D); as `generate` with the source B times."""
        count, generate = len(kp_driving.value), cast(Any, self.generate)
        kp_source = encoded.keypoints.expand(count)
        if encoded.features is None:
            return generate(encoded.image.expand(count, -1, -1, -1), kp_source, kp_driving)
        return generate(encoded.image, kp_source, kp_driving, encoded=encoded.features)

    def reconstruct(self, source: Tensor, driving: Tensor) -> HostOutput:
        """Reconstruct frames of one video; unlike `forward`, with the background's motion if the host models it."""
        return self(source, driving)

    def check_trainable(self) -> None:
        """Raise ValueError if training would make no sense: a fixed network that was never loaded, for example."""
        return  # most hosts can always be trained

    def training_output(
        self, source: Tensor, driving: Tensor, *, epoch: float, generator: torch.Generator
    ) -> HostOutput:
        """Reconstruct with what upstream does only while training, at a time counted in epochs from 0.

        All random draws come from `generator`, a CPU generator; those for each pair by `shared.draws.draw_each`, which
        makes them independent of the number of processes.
        """
        with self.drawn_noise(source, generator):
            return self.reconstruct(source, driving)

    @contextmanager
    def drawn_noise(self, source: Tensor, generator: torch.Generator) -> Iterator[None]:
        """Inside of the block a memory that asks for noise while it trains gets it from `generator`, for each pair."""
        memory = self.memory
        if memory is None or not (memory.config.noise and memory.training):
            yield
            return
        shape = (1, *memory.config.memory_size)
        drawn = [draw_each(torch.randn, len(source), *shape, generator=generator) for _ in memory.channels]
        noise = [to_device(each, source.device).to(source.dtype) for each in drawn]
        with memory.supplying(noise):
            yield

    def taps(self) -> tuple[list[Tap], KeypointTap]:
        """Where warped features and source keypoints pass, as the layout says; without one the host takes no memory.

        Taps are named below ``sections()[generator_section]``, the keypoints' module there or as another section.
        """
        generator = self.sections()[self.generator_section]
        layout = layout_of(generator, self.layouts)
        return ([], KeypointTap("")) if layout is None else (layout.taps(generator), layout.keypoints)

    @abstractmethod
    def transfer_motion(
        self,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        kp_driving_initial: Keypoints,
        *,
        relative: bool = True,
        adapt_scale: bool = True,
    ) -> Keypoints:
        """Keypoints that move the source as the driving head moved since its initial frame."""

    def turned(self, keypoints: Keypoints, degrees: Tensor) -> Keypoints:
        """The head of these keypoints turned further by yaw, pitch and roll, (3,) or (B, 3); see `free_view`.

        Raises:
            ValueError: the host cannot.
        """
        raise ValueError(f"the host {self.name!r} has no free view: its keypoints do not tell the head's pose")

    def loss_terms(
        self,
        output: HostOutput,
        source: Tensor,
        driving: Tensor,
        names: Iterable[str],
        *,
        generator: torch.Generator,
        transform_params: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """The host's own loss terms, unweighted, one scalar for each of `names` (see `loss_names`).

        All random draws come from `generator`, a CPU generator. `transform_params` describes the random warp
        of the equivariance terms (see `memcomp.adapters.shared.losses.RandomTransform.draw`).
        """
        self.known_losses(names)
        return {}

    def known_losses(self, names: Iterable[str]) -> list[str]:
        """The names as a list; raise ValueError unless all are in `loss_names`."""
        names = list(names)
        for name in names:
            if name not in self.loss_names:
                known = ", ".join(self.loss_names) or "none"
                raise ValueError(f"the host {self.name!r} has no loss {name!r}; it has {known}")
        return names

    def stage_loss(self, stage: str, source: Tensor, driving: Tensor, *, generator: torch.Generator) -> Tensor:
        """What the training stage `stage`, one of `stages`, minimises; a scalar. See `enter_stage`."""
        raise ValueError(f"the host {self.name!r} has no training stage {stage!r}; it has {', '.join(self.stages)}")

    def discriminator_loss(self, output: HostOutput, driving: Tensor) -> Tensor:
        """What the discriminator minimises, on the detached prediction; a scalar."""
        raise ValueError(f"the host {self.name!r} has no discriminator")

    @classmethod
    def recognise(cls, sections: Sections) -> int:
        """Count the parts by which an upstream checkpoint is known as this host's; 0 = it is not. Most parts win.

        The parts are those of the layouts, unless a host knows its checkpoints otherwise.
        """
        return max((len(layout.parts) for layout in cls.layouts if layout.matches_weights(sections)), default=0)

    @staticmethod
    def read_model(sections: Sections, published: Mapping[str, Any]) -> dict[str, Any]:
        """What an upstream checkpoint's weights tell about `model`, nested as there; nothing by default.

        Args:
            sections: of the checkpoint.
            published: the `model` that counts where the weights do not tell.

        Returns:
            The parameters that can be read; None for what the checkpoint has no network of. What leaves no trace in
            the weights (temperature, variances, paddings) is not among them.
        """
        return {}

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        size: int | None = None,
        source: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the host, an attached memory included, as a folder for `memcomp.adapters.from_pretrained`.

        Weights keep their dtype. A writer that is stopped at any point leaves the previous host or this one.

        Args:
            folder: made if need be; its `model.safetensors` and `config.json` are replaced.
            size: height and width of the pictures that it was trained with, for `memcomp animate` and `evaluate`.
            source: where the weights came from; anything JSON can hold, by name.
            training: how it was trained; anything JSON can hold, by name.

        Raises:
            OSError: the folder cannot be made or written.
            ValueError: a weight is not finite, the model is nothing that JSON can hold, or the memory was not put in
                place by `attach`. Nothing is written then.
        """
        content = Pretrained(
            host=self.name,
            model=self.model,
            memory=self._attached(),
            size=size,
            source=None if source is None else dict(source),
            tensors=self.state_dict(),
            training=None if training is None else dict(training),
        )
        write_pretrained(folder, content)

    def _attached(self) -> dict[str, Any] | None:
        """How to attach a memory like this host's; None if it has none."""
        handle = Handle.of(self.sections()[self.generator_section])
        if handle is None:
            return None
        if handle.mode == "inplace":
            taps = self.taps()[0]
            if handle.taps != tuple(taps[scale] for scale in handle.scales):
                raise ValueError("the memory's taps are not the host's: save it alone, by memcomp.save")
        about: dict[str, Any] = {"config": None, "mode": handle.mode, "scales": list(handle.scales), "keypoints": None}
        if isinstance(handle.compensation, MemoryCompensation):  # not the control of mode "skip"
            about |= {"config": handle.compensation.config.to_dict(), "keypoints": handle.compensation.keypoints}
            if handle.compensation.keypoint_dims != 2:  # as in the folders of version 0.1.0
                about["keypoint_dims"] = handle.compensation.keypoint_dims
        return about


def watched(generator: nn.Module, *names: str) -> bool:
    """Whether hooks look at these submodules or a part of them: what they compute belongs to one call of the whole.

    The skips of `attach(mode="skip")` do so with the encoder of every call, and so may taps of a user's own.
    """
    parts = (part for name in names for part in generator.get_submodule(name).modules())
    return any(part._forward_hooks or part._forward_pre_hooks for part in parts)
