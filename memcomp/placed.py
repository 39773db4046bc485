"""A read of the memory that knows place, pose and visibility: the fields of preset `placed`.

Where a warped feature is dimmed to zero, the query of Eq. 2 is ReLU(b), the same everywhere: all hidden places read the
same vector, and attention has no notion of place although M_o is a spatial cube. Here a query also knows where it is
asked (`place`), what the source shows there (`visibility`) and what it shows around (`context`); query and key may be
compared by direction alone, at a learned temperature (`normalised`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.attention import Query
from memcomp.config import CompensationConfig
from memcomp.layers import DynamicConv2d, compose, of_length_one, preserve_variance, read_values

WAVES = 4  # octaves of the positional features: sine and cosine of x and y, half a wave to four over the picture
SHARPNESS = 10.0  # of the place term and of normalised queries at the start, before it is learned
LEAST = 0.05  # share of visible pixels below which an average of them is dimmed


def visible_mean(feature: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean of what is visible in each cell of a grid of that size: (B, C, H, W), (B, 1, H, W) -> (B, C, *size)."""
    share = F.adaptive_avg_pool2d(visibility, size).clamp(min=LEAST)
    return F.adaptive_avg_pool2d(feature * visibility, size) / share


class Place(nn.Module):
    """Directions in which places of a map lie, so that near places have a large product: (1, width, H, W), unit length.

    Args:
        width: of the directions.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4 * WAVES, width, 1)
        preserve_variance(self.mix)

    def forward(self, height: int, width: int) -> Tensor:
        """The directions at the pixel centres of a map of any size over the same picture."""
        weight = self.mix.weight.flatten(1)  # (width, 4 WAVES): of rows, of columns
        of_rows, of_columns = weight.chunk(2, dim=1)
        down = _waves(height, weight)
        across = down if width == height else _waves(width, weight)
        rows = F.linear(down, of_rows)  # (H, width)
        columns = F.linear(across, of_columns, self.mix.bias)
        directions = F.normalize(rows[:, None] + columns, dim=2)  # (H, W, width), as the attention takes them
        return directions.permute(2, 0, 1)[None]


def _waves(side: int, like: Tensor) -> Tensor:
    """Sine and cosine of each octave at the pixel centres of a side: (side, 2 WAVES)."""
    precise: dict[str, Any] = {"device": like.device, "dtype": torch.float32}
    at = torch.arange(1 - side, side, 2, **precise) / side  # (side,), from -1 to 1
    phase = torch.outer(at, math.pi / 2 * torch.logspace(0, WAVES - 1, WAVES, base=2, **precise))
    return torch.cat([phase.sin(), phase.cos()], dim=1).to(like.dtype)


class PlacedMCM(nn.Module):
    """MCM whose query also knows its place, what is visible there, and what is around it.

    Args:
        config: `place`, `visibility`, `context`, `normalised` and `queries` say what it does otherwise than
            `memcomp.mcm.MCM`.
        hidden, deviation: as of `MCM`.
    """

    def __init__(self, config: CompensationConfig, hidden: int, deviation: float) -> None:
        super().__init__()
        channels, kernels, temperature = config.memory_channels, config.kernels, config.temperature
        self.scale, self.sides, self.queries = config.attention_scale, config.context, config.queries
        self.query = nn.Conv2d(channels, channels, 1)
        preserve_variance(self.query)
        self.key = DynamicConv2d(channels, channels, kernels, temperature, hidden, bias=False)
        self.value = DynamicConv2d(channels, channels, kernels, temperature, hidden, bias=True)
        self.key.reset_parameters(gain=math.sqrt(2 / channels) / deviation)
        self.value.reset_parameters(gain=1 / deviation)
        self.seen = nn.Conv2d(1, channels, 1, bias=False) if config.visibility else None
        self.around = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in self.sides)
        for conv in self.around:
            nn.init.zeros_(conv.weight)  # type: ignore[arg-type]
        self.sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS))) if config.normalised else None
        self.place = nn.ModuleDict()
        if config.place:
            self.place = nn.ModuleDict({"query": Place(32), "key": Place(32)})
            self.place["key"].load_state_dict(self.place["query"].state_dict())  # near is alike at the start
            self.nearness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))

    def keys(self, memory: Tensor, descriptor: Tensor) -> Tensor:
        """F_K, (B, C_m, M), times the attention's scale; normalised: of that length."""
        keys = self.key(memory, descriptor).flatten(2)
        return keys * self.scale if self.sharpness is None else of_length_one(keys, dim=1) * self.sharpness.exp()

    def ask(
        self, feature: Tensor, projection: nn.Conv2d, size: tuple[int, int], visibility: Tensor | None = None
    ) -> Query:
        """What a feature (B, C, H, W) asks a memory of that size, on the grid of `queries`; see `MCM.ask`."""
        full = feature.shape[2:]
        if self.queries is not None and max(full) > self.queries:
            ratio = self.queries / max(full)
            coarse = (max(1, round(full[0] * ratio)), max(1, round(full[1] * ratio)))
            feature = F.adaptive_avg_pool2d(feature, coarse)
            visibility = None if visibility is None else F.adaptive_avg_pool2d(visibility, coarse)
        weight, bias = compose(self.query, projection)
        more, places = self._around(feature, visibility, projection), None
        if self.place:
            here = self.place["query"](*feature.shape[2:])[0].flatten(1)  # (32, N)
            places = here, self.place["key"](*size)[0].flatten(1) * self.nearness.exp()  # (32, M)
        if self.seen is not None and visibility is not None:  # one more channel to ask with
            feature = torch.cat([feature, visibility], dim=1)
            weight = torch.cat([weight, self.seen.weight.flatten(1)], dim=1)
        return Query(feature, weight, bias, more, self.sharpness is not None, places)

    def forward(
        self,
        feature: Tensor,
        memory: Tensor,
        descriptor: Tensor,
        projection: nn.Conv2d,
        output: nn.Conv2d,
        *,
        with_value: bool,
        visibility: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compensate as `memcomp.mcm.MCM.forward` does; visibility (B, 1, H, W) in [0, 1] if the config asks for it."""
        values, value = read_values(self.value, output, memory, descriptor, with_value)  # (B, C, M)
        query = self.ask(feature, projection, (memory.shape[2], memory.shape[3]), visibility)
        attended = query.read(self.keys(memory, descriptor), values)  # (B, C, h, w)
        if attended.shape[2:] != feature.shape[2:]:
            attended = F.interpolate(attended, size=feature.shape[2:], mode="bilinear", align_corners=False)
        return attended, value

    def _around(self, feature: Tensor, visibility: Tensor | None, projection: nn.Conv2d) -> Tensor | None:
        """What is visible around each place, averaged over the cells of each grid: (B, C_m, h, w), or None."""
        found: Tensor | None = None
        for side, conv in zip(self.sides, self.around, strict=True):
            size = (min(side, feature.shape[2]), min(side, feature.shape[3]))
            if visibility is None:
                mean = F.adaptive_avg_pool2d(feature, size)
            else:
                mean = visible_mean(feature, visibility, size)
            around = conv(projection(mean))  # (B, C_m, side, side): what is linear is done on the few
            around = F.interpolate(around, size=feature.shape[2:], mode="bilinear", align_corners=False)
            found = around if found is None else found + around
        return found
