"""Every recipe of the package, narrowed: it trains, resumes, is measured and animates."""

import csv
import json
import math
import re
import shlex
import shutil
from importlib import resources
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from memcomp.adapters.facevid2vid.pose import with_pose
from memcomp.experiments.benchmark.published import published
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.run_file import load_run
from memcomp.experiments.checkpoints.trained import read_trained, save_trained
from memcomp.experiments.cli import main
from memcomp.experiments.data.heads import Identity, Poses, render
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.checks import OF_MOTION
from memcomp.experiments.recipe.load import load_recipe, with_overrides
from memcomp.experiments.recipe.packaged import recipe_names
from memcomp.experiments.studies.step_cost import numbers
from memcomp.experiments.training import loss as losses
from memcomp.experiments.training.loop import train
from memcomp.experiments.training.loss import HOST_TERMS, Objective
from memcomp.experiments.video import Frames, write_video

# those of the laboratory cannot run on clips, nor animate: tests/experiments/studies/test_evidence.py trains them
NAMES = [name for name in recipe_names() if not name.startswith("demo/true_motion")]
HOURGLASS = {"block_expansion": 4, "max_features": 16, "num_blocks": 2}
NARROW = {  # host → its model, key by key, as narrow as it goes
    "fomm": {
        "common_params.num_kp": 3,
        **{f"kp_detector_params.{key}": value for key, value in HOURGLASS.items()},
        **{f"generator_params.dense_motion_params.{key}": value for key, value in HOURGLASS.items()},
        "generator_params.block_expansion": 8,
        "generator_params.max_features": 16,
        "generator_params.num_bottleneck_blocks": 1,
    },
    "tpsm": {
        "common_params.num_tps": 2,
        **{f"dense_motion_params.{key}": value for key, value in HOURGLASS.items()},
        "generator_params.block_expansion": 4,
        "generator_params.max_features": 32,
    },
}
NARROW["mraa"] = {
    "num_regions": 3,
    **{f"{part}_predictor_params.{key}": value for part in ("region", "bg") for key, value in HOURGLASS.items()},
    **{f"generator_params.pixelwise_flow_predictor_params.{key}": value for key, value in HOURGLASS.items()},
    **{
        key: value
        for key, value in NARROW["fomm"].items()
        if key.startswith("generator_params.") and "dense" not in key
    },
}
NARROW["facevid2vid"] = {
    **{"common_params.num_kp": 4, "common_params.feature_channel": 4},
    **{f"kp_detector_params.{key}": value for key, value in HOURGLASS.items()},
    **{"kp_detector_params.reshape_channel": 64, "kp_detector_params.reshape_depth": 4},
    **{"he_estimator_params.block_expansion": 4, "he_estimator_params.widths": "[8, 8, 12, 16]"},
    **{"generator_params.block_expansion": 4, "generator_params.max_features": 16},
    **{"generator_params.reshape_channel": 4, "generator_params.reshape_depth": 4},
    "generator_params.num_resblocks": 1,
    **{f"generator_params.dense_motion_params.{key}": value for key, value in HOURGLASS.items()},
    "generator_params.dense_motion_params.reshape_depth": 4,
}
NARROW["dagan"] = {**NARROW["fomm"], "depth": "zeros"}
NARROW["mcnet"] = {**NARROW["fomm"], "generator_params.block_expansion": 4, "generator_params.max_features": 32}
MEMORY = {"memory_channels": 8, "memory_size": "[4, 4]", "identity_hidden": 8}
RUN = {
    "device": "cpu",
    "init": "null",
    "data.kind": "clips",
    "data.workers": 0,
    "data.augment.hue": 0.0,
    "optim.steps": 3,
    "optim.epochs": "null",
    "optim.batch_size": 2,
    "log.held_out_pairs": 2,
}


def narrow(name, clips, *more):
    """The recipe, its networks as narrow as they go, for three steps on tiny clips."""
    return with_overrides(load_recipe(name), [*narrowing(name, clips), *more], "test")


def narrowing(name, clips):
    """The overrides that make it so."""
    recipe = load_recipe(name)
    changes = {**RUN, "data.root": clips, "data.cache": clips / "cache"}
    changes["size"] = 256 if name == "mcnet_release" else 64
    changes |= {f"host.model.{key}": value for key, value in NARROW[recipe.host.name].items()}
    if recipe.host.model.get("discriminator_params"):
        changes |= {f"host.model.discriminator_params.{key}": value for key, value in HOURGLASS.items()}
    if recipe.data.pose:  # of heads; clips have a teacher
        changes |= {"data.pose": "false", "loss.pose_teacher": "teacher.pkl"}
    if recipe.data.correspondence:  # of heads; test_loss.py has those terms
        changes |= {"data.correspondence": "false", "loss.motion": 0, "loss.visibility": 0}
    if recipe.memory is not None:
        changes |= {f"memory.{key}": value for key, value in MEMORY.items()}
    return [f"{key}={value}" for key, value in changes.items()]


@pytest.fixture(scope="module")
def clips(tmp_path_factory, clip_writer):
    """Folder with train/ and test/ clips of two people each."""
    root = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(("train/a_1", "train/b_1", "test/c_1", "test/d_1")):
        (root / name).parent.mkdir(exist_ok=True)
        clip_writer(root / f"{name}.mp4", number, frames=4)
    return root


class TinyTeacher(nn.Module):
    """In the place of Hopenet, a ResNet of 50 layers."""

    def forward(self, pictures):
        return 30 * pictures.mean((2, 3))


class TinyResNet(nn.Module):
    """In the place of a ResNet of eleven million weights."""

    def __init__(self, num_layers=18, in_channels=3, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 7, stride=4)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.conv1(x).relu().mean((2, 3)))


def tiny_backbone(name, weights):
    """In the place of a VGG of 140 million: as many modules, so that the recipe's layers are there."""
    layers = [nn.Conv2d(3, 4, 1), *(nn.ReLU() for _ in range(29))]
    nn.init.dirac_(layers[0].weight)  # the same in every run
    nn.init.zeros_(layers[0].bias)
    network = nn.Module()
    network.features = nn.Sequential(*layers)
    network.feature_info = []
    network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    network.forward_features = network.features.forward
    return network, "tiny"


@pytest.fixture
def light(monkeypatch):
    """Small networks in the place of the two that no recipe can narrow."""
    monkeypatch.setattr("memcomp.adapters.tpsm.keypoints.ResNet", TinyResNet)
    monkeypatch.setattr(losses, "load_teacher", lambda file: TinyTeacher())
    plain = losses.load_backbone
    monkeypatch.setattr(
        losses, "load_backbone", lambda *args: tiny_backbone(*args) if args[0] == "vgg19" else plain(*args)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_resumes_is_measured_and_animates(name, clips, tmp_path, light):
    original = load_recipe(name)
    start = []
    if original.init is not None and original.init != "demo":
        before = build_host(narrow(name, clips, "seed=9", "freeze_host=false", *alone(original)))
        start = [f"init={tmp_path / 'host.pth.tar'}"]
        torch.save(before.upstream_sections(), tmp_path / "host.pth.tar")
    recipe = narrow(name, clips, *start)
    folder = tmp_path / "run"
    assert train(recipe, folder, stop_after=2, progress=False).step == 2
    frozen = load_run(folder / "checkpoints" / "last.safetensors").model() if start else {}
    result = train(recipe, folder, resume=True, progress=False)
    assert result.finished and result.step == 3
    assert math.isfinite(result.held_out_end)
    with (folder / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    weights = vars(recipe.loss)
    asked = {term for term in (*HOST_TERMS, "consistency", "perceptual", "pyramid_l1", "ssim") if weights[term]}
    assert ({recipe.stage} if recipe.stage else asked) <= last.keys()

    trained = read_trained(folder).weights
    for key, value in frozen.items():  # what does not train is what it started from
        trains = "memory_compensation" in key or (not recipe.freeze_host and recipe.stage is None)
        if not trains and not key.startswith("avd_network"):
            assert torch.equal(value, trained[key]) and torch.equal(value, before.state_dict()[key]), key
    assert main(["evaluate", str(folder), "--pairs", "2", "--videos", "0"]) == 0
    results = json.loads((folder / "evaluation" / "metrics.json").read_text())["results"]
    assert recipe.label in results["same identity"]
    clip = sorted((clips / "test").iterdir())
    output = tmp_path / "moved.mp4"
    motion = recipe.stage or "relative"
    iio.imwrite(tmp_path / "face.png", next(iter(Frames(clip[0]))))
    command = ["animate", "--checkpoint", str(folder), "--source", str(tmp_path / "face.png"), "--motion", motion]
    assert main([*command, "--driving", str(clip[1]), "--output", str(output), "--no-adapt-scale"]) == 0
    assert [frame.shape for frame in Frames(output)] == [(recipe.size, recipe.size, 3)] * 4


@pytest.mark.parametrize(
    "name", ["fomm_mcnet", "tpsm_mcnet", "dagan_mcnet", "mraa_mcnet", "facevid2vid_mcnet", "mcnet"]
)
def test_a_frozen_motion_stays_and_the_pictures_change(name, clips, light):
    terms = [f"loss.{term}=0" for term in (*OF_MOTION, "warp")]
    host = build_host(narrow(name, clips, "freeze_motion=true", "memory.start=identity", *terms))
    source, driving = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, weights = host.eval()(source, driving), {key: value.clone() for key, value in host.state_dict().items()}
    groups = host.train().optimizer_groups()
    assert set(groups) <= {host.generator_section, "discriminator"}
    made = host.training_output(source, driving, epoch=99.0, generator=torch.Generator().manual_seed(0))
    (made.prediction - driving).abs().mean().backward()
    torch.optim.Adam(groups[host.generator_section], lr=1e-2).step()
    after = host.eval()(source, driving)
    assert torch.equal(after.deformation, before.deformation) and torch.equal(after.mask, before.mask)
    assert before.occlusion_map is None or torch.equal(after.occlusion_map, before.occlusion_map)
    assert not torch.equal(after.prediction, before.prediction)
    changed = {key for key, value in host.state_dict().items() if not torch.equal(value, weights[key])}
    assert any("memory_compensation" in key for key in changed)
    assert any("memory_compensation" not in key and key.endswith("weight") for key in changed)


@pytest.mark.parametrize(
    ("published", "name", "scales"), [("MRAA", "demo/mraa_mcnet", 4), ("face-vid2vid", "demo/facevid2vid_mcnet", 3)]
)
def test_a_memory_is_looked_into_and_its_row_stands_beside_the_published(
    published, name, scales, clips, tmp_path, light
):
    recipe, run, face = narrow(name, clips, "size=32"), tmp_path / "run", tmp_path / "face.png"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    save_trained(run, build_host(recipe), recipe, 0, {"backbone": None})
    iio.imwrite(face, next(iter(Frames(min((clips / "test").iterdir())))))
    assert main(["inspect", str(run), "--source", str(face), "--output", str(tmp_path / "looks")]) == 0
    assert len(json.loads((tmp_path / "looks" / "inspect.json").read_text())["scales"]) == scales
    words = ["--published", "--pairs", "1", "--repeats", "0", "--no-report", "--output", str(tmp_path / "table")]
    assert main(["benchmark", str(run), *words]) == 0
    table = (tmp_path / "table" / "report.md").read_text()
    assert f"| {recipe.host.name} + memory " in table
    assert f"| {published}, VoxCeleb1 (published, not measured here) " in table


def alone(recipe):
    """Overrides for the host of the checkpoint that a recipe starts from: without memory, but for the released one."""
    released = recipe.memory is None or recipe.memory.preset == "release"
    return [] if released else ["memory=null", "loss.consistency=0"]


def test_tpsm_s_background_starts_late_and_resuming_is_exact(clips, tmp_path, light):
    changes = ["data.repeats=1", "host.model.train_params.bg_start=1"]  # one step is one epoch
    recipe = narrow("tpsm", clips, *changes)
    train(recipe, tmp_path / "whole", progress=False)
    train(recipe, tmp_path / "parts", stop_after=1, progress=False)
    start, first = build_host(recipe).state_dict(), load_run(tmp_path / "parts" / "checkpoints" / "last.safetensors")
    moved = {key.split(".")[0] for key, value in first.model().items() if not torch.equal(value, start[key])}
    assert moved == {"kp_detector", "dense_motion_network", "inpainting_network"}
    train(recipe, tmp_path / "parts", resume=True, progress=False)
    whole, parts = (load_file(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(value, parts[key]) for key, value in whole.items())
    last = read_trained(tmp_path / "whole").weights
    moved = {key.split(".")[0] for key, value in last.items() if not torch.equal(value, start[key])}
    assert moved == {"kp_detector", "dense_motion_network", "inpainting_network", "bg_predictor"}


def test_true_depth_trains_and_is_measured_and_a_plain_picture_is_refused(head_cache, clips, tmp_path, capsys):
    changes = ["data.kind=heads", "data.depth=true", "data.identities=2", "data.frames=3", f"data.cache={head_cache}"]
    recipe = narrow("demo/clips_dagan_mcnet", clips, *changes, "host.model.depth=truth", "size=32")
    train(recipe, tmp_path / "run", progress=False)
    assert main(["evaluate", str(tmp_path / "run"), "--pairs", "2"]) == 0
    iio.imwrite(tmp_path / "face.png", torch.zeros(32, 32, 3, dtype=torch.uint8).numpy())
    clip = next((clips / "test").iterdir())
    command = ["animate", "--checkpoint", str(tmp_path / "run"), "--source", str(tmp_path / "face.png")]
    assert main([*command, "--driving", str(clip), "--output", str(tmp_path / "out.mp4")]) == 2
    said = capsys.readouterr().err
    assert "host 'dagan'" in said and "disparity as a fourth channel; they have 3 channels" in said
    assert main(["evaluate", str(tmp_path / "run"), "data.kind=clips", f"data.root={clips}", "data.depth=false"]) == 2
    assert "fourth channel" in capsys.readouterr().err


def test_a_depth_network_with_random_weights_is_not_trained_with(clips, light, tmp_path):
    recipe = narrow("dagan", clips, "host.model.depth={num_layers: 18}", "size=64")
    with pytest.raises(UserError, match="the depth network was never loaded; give its file or folder"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["fomm_adv", "tpsm_mcnet", "dagan", "mcnet", "mraa_mcnet", "facevid2vid_mcnet"])
def test_the_loss_is_the_host_s_terms_with_the_recipe_s_weights(name, clips, light):
    recipe = narrow(name, clips)
    host, (source, driving) = build_host(recipe).eval(), torch.rand(2, 2, 3, 64, 64)
    objective = Objective(recipe.loss)
    loss, terms, output = objective(host, source, driving, torch.Generator().manual_seed(0))
    weights = {term: getattr(recipe.loss, term) for term in HOST_TERMS if getattr(recipe.loss, term)}
    transform = {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5}
    taught = with_pose(driving, TinyTeacher()(driving)) if recipe.loss.headpose else driving
    plain = host.loss_terms(
        output, source, taught, list(weights), generator=torch.Generator().manual_seed(0), transform_params=transform
    )
    expected = {term: weight * plain[term].item() for term, weight in weights.items()}
    expected["perceptual"] = objective.perceptual(output.prediction, driving).item()
    if recipe.memory is not None:
        with host.memory.recording() as record:
            host.reconstruct(source, driving)
        expected["consistency"] = recipe.loss.consistency * record.consistency_loss().item()
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-5)


# ---- experiments/REPRODUCE.md ----------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[3] / "experiments" / "REPRODUCE.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
LINES = [line for block in BLOCKS if not block.startswith("# download\n") for line in block.splitlines()]
HERE = [line for line in LINES if not line.startswith("torchrun ")]
PREPARED = "--size 64 --min-frames 4 --workers 0"
SHORTER = {  # what makes a command of the page short enough for a test
    "prepare video-preprocessing/vox-metadata.csv": PREPARED,
    "prepare celebvhq": f"{PREPARED} --same-person 0 --test-share 0.5",
    "convert": "--size 64",
    "evaluate": "--metrics l1 --videos 0 --batch 2",
    "benchmark": "--metrics l1 --repeats 0 --no-report --batch 2",
}
CLIPS = (("id1", "train", "one"), ("id10282", "test", "two"), ("id10283", "test", "three"))  # of whom, where, video


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Rendered heads as raw videos, VoxCeleb's metadata of them, and lists of pairs as published."""
    folder = tmp_path_factory.mktemp("reproduce")
    for seed, name in ((2_005_007, "one"), (2_005_003, "two")):
        poses = Poses.make(yaw=[-4.0, -1.0, 2.0, 5.0], mouth=[0.0, 0.2, 0.4, 0.5])
        pictures = (render(Identity.sample(seed), poses, 160).image * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for place in (folder / "raw" / f"{name}.mp4", folder / "celebvhq" / f"{name}.mp4"):
            with write_video(place, 25) as append:
                for picture in pictures:
                    append(picture)
    shutil.copy(folder / "raw" / "one.mp4", folder / "raw" / "three.mp4")
    rows = [f"{video},0,4,20-20-140-140,25,160,160,{side},{person}" for person, side, video in CLIPS]
    write(
        folder / "video-preprocessing" / "vox-metadata.csv",
        "video_id,start,end,bbox,fps,width,height,partition,person_id",
        *rows,
    )
    two, three = (f"/elsewhere/vox1_frames/test/{person}#{video}#000000#000004.mp4" for person, _, video in CLIPS[1:])
    lists = folder / "CVPR2022-DaGAN" / "data"
    header, rows = "source,driving,best_frame", [f"{clip}/0000000.png,{clip}/0000002.png" for clip in (two, three)]
    write(lists / "vox_evaluation.csv", header, *rows)
    rows = [f"{two}/0000000.png,{three}/0000003.png,{three}/0000001.png"]
    write(lists / "vox_cross_id_evaluation_best_frame.csv", header, *rows)
    return folder


def write(file, *lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("line", HERE)
def test_a_command_of_the_page_runs_in_small(line, raw, light, monkeypatch, capsys):
    monkeypatch.chdir(raw)
    monkeypatch.setenv("MEMCOMP_CACHE", str(raw / "cache"))
    name, *words = shlex.split(line)
    assert name == "memcomp"
    if words[:2] == ["prepare", "celebvhq"]:
        pytest.importorskip("dlib")
    if words[0] == "convert":  # the checkpoint that somebody published
        assert main(["convert", "runs/fomm", "--to", "upstream", "--output", words[1]]) == 0
    short = SHORTER.get(words[0], SHORTER.get(" ".join(words[:2]), ""))
    if words[0] == "train":
        more = [*narrowing(words[1], Path("data/vox")), "optim.steps=1", "log.keep_best=false"]
        short = shlex.join(more)
    assert main([*words, *shlex.split(short)]) in (0, None)
    if words[0] == "prepare":
        output = Path(words[words.index("--output") + 1])
        assert {clip.parts[2] for clip in output.glob("*/*/*.mp4")} and list(output.glob("test/*/*.mp4"))
    if "--pairs-file" in words:  # every pair of the published list was found
        said = capsys.readouterr()
        assert "; 0 missing on disk; 0 unreadable" in said.out + said.err


def test_several_gpus_share_every_batch_of_the_page():
    ours = {shlex.split(line)[2]: shlex.split(line)[1:] for line in HERE if line.startswith("memcomp train ")}
    shared = [shlex.split(line) for line in LINES if line.startswith("torchrun ")]
    for words in shared:
        processes, rest = int(words[2]), words[5:]
        assert words[:2] + words[3:5] == ["torchrun", "--nproc-per-node", "-m", "memcomp.experiments.cli"]
        assert rest[-1] == "--resume-auto" and rest[:-1] == ours.pop(rest[1])
        recipe = load_recipe(rest[1])
        assert recipe.optim.batch_size % processes == 0 and processes > 6
    assert not ours


def test_the_page_shows_the_published_rows_and_the_computed_hours():
    table = re.search(r"^\| recipe .*?(?=^$)", PAGE, re.M | re.S).group().splitlines()
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    tables = {one["table"]: one["rows"] for one in published()["tables"] if one["kind"] == "same identity"}
    names = {"SSIM": "ssim", "PSNR": "psnr", "LPIPS": "lpips", "L1": "l1", "AKD": "akd", "AED": "aed"}
    computed = json.loads(resources.files("memcomp.experiments.results").joinpath("step_cost.json").read_text())
    assert (computed["people"], computed["peak_tflops"], computed["share_of_peak"]) == (424, 156, 0.3)
    costs = {one["recipe"]: one for one in computed["recipes"]}
    assert [line[0].strip("`") for line in lines] == list(costs)
    for line in lines:
        cells = dict(zip(header, line, strict=True))
        name, cost = cells["recipe"].strip("`"), costs[cells["recipe"].strip("`")]
        where, _, row = cells["published row"].partition(", ")
        printed = tables["Table 1 (a)" if where == "Table 1" else where][row] if row else {}
        assert {title: cells[title] for title in names} == {t: printed.get(metric) or "" for t, metric in names.items()}
        optim = load_recipe(name).optim
        steps = math.ceil(optim.epochs * 424 * 75 / optim.batch_size)
        assert (cost["batch"], cost["steps"]) == (optim.batch_size, steps)
        assert cost["hours"] == pytest.approx(steps * cost["tflop"] / (156 * 0.3) / 3600)
        assert [cells[title] for title in header[-4:]] == numbers(cost)
