"""What a device holds, and what its host waits for: on tensors of a faked device, and on real ones of a CPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcomp.experiments.training.watch import Watch

CUDA = torch.device("cuda")


class Faked(FakeTensorMode):
    avoid_device_init = True


def sent(data, **words):
    return data.to("cuda", **words)


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x: x.sum().item(), {"_local_scalar_dense": 1}),
        (lambda x: float(x.max()) + int(x.argmax()), {"_local_scalar_dense": 2}),
        (lambda x: x.cpu(), {"_to_copy": 1}),
        (lambda x: x.to("cpu", non_blocking=True), {}),
        (lambda x: torch.empty(4, 4).copy_(x), {"copy_": 1}),
        (lambda x: torch.empty(4, 4).copy_(x, non_blocking=True), {"copy_": 1}),  # into memory that is not pinned
        (lambda x: x.to("cpu", non_blocking=True).copy_(x, non_blocking=True), {}),
        (lambda x: sent(torch.ones(4)), {"_to_copy": 1}),
        (lambda x: sent(torch.ones(4), non_blocking=True), {"_to_copy": 1}),
        (lambda x: sent(torch.ones(4).pin_memory(), non_blocking=True), {}),
        (lambda x: sent(torch.ones(4).pin_memory()), {"_to_copy": 1}),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device="cuda"), 0, output_size=4), {}),
        (lambda x: x.index_put_((x > 0,), torch.zeros((), device="cuda")), {"index_put_": 1}),
        (lambda x: torch.where(x > 0, x, 0).mean() * 2, {}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "call",
)
def test_what_the_host_waits_for(call, waits):
    with Faked(), Watch(CUDA) as watch:
        x = torch.zeros(4, 4, device="cuda")
        watch.begin()
        call(x)
    assert dict(watch.waits) == waits


def test_numbers_of_the_host_are_its_own():
    with Faked(), Watch(CUDA) as watch:
        assert torch.tensor(0.5).item() == 0.5 and len(torch.tensor([3, 4]).tolist()) == 2
    assert not watch.waits


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_live_bytes_and_their_peak(device):
    with Faked() if device == "cuda" else torch.no_grad(), Watch(torch.device(device)) as watch:
        kept = torch.zeros(1024, device=device)
        view = kept.view(2, 512)  # no bytes of its own
        watch.begin()
        assert watch.live == watch.peak == 4096
        other = (torch.cat([view, view]) * 2).sum()  # 8192 twice, and a block of 512 for the sum
        assert watch.peak == 4096 + 2 * 8192 and watch.live == 4096 + 512
        del other
        assert watch.live == 4096
