"""Adam for each part of the host, and the learning rate at a step."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from memcomp.adapters import Host
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.sections import OptimSection

DISCRIMINATOR = "discriminator"
CLIP_EPSILON = 1e-6  # added to the norm, as torch's clip_grad_norm_ does, with which upstream trains


def rate_factor(step: int, total: int, steps_per_epoch: float, section: OptimSection) -> float:
    """Factor of the learning rate in `step` (from 0) of `total`.

    A pure function of the step, so that nothing has to be saved to resume.
    """
    factor = min(1.0, (step + 1) / section.warmup) if section.warmup else 1.0
    if section.schedule == "multistep":
        factor *= section.gamma ** sum(step >= milestone * steps_per_epoch for milestone in section.milestones)
    if section.schedule == "cosine_tail":
        start = total * (1 - section.tail)
        if step > start:
            factor *= 0.5 * (1 + math.cos(math.pi * (step - start) / max(total - start, 1)))
    return factor


class Optimisers:
    """One Adam for each section of the host (as upstream trains); a memory may have a learning rate of its own.

    A section without gradients in a step (one that its loss reaches later) is left as it is.

    Raises:
        UserError: `clip_parts` names a section that the host does not have.
    """

    def __init__(self, host: Host, section: OptimSection) -> None:
        self.section = section
        names = {id(parameter): name for name, parameter in host.named_parameters()}
        memory = set() if host.memory is None else {id(parameter) for parameter in host.memory.parameters()}
        self.names: dict[str, list[str]] = {}
        self.adams: dict[str, torch.optim.Adam] = {}
        for part, parameters in host.optimizer_groups().items():
            own = [p for p in parameters if id(p) not in memory]
            extra = [p for p in parameters if id(p) in memory]
            memory_lr = section.lr if section.memory_lr is None else section.memory_lr
            groups = [
                {"params": params, "lr": lr, "base_lr": lr}
                for params, lr in ((own, section.lr), (extra, memory_lr))
                if params
            ]
            betas = (section.betas[0], section.betas[1])
            kind = {"fused": True} if _on_cuda(own + extra) else {"foreach": True}
            self.adams[part] = torch.optim.Adam(groups, betas=betas, weight_decay=section.weight_decay, **kind)
            self.names[part] = [names[id(p)] for p in (*own, *extra)]
        for part in section.clip_parts or ():
            if part not in host.sections():
                raise UserError(f"optim.clip_parts: expected some of {', '.join(host.sections())}, got {part!r}")

    def set_rate(self, factor: float) -> float:
        """Set every learning rate to `factor` times its base; returns that of the host."""
        for adam in self.adams.values():
            for group in adam.param_groups:
                group["lr"] = factor * group["base_lr"]
        return factor * self.section.lr

    def zero_grad(self) -> None:
        """Forget the gradients of all parts."""
        for adam in self.adams.values():
            adam.zero_grad(set_to_none=True)

    def generator_parts(self) -> list[str]:
        """All parts but the discriminator."""
        return [part for part in self.adams if part != DISCRIMINATOR]

    def step(self, parts: Iterable[str], *, unless: Tensor | None = None) -> Tensor:
        """Clip and step these parts unless a gradient is not finite; a CUDA device is not waited for.

        Args:
            parts: whose gradients count together.
            unless: a truth value on the device for which nothing is changed either.

        Returns:
            Norm of all their gradients before clipping, a scalar on the device; not finite = nothing was changed.
        """
        parts = list(parts)
        gradients = {part: found for part in parts if (found := self._gradients(part))}
        if not gradients:
            return torch.zeros((), device=self._parameters(parts[0])[0].device if parts else None)
        norms = [_norm(found) for found in gradients.values()]
        largest = [_norm(found, math.inf) for found in gradients.values()] if self.section.clip_norm == "inf" else norms
        total = torch.linalg.vector_norm(_precise(torch.stack(norms)))
        stopped = ~total.isfinite() if unless is None else ~total.isfinite() | unless
        for part, norm in zip(gradients, largest, strict=True):
            self._clip(part, gradients[part], _precise(norm))
            self._take(self.adams[part], stopped)
        return total

    def state(self) -> dict[str, Tensor]:
        """Everything that the Adams remember: "<part>.<parameter>.<state>" → tensor."""
        return {
            f"{part}.{name}.{key}": value
            for part, adam in self.adams.items()
            for name, parameter in zip(self.names[part], self._parameters(part), strict=True)
            for key, value in adam.state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor], origin: str) -> None:
        """Take up what `state` returned.

        Raises:
            UserError: the parts or parameters are others, or there is no state at all.
        """
        entries: dict[str, dict[int, dict[str, Tensor]]] = {part: {} for part in self.adams}
        places = {
            f"{part}.{name}": (part, index) for part, names in self.names.items() for index, name in enumerate(names)
        }
        for key, value in state.items():
            place, _, kind = key.rpartition(".")
            if place not in places:
                raise UserError(f"{origin}: optimiser state of {place}, which this recipe does not train")
            part, index = places[place]
            parameter = self._parameters(part)[index]
            if value.shape == parameter.shape:  # in the parameter's own memory format
                value = torch.empty_like(parameter, device=value.device).copy_(value)
            entries[part].setdefault(index, {})[kind] = value
        if not state:
            raise UserError(
                f"{origin}: expected a checkpoint with optimiser state, such as checkpoints/last.safetensors"
            )
        for part, adam in self.adams.items():
            adam.load_state_dict({"state": entries[part], "param_groups": adam.state_dict()["param_groups"]})

    def parameters(self) -> dict[str, list[Tensor]]:
        """Part → its parameters, a memory's last."""
        return {part: self._parameters(part) for part in self.adams}

    def _clip(self, part: str, gradients: list[Tensor], norm: Tensor) -> None:
        section = self.section
        if section.clip is None or (section.clip_parts is not None and part not in section.clip_parts):
            return
        factor = torch.where(norm > section.clip, section.clip / (norm + CLIP_EPSILON), 1.0)
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))

    @staticmethod
    def _take(adam: torch.optim.Adam, stopped: Tensor) -> None:
        """Take a step of one Adam unless `stopped`: a fused one reads that on the device, as it does a GradScaler's."""
        if not adam.defaults["fused"]:
            if not stopped:
                adam.step()
            return
        adam.grad_scale, adam.found_inf = None, stopped.float()  # type: ignore[attr-defined]
        try:
            adam.step()
        finally:
            del adam.grad_scale, adam.found_inf  # type: ignore[attr-defined]

    def _parameters(self, part: str) -> list[Tensor]:
        return [parameter for group in self.adams[part].param_groups for parameter in group["params"]]

    def _gradients(self, part: str) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters(part) if parameter.grad is not None]


def _norm(tensors: list[Tensor], order: float = 2) -> Tensor:
    """Norm of all elements of one tensor or more, a scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, order)), order)


def _precise(number: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return number if number.device.type == "mps" else number.double()


def _on_cuda(parameters: Iterable[Tensor]) -> bool:
    return all(parameter.is_cuda for parameter in parameters)
