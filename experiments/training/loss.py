"""The training objective: reconstruction terms of our own, the host's terms, and the memory's consistency, weighted."""

import contextlib
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters import Host
from memcomp.adapters.facevid2vid.pose import with_pose
from memcomp.adapters.outputs import HostOutput
from memcomp.adapters.shared.blocks import AntiAliasDown
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.sections import LossSection, PerceptualSection
from memcomp.experiments.training.perceptual import Features, load_backbone
from memcomp.experiments.training.pose_teacher import load_teacher
from memcomp.experiments.training.teacher import complete_features

HOST_TERMS = (
    "equivariance_value",
    "equivariance_jacobian",
    "keypoint_distance",
    "warp",
    "background",
    "keypoint_prior",
    "headpose",
    "expression",
    "generator_gan",
    "feature_matching",
)


class Objective(nn.Module):
    """The loss that a recipe's `loss` section asks for, or that of a further training stage of the host.

    Args:
        section: the weights.
        stage: one of the host's `stages`, which has a loss of its own; the weights do not count then.

    Attributes:
        backbone: what the perceptual loss looks through, with the origin of its weights; None without one.
    """

    def __init__(self, section: LossSection, stage: str | None = None) -> None:
        super().__init__()
        self.section, self.stage = section, stage
        self.perceptual = None if section.perceptual is None else PerceptualPyramid(section.perceptual)
        taught = section.pose_teacher is not None and section.headpose > 0
        self.pose_teacher = load_teacher(str(section.pose_teacher)) if taught else None
        self.backbone = None if self.perceptual is None else self.perceptual.description

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator is trained."""
        return self.section.generator_gan > 0

    def pictures(self, source: Tensor, driving: Tensor) -> tuple[Tensor, Tensor]:
        """What the host sees of a pair (B, C, H, W): all but a correspondence, its last three channels."""
        taught = self.section.motion or self.section.visibility
        return (source[:, :-3], driving[:, :-3]) if taught else (source, driving)

    def forward(
        self, host: Host, source: Tensor, driving: Tensor, generator: torch.Generator, epoch: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor], HostOutput | None]:
        """Run the host and sum its loss.

        Args:
            host: in train or eval mode.
            source: (B, 3, H, W) in [0, 1], or with the further channels that the host takes; for the terms `motion`
                and `visibility` with three more: for every place the picture coordinates (x, y) of the source to look
                at, ±1 being its edges, and whether the source shows it, in [0, 1].
            driving: the same person; what the prediction is compared with.
            generator: of every random draw: what the host does only in training, and the equivariance terms' warp.
            epoch: while training, the epochs done; None = reconstruct as in an evaluation.

        Returns:
            The loss; its terms, weighted and detached, which sum to it; the host's output, None in a further stage.

        Raises:
            UserError: the host has no such loss term, stage, occlusion map or flow; the perceptual backbone refuses the
                picture's size.
        """
        source, driving, followed = *self.pictures(source, driving), driving[:, -3:]
        if self.stage is not None:
            try:
                loss = host.stage_loss(self.stage, source, driving, generator=generator)
            except ValueError as error:
                raise UserError(f"stage: {error}") from None
            return loss, {self.stage: loss.detach()}, None

        # the host, with its memory recording
        weights, memory, terms = self.section, host.memory, dict[str, Tensor]()
        consistent = weights.consistency > 0 and memory is not None and memory.config.consistency
        complete = complete_features(host, driving) if weights.teacher and memory is not None else None
        recorded = memory if consistent or complete is not None else None
        with contextlib.nullcontext() if recorded is None else recorded.recording(complete) as record:
            if epoch is None:
                output = host.reconstruct(source, driving)
            else:
                output = host.training_output(source, driving, epoch=epoch, generator=generator)

        # Eq. 4, the terms of our own, and the host's
        if consistent and record is not None:
            terms["consistency"] = weights.consistency * record.consistency_loss()
        if complete is not None and record is not None:
            terms["teacher"] = weights.teacher * record.teacher_loss()
        target = driving[:, :3]  # further channels are for the host alone
        if self.pose_teacher is not None:
            with torch.no_grad():
                driving = with_pose(target, self.pose_teacher(target))
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(output.prediction, target)
        if weights.pyramid_l1:
            terms["pyramid_l1"] = weights.pyramid_l1 * pyramid_l1(output.prediction, target)
        if weights.ssim:
            terms["ssim"] = weights.ssim * (1 - ssim(output.prediction, target))
        if weights.motion:
            terms["motion"] = weights.motion * _motion(output, followed[:, :2], followed[:, 2:])
        if weights.visibility:
            terms["visibility"] = weights.visibility * _visibility(output, followed[:, 2:])
        terms |= self._host_terms(host, output, source, driving, generator)
        exact = [value.to(torch.promote_types(value.dtype, torch.float32)) for value in terms.values()]
        total = torch.stack(exact).sum()
        return total, {name: value.detach() for name, value in terms.items()}, output

    def _host_terms(
        self, host: Host, output: HostOutput, source: Tensor, driving: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Weigh the terms that the recipe asks of the host itself."""
        weights = {name: getattr(self.section, name) for name in HOST_TERMS if getattr(self.section, name) > 0}
        if not self.adversarial:  # as upstream: feature matching belongs to the adversarial branch
            weights.pop("feature_matching", None)
        unknown = [name for name in weights if name not in host.loss_names]
        if unknown:
            known = ", ".join(host.loss_names) or "none of its own"
            raise UserError(f"loss.{unknown[0]}: the host {host.name!r} has no such term; expected 0 (it has {known})")
        transform = dataclasses.asdict(self.section.transform)
        try:
            values = host.loss_terms(
                output, source, driving, list(weights), generator=generator, transform_params=transform
            )
        except ValueError as error:
            raise UserError(f"loss: {error}") from None
        return {name: weights[name] * value for name, value in values.items()}


def _motion(output: HostOutput, exact: Tensor, shown: Tensor) -> Tensor:
    """Distance between where a host looks and where it should, |x| + |y|, where the source shows the place: a mean.

    Args:
        output: its `deformation` counts, at its own size; ±1 are the centres of its border places, as in its keypoints.
            A host that samples otherwise (`align_corners` false, FOMM's default) looks up to half a place beside them.
        exact: (B, 2, H, W), picture coordinates, ±1 being the edges.
        shown: (B, 1, H, W) in [0, 1].

    Raises:
        UserError: the host moves a volume.
    """
    if output.deformation.shape[-1] != 2:
        raise UserError("loss.motion: the host moves a volume, which has no true motion; expected 0")
    height, width = output.deformation.shape[1:3]
    weight = F.adaptive_avg_pool2d(shown.float(), (height, width))
    wanted = F.adaptive_avg_pool2d(exact.float() * shown, (height, width)) / weight.clamp_min(1e-6)
    wanted = wanted * wanted.new_tensor([width / (width - 1), height / (height - 1)])[:, None, None]
    far = (output.deformation.permute(0, 3, 1, 2).float() - wanted).abs().sum(1, keepdim=True)
    return (weight * far).sum() / weight.sum().clamp_min(1)


def _visibility(output: HostOutput, shown: Tensor) -> Tensor:
    """Cross-entropy of a host's occlusion maps and what the source shows, (B, 1, H, W), averaged over their places.

    Raises:
        UserError: the host estimates no occlusion map.
    """
    maps = getattr(output, "occlusion_maps", None) or [output.occlusion_map]  # TPSM has one for each level
    if maps[0] is None:
        raise UserError("loss.visibility: the host estimates no occlusion map; expected 0")
    with torch.autocast(shown.device.type, enabled=False):  # a logarithm of what is close to 0
        terms = [
            F.binary_cross_entropy(one.float().clamp(0, 1), F.adaptive_avg_pool2d(shown.float(), one.shape[2:]))
            for one in maps
        ]
    return torch.stack(terms).mean()


def pyramid_l1(prediction: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """Mean absolute difference of (B, 3, H, W), averaged over `levels` resolutions, each half of the one before."""
    difference = prediction - target  # pooling is linear, so the difference is pooled, once
    total = difference.abs().mean()
    for _ in range(levels - 1):
        difference = F.avg_pool2d(difference, 2)
        total = total + difference.abs().mean()
    return total / levels


def ssim(prediction: Tensor, target: Tensor, window: int = 7) -> Tensor:
    """Mean structural similarity (Wang et al., 2004) of (B, 3, H, W) in [0, 1]: a scalar, 1 for equal pictures.

    Uniform window, biased variances, only where the window lies inside. It is for training; measured numbers come
    from `memcomp.experiments.metrics`.
    """
    c1, c2 = 0.01**2, 0.03**2
    x, y = prediction.float(), target.float()  # variances are small differences: never in bf16
    stacked = torch.cat([x, y, x * x + y * y, x * y], dim=1)
    mean_x, mean_y, mean_squares, mean_product = F.avg_pool2d(stacked, window, stride=1).chunk(4, dim=1)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    numerator = (2 * product + c1) * (2 * (mean_product - product) + c2)
    return (numerator / ((squares + c1) * (mean_squares - squares + c2))).mean()


class PerceptualPyramid(nn.Module):
    """Sum over scales and layers of weight * mean |f(prediction) - f(target)|, f from a fixed network (FOMM, §3.3).

    Attributes:
        description: name of the network and origin of its weights, for the table of results.
    """

    def __init__(self, section: PerceptualSection) -> None:
        super().__init__()
        network, self.description = load_backbone(section.backbone, section.weights)
        self.features = Features(network, section.layers)
        self.layer_weights = section.layer_weights or (1.0,) * len(self.features.layers)
        if len(self.layer_weights) != len(self.features.layers):
            layers = ", ".join(self.features.layers)
            raise UserError(
                f"loss.perceptual.layer_weights: expected {len(self.features.layers)} numbers, for {layers}"
            )
        self.weight = section.weight
        # the recipe's scales name the picture sizes; 1 is the picture itself
        self.pyramid = nn.ModuleList(nn.Identity() if s == 1 else AntiAliasDown(3, s) for s in section.scales)
        self.requires_grad_(False)
        self.train(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of pictures, (B, 3, H, W) in [0, 1] each → a scalar."""
        total = prediction.new_zeros(())
        for shrink in self.pyramid:
            total = self._add(total, shrink(prediction), shrink(target))
        return self.weight * total

    def _add(self, total: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
        """Add what two batches of one scale differ in; a function, so that the features are let go before the next.

        The target's come first: what is needed for them alone is gone before the prediction's, which are kept for the
        backward pass.
        """
        with torch.no_grad():
            theirs = self.features(target)
        ours = self.features(prediction)
        for weight, a, b in zip(self.layer_weights, ours, theirs, strict=True):
            total = total + weight * (a.float() - b.float()).abs().mean()
        return total

    def train(self, mode: bool = True) -> "PerceptualPyramid":
        """Stay in eval mode whatever `mode` says: the network's statistics are not ours to change."""
        return super().train(False)
