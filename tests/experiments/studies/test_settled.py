"""Batch statistics over many batches: what they are, and what stays as it was."""

import shutil

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.data.sources import training_pairs
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.studies.settled import main, settle

FEW = "data.identities=4"
STILL = ["freeze_motion=true", "loss.equivariance_value=0", "loss.equivariance_jacobian=0"]


def test_statistics_are_means_over_the_batches_that_follow_and_nothing_else_changes(small_recipe, small_run):
    host = load_host(small_run)[0]
    host.freeze_motion()
    before = {key: value.clone() for key, value in host.state_dict().items()}
    recipe = with_overrides(small_recipe, [*STILL, FEW, "optim.batch_size=3"], "test")
    settle(host, recipe, 7, batches=4)
    after = host.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed and all(
        key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for key in changed
    )
    assert all(key.startswith("generator") and "dense_motion" not in key for key in changed)
    assert not any(module.training for module in host.modules())
    assert {m.momentum for m in host.modules() if isinstance(m, _BatchNorm)} == {0.1}

    # naively: the first norm of the generator, which sees the source alone, and its inputs of each batch
    name, norm = next(
        (n, m) for n, m in host.generator.named_modules() if isinstance(m, _BatchNorm) and n == "first.norm"
    )
    seen = []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    pairs = training_pairs(recipe)
    with torch.no_grad():
        for step in range(7, 11):
            batch = [pairs[3 * step + k] for k in range(3)]
            host(*(torch.stack([pair[side] for pair in batch]).float() / 255 for side in ("source", "driving")))
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in seen]).mean(0)
    torch.testing.assert_close(after[f"generator.{name}.running_mean"], means, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after[f"generator.{name}.running_var"], variances, rtol=1e-4, atol=1e-6)


def test_a_run_is_settled_into_a_folder_of_its_own_once(small_recipe, small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    few = with_overrides(small_recipe, [FEW], "test")
    (tmp_path / "run" / "recipe.yaml").write_text(few.to_yaml())
    words = [str(tmp_path / "run"), "--batches", "3"]
    main(words)
    folder = tmp_path / "run" / "settled"
    assert capsys.readouterr().out.strip() == str(folder)
    host, recipe = load_host(folder)
    assert recipe == few
    plain = load_host(small_run)[0].state_dict()
    differing = {
        key.rpartition(".")[2] for key, value in host.state_dict().items() if not torch.equal(value, plain[key])
    }
    assert differing == {"running_mean", "running_var", "num_batches_tracked"}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    main(words)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
