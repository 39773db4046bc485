"""What tests of trainings share."""

import pytest
import torch
from safetensors.torch import load_file

from memcomp.experiments.training.loop import train

LAST = "checkpoints/last.safetensors"


@pytest.fixture
def both_ways(tmp_path):
    """Train into `straight`, and with a break into `parts`: every bit of the two checkpoints must be the same."""

    def trained(recipe, stop_after):
        torch.manual_seed(1)  # the global generator must not matter
        train(recipe, tmp_path / "straight", progress=False)
        torch.manual_seed(2)
        train(recipe, tmp_path / "parts", stop_after=stop_after, progress=False)
        torch.manual_seed(3)
        train(recipe, tmp_path / "parts", resume=True, progress=False)
        one, other = (load_file(tmp_path / name / LAST) for name in ("straight", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
        return tmp_path / "straight", tmp_path / "parts"

    return trained
