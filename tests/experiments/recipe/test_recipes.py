"""What the recipes say: upstream's numbers, the rows of the paper's Table 2, and how they are listed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from memcomp import CompensationConfig
from memcomp.adapters.registry import host_class
from memcomp.experiments.cli import main
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.packaged import recipe_names, recipe_text
from memcomp.experiments.training.loss import HOST_TERMS

NAMES = recipe_names()
PUBLISHED = {
    "fomm": "fomm",
    "fomm_adv": "fomm",
    "tpsm": "tpsm",
    "dagan": "dagan",
    "mcnet_baseline": "mcnet",
    "mraa": "mraa",
    "facevid2vid": "facevid2vid",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_host_is_upstream_s(name):
    recipe, published = load_recipe(name), dict(host_class(PUBLISHED[name]).published)
    model = dict(recipe.host.model)
    model.pop("align_corners", None)
    if name == "dagan":  # its depth network is a file of its own
        assert model.pop("depth") == "checkpoints/face_depth" and published.pop("depth")
    if name == "fomm_adv":
        published["discriminator_params"] = {**published["discriminator_params"], "sn": False, "use_kp": True}
    assert recipe.host.name == PUBLISHED[name] and recipe.size == 256
    assert json.loads(json.dumps(model)) == json.loads(json.dumps(published))


EQUIVARIANCE = {"equivariance_value": 10, "equivariance_jacobian": 10}
TERMS = {
    "fomm": EQUIVARIANCE,
    "fomm_adv": {**EQUIVARIANCE, "generator_gan": 1, "feature_matching": 10},
    "tpsm": {"equivariance_value": 10, "warp": 10, "background": 10},
    "dagan": {**EQUIVARIANCE, "generator_gan": 1, "feature_matching": 10, "keypoint_distance": 10},
    "mcnet_baseline": {**EQUIVARIANCE, "keypoint_distance": 10},
    "mraa": EQUIVARIANCE,
    "facevid2vid": {
        **{"equivariance_value": 10, "generator_gan": 1, "feature_matching": 10},
        **{"keypoint_prior": 10, "headpose": 20, "expression": 5},
    },
}
TRAINING = {  # epochs, pairs, milestones, weight decay, clip, its norm
    "fomm": (100, 40, (60, 90), 0.0, None, 2),
    "fomm_adv": (150, 36, (), 0.0, None, 2),
    "tpsm": (100, 28, (70, 90), 1e-4, 10.0, "inf"),
    "dagan": (150, 48, (), 0.0, None, 2),
    "mcnet_baseline": (100, 64, (80,), 0.0, 10.0, 2),
    "mraa": (100, 14, (60, 90), 0.0, None, 2),
    "facevid2vid": (300, 32, (180,), 0.0, None, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_and_optimisers_are_upstream_s(name):
    recipe = load_recipe(name)
    loss, optim, data = recipe.loss, recipe.optim, recipe.data
    assert {term: getattr(loss, term) for term in HOST_TERMS if getattr(loss, term)} == TERMS[name]
    assert (loss.consistency, loss.pyramid_l1, loss.ssim, loss.discriminator_gan) == (0, 0, 0, 1)
    assert loss.perceptual.backbone == "vgg19" and loss.perceptual.scales == (1, 0.5, 0.25, 0.125)
    assert loss.perceptual.layers == ("features.1", "features.6", "features.11", "features.20", "features.29")
    assert [loss.perceptual.weight * weight for weight in loss.perceptual.layer_weights] == [10] * 5
    assert vars(loss.transform) == {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5}
    found = (optim.epochs, optim.batch_size, optim.milestones, optim.weight_decay, optim.clip, optim.clip_norm)
    assert found == TRAINING[name]
    assert (optim.lr, optim.memory_lr, optim.betas, optim.gamma, optim.warmup) == (2e-4, None, (0.5, 0.999), 0.1, 0)
    clipped = ("kp_detector", "dense_motion_network", "bg_predictor") if name == "tpsm" else None
    assert optim.clip_parts == clipped
    assert (data.kind, data.repeats, recipe.precision) == ("clips", 75, "tf32")
    jitter = ("brightness", "contrast", "saturation", "hue")
    assert all(getattr(data.augment, key) == 0.1 for key in jitter)
    assert (data.augment.time_flip, data.augment.mirror) == (0.5, 0.5)


def test_tpsm_s_second_stage_is_upstream_s():
    recipe = load_recipe("tpsm_avd")
    optim = recipe.optim
    assert recipe.stage == "avd" and recipe.data.repeats == 300 and recipe.host == load_recipe("tpsm").host
    found = (optim.epochs, optim.batch_size, optim.lr, optim.milestones, optim.weight_decay, optim.clip)
    assert found == (200, 256, 1e-3, (140, 180), 0, None)


def test_mraa_s_second_stage_is_upstream_s():
    recipe = load_recipe("mraa_avd")
    optim = recipe.optim
    assert recipe.stage == "avd" and recipe.data.repeats == 2000 and recipe.host == load_recipe("mraa").host
    found = (optim.epochs, optim.batch_size, optim.lr, optim.milestones, optim.gamma, optim.weight_decay, optim.clip)
    assert found == (30, 256, 1e-3, (20, 25), 0.1, 0, None)


BASES = {
    "fomm_mcnet": "fomm", "tpsm_mcnet": "tpsm", "dagan_mcnet": "dagan", "mcnet_mcm": "mcnet_baseline",
    "mcnet_mcm_nosplit": "mcnet_baseline", "mcnet": "mcnet_baseline", "mcnet_release": "mcnet_baseline",
    "fomm_mcnet_skip": "fomm", "fomm_skip_control": "fomm", "demo/clips_fomm_mcnet": "demo/clips_fomm",
    "mraa_mcnet": "mraa", "facevid2vid_mcnet": "facevid2vid",
    "demo/clips_tpsm_mcnet": "demo/clips_tpsm", "demo/clips_dagan_mcnet": "demo/clips_dagan",
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_rows_of_a_table_differ_by_the_memory_alone(name):
    one, other = load_recipe(BASES[name]).to_dict(), load_recipe(name).to_dict()
    weight = 1 if name.startswith("demo/") else 10
    assert other["loss"]["consistency"] == (0 if name == "fomm_skip_control" else weight)
    one["loss"]["consistency"], one["memory"] = other["loss"]["consistency"], other["memory"]
    assert one == other


def test_the_demo_s_recipes_follow_each_other():
    one, other = load_recipe("demo/fomm_detail").to_dict(), load_recipe("demo/fomm_mcnet").to_dict()
    one["loss"]["consistency"] = other["loss"]["consistency"]
    one["optim"] |= {key: other["optim"][key] for key in ("steps", "memory_lr")}
    one |= {key: other[key] for key in ("memory", "init")}
    assert one == other
    assert load_recipe("demo/fomm").host == load_recipe("demo/fomm_detail").host  # what the other starts from


def test_the_memories_are_those_of_table_2():
    paper = CompensationConfig.paper
    expected = {
        "fomm_mcnet": ("inplace", "all", paper()),
        "fomm_mcnet_skip": ("skip", "all", paper()),
        "fomm_skip_control": ("skip_control", "all", paper()),
        "tpsm_mcnet": ("inplace", "all", paper()),
        "mraa_mcnet": ("inplace", "all", paper()),
        "facevid2vid_mcnet": ("inplace", "all", paper()),
        "dagan_mcnet": ("inplace", "all", paper()),
        "mcnet_mcm_nosplit": ("inplace", "all", paper(split="none", identity_conditioning=False)),
        "mcnet_mcm": ("inplace", "all", paper(identity_conditioning=False)),
        "mcnet": ("inplace", "all", paper()),
        "mcnet_release": ("inplace", (0, 1, 2), CompensationConfig.release(noise=True)),
    }
    for name, what in expected.items():
        memory = load_recipe(name).memory
        assert (memory.mode, memory.scales, memory.config) == what, name
    for name in ("fomm_finetune", "tpsm_finetune", "dagan_finetune", "mraa_finetune", "facevid2vid_finetune"):
        assert load_recipe(name).memory.config == paper(start="identity")


@pytest.mark.parametrize("name", NAMES)
def test_a_memory_is_described_where_it_is_named(name):
    written = yaml.safe_load(recipe_text(name)[0])
    if load_recipe(name).memory is not None:
        assert {"preset", "mode", "scales", "start"} <= written["memory"].keys()
    assert re.search(r"^# Row: .+\.$", recipe_text(name)[0], re.MULTILINE) or name.startswith("demo/")


def test_a_finetune_says_how_to_get_what_it_starts_from(tmp_path, monkeypatch, capsys):
    for name in (name for name in NAMES if name.endswith("_finetune")):
        recipe = load_recipe(name)
        assert f"--output {recipe.init}`" in recipe_text(name)[0]
        assert recipe.freeze_host or recipe.optim.lr == load_recipe(recipe.host.name).optim.lr / 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "vox" / "train").mkdir(parents=True)
    (tmp_path / "data" / "vox" / "train" / "a_1.mp4").write_text("")
    narrow = "{block_expansion: 4, max_features: 16, num_blocks: 2, scale_factor: 0.25}"
    command = ["train", "fomm_finetune", "device=cpu", "size=64", "loss.perceptual=null", "loss.pyramid_l1=1"]
    command += [f"host.model.generator_params.dense_motion_params={narrow}", "memory.memory_channels=8"]
    command += [f"host.model.kp_detector_params={{temperature: 0.1, {narrow[1:]}"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "checkpoints/vox-cpk" in said and "memcomp convert FILE --output checkpoints/vox-cpk" in said


def test_recipes_are_listed_by_host_with_their_row_and_printed_with_every_key(capsys):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    headings = [line for line in said.splitlines() if line and line[0] != " "]
    assert headings[:7] == ["dagan", "facevid2vid", "fomm", "mcnet", "mraa", "tpsm", "small, for a CPU"]
    listed = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ")}
    assert list(listed) == [*(n for n in NAMES if "/" not in n), *(n for n in NAMES if "/" in n)]
    for name, row in {
        "fomm": "Table 2, FOMM ", "tpsm": "Table 2, TPSN ", "tpsm_mcnet": "Table 2, TPSN + IICM + MCM ",
        "mcnet_baseline": "Table 2, Baseline ", "mcnet_mcm": "Table 2, Baseline + MCM ",
        "mcnet_mcm_nosplit": "Table 2, Baseline + MCM w/o Eq. 3 ", "mcnet": "Table 2, Baseline + IICM + MCM (MCNet) ",
        "fomm_mcnet": "Table 2, FOMM + IICM + MCM ", "dagan": " ours ", "dagan_mcnet": " ours ",
        "demo/fomm": " ours ", "fomm_finetune": " ours ", "mraa": "Table 1, MRAA, ", "mraa_mcnet": " ours ",
        "facevid2vid": "Table 1, face-vid2vid, ", "facevid2vid_finetune": " ours ",
    }.items():  # fmt: skip
        assert row in listed[name], name
    assert main(["recipes", "tpsm_mcnet", "--resolved"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == load_recipe("tpsm_mcnet").to_dict()
    assert main(["recipes", "tpsm_mcnet"]) == 0
    printed, hint = capsys.readouterr().out.rsplit("# ", 1)
    assert printed == recipe_text("tpsm_mcnet")[0]
    assert hint == "The other keys are those of tpsm; all of them: memcomp recipes tpsm_mcnet --resolved\n"
    assert main(["recipes", "tpsm"]) == 0
    assert capsys.readouterr().out == recipe_text("tpsm")[0]
    assert main(["recipes", "--resolved"]) == 2
    assert "--resolved: expected a recipe's name with it" in capsys.readouterr().err


def test_the_readme_names_no_recipe_that_is_not_there():
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\| recipes \|.*\n\|[-|]+\n((?:\|.*\n)+)", readme)
    named = {word for row in table[1].splitlines() for word in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert len(named) > 20 and {name for name in named if name[0] != "_"} <= set(NAMES)  # `_mcnet` is an ending


def test_labels_tell_what_is_attached():
    labels = [load_recipe(name).label for name in ("fomm", "tpsm_mcnet", "fomm_mcnet_skip", "fomm_skip_control")]
    assert labels == ["fomm", "tpsm + memory", "fomm + skips + memory", "fomm + skips"]
