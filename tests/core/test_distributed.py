"""Two processes with half a batch each train exactly as one with the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from memcomp import CompensationConfig, MemoryCompensation

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from memcomp import CompensationConfig, MemoryCompensation

class Host(torch.nn.Module):  # a generator calls every scale
    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def forward(self, feature, keypoints):
        coarse = self.unit(feature, keypoints, scale=0)
        return coarse.square().mean() + self.unit(feature[:, :4], keypoints, scale=1).sum()

torch.set_num_threads(1)
rank = int(sys.argv[1])
torch.manual_seed(0)
unit = MemoryCompensation([8, 4], 3, CompensationConfig.from_dict(eval(sys.argv[3]))).double()
feature, keypoints = torch.randn(4, 8, 5, 7).double(), torch.rand(4, 3, 2).double()
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
host = DistributedDataParallel(Host(unit))
optimizer = torch.optim.SGD(unit.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    with unit.recording() as record:
        loss = host(feature[rank::2], keypoints[rank::2])
    (loss + record.consistency_loss()).backward()
    optimizer.step()
wrapped = host.state_dict()
fresh = MemoryCompensation([8, 4], 3, unit.config).double()
fresh.load_state_dict({key.removeprefix("module.unit."): value for key, value in wrapped.items()})
assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), unit.state_dict().values(), strict=True))
torch.save(unit.state_dict(), f"{sys.argv[4]}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    config = CompensationConfig.paper(memory_channels=6, memory_size=(3, 4), start="identity")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, rank, port, repr(config.to_dict()), str(tmp_path)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    torch.manual_seed(0)
    unit = MemoryCompensation([8, 4], 3, config).double()
    feature, keypoints = torch.randn(4, 8, 5, 7).double(), torch.rand(4, 3, 2).double()
    optimizer = torch.optim.SGD(unit.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with unit.recording() as record:
            loss = unit(feature, keypoints, scale=0).square().mean()
            loss = loss + unit(feature[:, :4], keypoints, scale=1).sum() / 2  # a sum over half the samples, averaged
        (loss + record.consistency_loss()).backward()
        optimizer.step()
    for rank in "01":
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for key, value in unit.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-9)
