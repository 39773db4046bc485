"""The compiled step: the numbers of the eager one, taps in place, the same files. Backends need no C++ compiler."""

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from memcomp.experiments.errors import UserError
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import load_recipe, with_overrides
from memcomp.experiments.training import compiled, setup
from memcomp.experiments.training.loop import train
from memcomp.experiments.training.setup import Training
from memcomp.experiments.training.step import step

LAST = "checkpoints/last.safetensors"
FEW = ["optim.steps=3", "optim.epochs=null", "optim.batch_size=2", "data.identities=4", "log.held_out_pairs=2"]
TPSM = [
    *("device=cpu", "size=32", "init=null", "data.frames=6", "host.model.common_params.num_tps=2"),
    "host.model.generator_params={block_expansion: 4, max_features: 8, num_down_blocks: 3}",
    "host.model.dense_motion_params={block_expansion: 4, max_features: 8, num_blocks: 2, scale_factor: 0.25}",
    *("memory.memory_channels=8", "memory.memory_size=[4, 4]"),
]


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """The graph of a forward pass is made, and run as it is."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def tiny(small_recipe):
    return with_overrides(small_recipe, [*FEW, "log.held_out_every=1"], "test")


def three_steps(recipe, folder):
    run = Training(recipe, folder, Processes.start("cpu"), False)
    outcomes = [step(run, batch, number) for number, batch in enumerate(run.batches)]
    return run, [float(each.loss) for each in outcomes], [float(each.norm) for each in outcomes]


@pytest.mark.parametrize(("name", "backend"), [("fomm", "aot_eager"), ("tpsm", "eager")])
def test_compiled_steps_are_the_eager_ones(name, backend, tiny, head_cache, tmp_path, monkeypatch):
    """With aot_eager the graph of the backward pass is made as well."""
    monkeypatch.setattr(compiled, "BACKEND", backend)
    monkeypatch.setattr(setup, "_open_log", lambda run, held_out: None)  # nothing is measured
    recipe = tiny if name == "fomm" else load_recipe("demo/tpsm_mcnet", [*FEW, *TPSM, f"data.cache={head_cache}"])
    eager, losses, norms = three_steps(recipe, tmp_path / "eager")
    assert not counters["stats"]
    seen = with_overrides(recipe, ["compile=true"], "test")
    run, compiled_losses, compiled_norms = three_steps(seen, tmp_path / "compiled")

    # whole programs, and what they make
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]
    torch.testing.assert_close(compiled_losses, losses, rtol=1e-4, atol=0)
    torch.testing.assert_close(compiled_norms, norms, rtol=1e-3, atol=0)
    assert len(set(losses)) == 3

    # the memory's taps are in them: it learns as it does otherwise
    found, expected = (dict(each.host.memory.named_parameters()) for each in (run, eager))
    learnt = {name: parameter.grad for name, parameter in expected.items() if parameter.grad is not None}
    assert learnt and all(found[name].grad is not None for name in learnt)
    assert any(gradient.abs().max() > 0 for gradient in learnt.values())
    for key, gradient in learnt.items():
        nought = 1e-3 * float(gradient.abs().max()) + 1e-9
        torch.testing.assert_close(found[key].grad, gradient, rtol=1e-2, atol=nought, msg=key)
    assert run.host.state_dict().keys() == eager.host.state_dict().keys()


def test_a_run_goes_on_compiled_or_not(tiny, tmp_path):
    by_program = with_overrides(tiny, ["compile=true"], "test")
    straight = train(tiny, tmp_path / "eager", progress=False)
    train(tiny, tmp_path / "mixed", stop_after=1, progress=False)
    train(by_program, tmp_path / "mixed", resume=True, stop_after=2, progress=False)
    assert counters["stats"]["unique_graphs"] >= 2
    mixed = train(tiny, tmp_path / "mixed", resume=True, progress=False)
    assert mixed.held_out_end == pytest.approx(straight.held_out_end, rel=1e-4)
    for name in (LAST, "model.safetensors"):
        found = [load_file(tmp_path / folder / name) for folder in ("eager", "mixed")]
        assert found[0].keys() == found[1].keys()


def test_what_is_measured_is_not_compiled(tiny, tmp_path):
    run = Training(with_overrides(tiny, ["compile=true"], "test"), tmp_path / "run", Processes.start("cpu"), False)
    counters.clear()
    run.held_out.loss(run.host)
    run.held_out.draw(tmp_path / "sample.png", run.host)
    assert not counters["stats"]


def test_a_machine_without_a_compiler_is_told_so(tiny, tmp_path, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no g++ here\nand much more")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    said = r"^compile: expected false, .* it needs a C\+\+ compiler, such as g\+\+: no g\+\+ here$"
    with pytest.raises(UserError, match=said):
        train(with_overrides(tiny, ["compile=true"], "test"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
