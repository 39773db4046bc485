"""Convert SyncBN → attach → optimiser → DDP → compile: what is refused, and what works in that order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn

from memcomp import CompensationConfig, KeypointTap, MemoryCompensation, Tap, inject

ORDER = "convert SyncBN → attach → optimiser → DDP → compile"


def compiled_in_place(module):
    module.compile(backend="eager")
    return module


def with_compiled_part(module):
    module.middle = torch.compile(module.middle, backend="eager")
    return module


class FullyShardedDataParallel(nn.Module):
    """Stands for torch's wrapper of that name, which wants a process group and a GPU."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda module: torch.compile(module, backend="eager"), "_orig_mod."),
        (compiled_in_place, ""),
        (with_compiled_part, ""),
        (nn.DataParallel, "module."),
        (FullyShardedDataParallel, "_fsdp_wrapped_module."),
    ],
    ids=["OptimizedModule", "module.compile()", "compiled part", "DataParallel", "FSDP"],
)
def test_compiled_or_wrapped_modules_are_refused_with_the_order(hand, wrap, prefix):
    module = wrap(hand.Generator())
    keys = list(module.state_dict())
    taps = [Tap(prefix + tap.module, tap.where, tap.part) for tap in hand.TAPS]
    with pytest.raises(ValueError, match=f"cannot attach: .*The order is: {ORDER}"):
        inject(module, hand.memory(), taps, KeypointTap(prefix + "motion"))
    assert list(module.state_dict()) == keys
    assert not hand.hooks(module)


def test_a_ddp_wrapper_is_refused_with_the_order(hand, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = nn.parallel.DistributedDataParallel(hand.Generator())
        with pytest.raises(ValueError, match=f"wrapped by DDP: .*would silently not be.*{ORDER}"):
            inject(module, hand.memory(), [Tap("module.middle")], KeypointTap("module.motion"))
    finally:
        torch.distributed.destroy_process_group()


def test_an_attached_module_is_refused(hand):
    generator, _ = hand.attached()
    with pytest.raises(ValueError, match=f"this Generator has a memory already.*{ORDER}"):
        inject(generator, hand.memory(), hand.TAPS, KeypointTap("motion"))
    parent = nn.Sequential(generator)
    with pytest.raises(ValueError, match=r"'0' of this Sequential has a memory already"):
        inject(parent, hand.memory(channels=[8]), [Tap("0.middle")], KeypointTap("0.motion"))


@pytest.mark.parametrize(
    ("taps", "channels", "match"),
    [
        (
            [Tap("middle"), Tap("nowhere")],
            (8, 8),
            r"no submodule 'nowhere' to tap; its children: motion, first, middle",
        ),
        ([Tap("middle")], (8, 8), "1 taps for 2 scales"),
        ([Tap("middle"), Tap("middle")], (8, 8), "tapped twice"),
        ([Tap("middle", channels=6)], (8,), "gives 6 channels, the compensation's scale has 8"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_root_as_it_was(hand, taps, channels, match):
    generator = hand.Generator()
    keys = list(generator.state_dict())
    with pytest.raises(ValueError, match=match):
        inject(generator, hand.memory(channels=channels), taps, KeypointTap("motion"))
    assert list(generator.state_dict()) == keys
    assert not hand.hooks(generator)


def test_one_module_under_two_names_is_one_place(hand):
    generator = hand.Generator()
    generator.alias = generator.middle
    with pytest.raises(ValueError, match=r"tapped twice: .*'middle'.*'alias'"):
        inject(generator, hand.memory(channels=(8, 8)), [Tap("middle"), Tap("alias")], KeypointTap("motion"))


def test_a_memory_that_the_root_owns_under_another_name_is_refused(hand):
    generator = hand.Generator()
    generator.mine = hand.memory()
    with pytest.raises(ValueError, match="one owner, one key"):
        inject(generator, generator.mine, hand.TAPS, KeypointTap("motion"))


@pytest.mark.parametrize(("name", "value"), [("where", "inside"), ("part", "first_half")])
def test_a_tap_that_means_nothing_is_refused(name, value):
    with pytest.raises(ValueError, match=f"Tap.{name} must be one of .*not '{value}'"):
        Tap("middle", **{name: value})


def test_replicas_of_data_parallel_are_refused(hand):
    generator, _ = hand.attached()
    replica = generator._replicate_for_data_parallel()  # what nn.DataParallel calls on each of several devices
    with pytest.raises(RuntimeError, match=r"DataParallel.*use DDP"):
        replica(*hand.inputs())
    generator(*hand.inputs())


def test_compiling_the_attached_module_as_one_graph_keeps_its_numbers(hand):
    torch._dynamo.reset()
    generator, handle = hand.attached()
    hand.gates_opened(handle)
    generator.eval()
    expected = generator(*hand.inputs())
    compiled = torch.compile(generator, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(*hand.inputs()), expected, atol=1e-6, rtol=0)
    for parameter in generator.memory_compensation.parameters():
        parameter.data.zero_()
    assert (compiled(*hand.inputs()) - expected).abs().max() > 1e-4  # the memory is really in that graph


def test_compiling_in_place_after_attaching_trains_the_memory(hand):
    torch._dynamo.reset()
    generator, handle = hand.attached("paper")
    generator.eval()
    loss = generator(*hand.inputs()).square().mean()
    expected = torch.autograd.grad(loss, list(handle.compensation.parameters()), allow_unused=True)
    generator.compile(backend="eager")
    loss = generator(*hand.inputs()).square().mean()
    found = torch.autograd.grad(loss, list(handle.compensation.parameters()), allow_unused=True)
    assert sum(gradient is not None for gradient in found) > 0
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_ddp_on_two_processes_synchronises_the_memory(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment, cwd=tmp_path) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["seen"] != second["seen"]  # each process had its own samples, so equal gradients were synchronised
    for kind in ("gradients", "weights"):
        assert first[kind].keys() == second[kind].keys()
        for name, value in first[kind].items():
            assert torch.equal(value, second[kind][name]), name
    memory = [name for name in first["gradients"] if "memory_compensation" in name]
    assert memory
    assert any(first["gradients"][name].abs().max() > 0 for name in memory)


class Small(nn.Module):
    """The generator of the two processes, which cannot import the fixtures."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))

    def forward(self, image, kp_source):
        return self.block(image)


def attached_small():
    config = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity")
    small = Small()
    return small, inject(small, MemoryCompensation([4], 5, config), [Tap("block")], KeypointTap("", key=None))


def train_as_one_of_two(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DDP makes the weights equal
    small, handle = attached_small()
    parallel = nn.parallel.DistributedDataParallel(small)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for _ in range(3):
        image, points = torch.rand(2, 4, 6, 6), torch.rand(2, 5, 2)
        optimizer.zero_grad()
        with handle.compensation.recording() as record:
            output = parallel(image, points)
            (output.square().mean() + record.consistency_loss()).backward()
        optimizer.step()
    other, _ = attached_small()
    other.load_state_dict({key.removeprefix("module."): value for key, value in parallel.state_dict().items()})
    assert torch.equal(other.eval()(image, points), small.eval()(image, points))
    found = {
        "seen": float(image.sum()),
        "weights": dict(small.named_parameters()),
        "gradients": {name: value.grad for name, value in small.named_parameters() if value.grad is not None},
    }
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train_as_one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
