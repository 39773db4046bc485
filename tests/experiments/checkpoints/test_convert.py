"""`memcomp convert`: upstream's file → pretrained folder → whatever takes a checkpoint → upstream's file."""

import copy
import json
import os
import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from memcomp import CompensationConfig
from memcomp.adapters import attach, create_host, from_pretrained
from memcomp.experiments.checkpoints.build import build_host, initialise
from memcomp.experiments.checkpoints.trained import load_host, read_trained
from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import with_overrides

NARROW = {"block_expansion": 4, "max_features": 8, "num_blocks": 2}
MODEL = {
    "common_params": {"num_kp": 4, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {**NARROW, "temperature": 0.1, "scale_factor": 0.5},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 8, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
        "estimate_occlusion_map": True,
        "dense_motion_params": {**NARROW, "scale_factor": 0.5},
    },
    "discriminator_params": {**NARROW, "scales": [1], "sn": True, "use_kp": False},
}


@pytest.fixture(scope="module")
def host():
    torch.manual_seed(0)
    return create_host("fomm", MODEL).eval()


@pytest.fixture
def place(tmp_path, monkeypatch, host):
    """The working folder, with a checkpoint as upstream writes one."""
    monkeypatch.chdir(tmp_path)
    adam = torch.optim.Adam(host.parameters()).state_dict()
    torch.save(host.upstream_sections() | {"optimizer_generator": adam, "epoch": 99}, "vox.pth.tar")
    return tmp_path


def command(text):
    return main(text.split())


def same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_there_and_back(place, host, capsys):
    assert command("convert vox.pth.tar --output vox --size 32") == 0
    said = capsys.readouterr().out
    for line in (
        r"host +fomm",
        r"loaded +generator: 84 keys, 0\.01 M numbers",
        r"loaded +discriminator: ",
        r"dropped +optimizer_generator: state of an optimiser",
        r"dropped +epoch: of training, 99",
        r"parameter +kp_detector_params\.temperature: as published; no weight tells it",
        r"memory +none",
        r"written +vox: model\.safetensors, config\.json \(pictures of 32×32\)",
        r"next +memcomp animate --checkpoint vox ",
    ):
        assert re.search(f"^{line}", said, re.MULTILINE), (line, said)
    same(from_pretrained("vox"), host)
    about = json.loads((place / "vox" / "config.json").read_text())
    assert list(about["source"]["files"]) == ["vox.pth.tar"] and about["source"]["epoch"] == 99

    assert command("convert vox --to upstream --output again") == 0  # a name without a dot is one too
    assert "32×32 has no place in it: to convert it back say --size 32" in capsys.readouterr().out
    again = torch.load("again", weights_only=True)
    assert again.pop("epoch") == 99
    expected = host.upstream_sections()
    assert {name: list(state) for name, state in again.items()} == {n: list(s) for n, s in expected.items()}
    assert all(torch.equal(again[name][key], value) for name, state in expected.items() for key, value in state.items())


@pytest.mark.parametrize("background", ["affine", "zero"])
def test_mraa_there_and_back(place, capsys, background):
    """Its epochs stand elsewhere; a background that stands still is a section without weights."""
    model = {
        **{"num_regions": 3, "num_channels": 3, "estimate_affine": True, "revert_axis_swap": True},
        "bg_predictor_params": {**NARROW, "bg_type": background},
        "region_predictor_params": {**NARROW, "temperature": 0.1, "scale_factor": 0.5, "pca_based": True},
        "generator_params": {
            **{
                "block_expansion": 4,
                "max_features": 8,
                "num_down_blocks": 2,
                "num_bottleneck_blocks": 1,
                "skips": True,
            },
            "pixelwise_flow_predictor_params": {
                **NARROW,
                **{"scale_factor": 0.5, "use_covar_heatmap": True, "estimate_occlusion_map": True},
            },
        },
        "avd_network_params": {"id_bottle_size": 4, "pose_bottle_size": 5},
    }
    host = create_host("mraa", model).eval()
    adam = torch.optim.Adam(host.parameters()).state_dict()
    sections = host.upstream_sections()
    assert sections.keys() == {"region_predictor", "bg_predictor", "generator", "avd_network"}
    torch.save(sections | {"optimizer_reconstruction": adam, "epoch_reconstruction": 99}, "mraa.pth")
    assert command("convert mraa.pth --output mraa --size 32") == 0
    said = capsys.readouterr().out
    for line in (
        r"host +mraa",
        r"dropped +optimizer_reconstruction: state of an optimiser",
        r"dropped +epoch_reconstruction: of training, 99",
        r"parameter +region_predictor_params\.temperature: as published; no weight tells it",
    ):
        assert re.search(f"^{line}", said, re.MULTILINE), (line, said)
    again = from_pretrained("mraa")
    same(again, host)
    pictures = torch.rand(2, 1, 3, 32, 32).unbind()
    with torch.no_grad():
        assert torch.equal(again(*pictures).prediction, host(*pictures).prediction)
    assert command("convert mraa --to upstream --output again") == 0
    written = torch.load("again", weights_only=True)
    assert written.pop("epoch_reconstruction") == 99
    assert {name: list(state) for name, state in written.items()} == {name: list(s) for name, s in sections.items()}


@pytest.mark.parametrize("kind", ["original", "spade"])
def test_facevid2vid_there_and_back(place, capsys, kind):
    """Both generators have a section of the same name; the weights tell which it is."""
    volume = {"reshape_channel": 4, "reshape_depth": 3}
    model = {
        "common_params": {"num_kp": 3, "image_channel": 3, "feature_channel": 4, "estimate_jacobian": False},
        "kp_detector_params": {
            **{**NARROW, "temperature": 0.1, "scale_factor": 0.5},
            **{"reshape_channel": 3 * NARROW["max_features"], "reshape_depth": 3},
        },
        "he_estimator_params": {"block_expansion": 4, "num_bins": 66, "widths": [8, 8, 12, 16]},
        "generator_params": {
            **{"block_expansion": 64 if kind == "spade" else 4, "max_features": 64 if kind == "spade" else 12},
            **{"num_down_blocks": 2, "num_resblocks": 1, "estimate_occlusion_map": True, **volume},
            "dense_motion_params": {**NARROW, "reshape_depth": 3, "compress": 2},
        },
        "generator": kind,
    }
    host = create_host("facevid2vid", model).eval()
    adam, sections = torch.optim.Adam(host.parameters()).state_dict(), host.upstream_sections()
    torch.save(sections | {"optimizer_he_estimator": adam, "epoch": 7}, "facevid2vid.pth.tar")
    assert command("convert facevid2vid.pth.tar --output facevid2vid --size 32") == 0
    said = capsys.readouterr().out
    for line in (
        r"host +facevid2vid",
        r"dropped +optimizer_he_estimator: state of an optimiser",
        r"parameter +kp_detector_params\.temperature: as published; no weight tells it",
    ):
        assert re.search(f"^{line}", said, re.MULTILINE), (line, said)
    again = from_pretrained("facevid2vid")
    same(again, host)
    assert again.model["generator"] == kind
    pictures = torch.rand(2, 1, 3, 32, 32).unbind()
    with torch.no_grad():
        assert torch.equal(again(*pictures).prediction, host(*pictures).prediction)
    assert command("convert facevid2vid --to upstream --output again") == 0
    written = torch.load("again", weights_only=True)
    assert written.pop("epoch") == 7
    assert {name: list(state) for name, state in written.items()} == {name: list(s) for name, s in sections.items()}


def test_a_dtype_is_kept(place, host):
    half = copy.deepcopy(host).bfloat16()
    half.save_pretrained("half")
    assert command("convert half --to upstream --output half.pth.tar") == 0
    assert command("convert half.pth.tar --output again") == 0
    assert command("convert again --output more") == 0
    for name in ("again", "more"):
        assert from_pretrained(name).generator.final.weight.dtype == torch.bfloat16
        same(from_pretrained(name), half)
    assert load_host("more")[0].generator.final.weight.dtype == torch.float32  # what the laboratory computes in


def test_a_pretrained_folder_is_a_checkpoint(place, host, small_recipe, capsys):
    import imageio.v3 as imageio

    from memcomp.experiments.video import read_picture

    command("convert vox.pth.tar --output vox --size 32")
    loaded, recipe = load_host("vox")
    same(loaded, host)
    assert (recipe.size, recipe.host.model, recipe.memory) == (32, MODEL, None)
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    imageio.imwrite("face.png", frames[0])
    imageio.imwrite("video.mp4", frames, plugin="pyav", codec="libx264", fps=25)
    words = "--source face.png --driving video.mp4 --output moved.mp4 --device cpu"
    assert command(f"animate --checkpoint vox {words}") == 0
    assert imageio.imread("moved.mp4", plugin="pyav").shape[1:] == (32, 32, 3) and read_picture("face.png") is not None
    assert command("evaluate vox --pairs 2 device=cpu data.frames=3") == 0
    # training starts from it, with a memory of its own and without its discriminator
    fine = with_overrides(small_recipe, [f"host.model={json.dumps(MODEL | {'discriminator_params': None})}"], "test")
    start = build_host(fine)
    initialise(start, "vox")
    assert start.memory is not None and start.discriminator is None
    assert torch.equal(start.generator.final.weight, host.generator.final.weight)


@pytest.mark.parametrize("mode", ["inplace", "skip", "skip_control"])
def test_a_memory_goes_to_a_folder_but_not_to_upstream(place, host, capsys, mode):
    own = copy.deepcopy(host)
    attach(own, CompensationConfig.paper(memory_channels=8, memory_size=(4, 4)), mode=mode, scales=[0, 2])
    own.save_pretrained("own", size=32)
    loaded, recipe = load_host("own")
    same(loaded, own)
    assert (recipe.memory.mode, recipe.memory.scales) == (mode, (0, 2))
    assert command("convert own --output copy") == 0
    same(from_pretrained("copy"), own)
    assert from_pretrained("copy").model == MODEL and load_host("copy")[1] == recipe
    capsys.readouterr()
    assert command("convert own --to upstream --output x.pth.tar") == 2
    error = capsys.readouterr().err
    assert f"mode {mode}, scales 0, 2" in error and "expected --without-memory to write the host alone" in error
    assert not os.path.exists("x.pth.tar")
    assert command("convert own --to upstream --output x.pth.tar --without-memory") == 0
    assert command("convert own --output alone --without-memory") == 0
    same(from_pretrained("alone"), host)
    assert command("convert x.pth.tar --output alone_too") == 0
    same(from_pretrained("alone_too"), host)


def test_a_run_becomes_a_folder(place, small_run, small_host, capsys):
    assert command(f"convert {small_run} --output made") == 0
    same(from_pretrained("made"), small_host)
    recipe = read_trained(small_run).recipe
    made = read_trained("made")
    assert (made.recipe, made.step) == (None, 7)
    made = made.recipe_or_heads()
    assert (made.size, made.host) == (recipe.size, recipe.host)
    assert made.memory.config == recipe.memory.config and made.memory.scales == (0, 1)


def test_depth_networks_stay_in_files_of_their_own(place, capsys):
    model = MODEL | {"discriminator_params": None, "depth": {"num_layers": 18}}
    dagan = create_host("dagan", {key: value for key, value in model.items() if value is not None}).eval()
    dagan.save_pretrained("ours", size=64)
    assert command("convert ours --to upstream --output x.pth.tar") == 0
    assert set(torch.load("x.pth.tar", weights_only=True)) == {"generator", "kp_detector", "epoch"}
    assert set(torch.load("depth.pth", weights_only=True)) == set(dagan.depth_decoder.state_dict())
    assert command("convert ours --to upstream --output y.pth.tar") == 2
    assert "encoder.pth: is to hold the depth network; expected a new name" in capsys.readouterr().err
    assert command("convert x.pth.tar encoder.pth depth.pth --output again --size 64") == 0
    same(from_pretrained("again"), dagan)


def test_the_published_memory_goes_there_and_back(place, capsys):
    wide = {"num_down_blocks": 3, "max_features": 32}
    model = MODEL | {"generator_params": MODEL["generator_params"] | wide}
    mcnet = create_host("mcnet", model).eval()
    config = CompensationConfig.release(memory_channels=8, memory_size=(4, 4))
    attach(mcnet, config, scales=[0, 1, 2])
    mcnet.save_pretrained("ours", size=64)
    assert command("convert ours --to upstream --output x.pth.tar") == 0
    assert "mbUnit.mb" in torch.load("x.pth.tar", weights_only=True)["generator"]
    assert command("convert x.pth.tar --output again --size 64") == 0
    assert "memory       variant release, mode inplace, scales 0, 1, 2" in capsys.readouterr().out
    again = from_pretrained("again")
    same(again, mcnet)
    # as a start, the memory is taken where the recipe has one
    alone = create_host("mcnet", model)
    initialise(alone, "x.pth.tar")
    assert alone.memory is None
    assert torch.equal(alone.generator.final.weight, mcnet.generator.final.weight)


def test_a_model_is_taken_from_a_file(place, capsys):
    upstream = copy.deepcopy(MODEL)
    upstream["kp_detector_params"]["temperature"] = 0.25
    upstream["common_params"]["num_kp"] = 10
    (place / "vox.yaml").write_text(yaml.safe_dump({"model_params": upstream, "train_params": {"lr": 1}}))
    assert command("convert vox.pth.tar --output vox --model vox.yaml") == 0
    assert from_pretrained("vox").kp_detector.temperature == 0.25
    said = capsys.readouterr().out
    assert "kp_detector_params.temperature: as vox.yaml says" in said
    assert "common_params.num_kp: read off the weights, not as vox.yaml says" in said
    assert command("convert vox.pth.tar --output vox2 --model fomm") == 0  # a recipe's name
    assert from_pretrained("vox2").kp_detector.temperature == 0.1
    (place / "small.yaml").write_text(yaml.safe_dump({"base": "fomm", "size": 64}))
    assert command("convert vox.pth.tar --output vox3 --model small.yaml") == 0
    assert json.loads((place / "vox3" / "config.json").read_text())["size"] == 64


BAD = {
    "no file": ("none.pth.tar --output out", "none.pth.tar: expected a checkpoint, found nothing"),
    "no folder": ("none --output out", "none: expected a checkpoint, found nothing"),
    "truncated": ("cut.pth.tar --output out", "cut.pth.tar: damaged, or no file of torch.save"),
    "malicious": ("bad.pth.tar --output out", "safe loading refuses it, for it asks for .*mkdir; if you trust it"),
    "no section": ("part.pth.tar --output out", "looks like a checkpoint of fomm, but it or its model lacks kp_detec"),
    "extra key": ("more.pth.tar --output out", r"unexpected key generator\.surplus"),
    "not finite": ("nan.pth.tar --output out", r"generator\.final\.bias holds values that are not finite"),
    "unknown host": ("vox.pth.tar --host fom --output out", "unknown host 'fom', did you mean fomm"),
    "another host": ("vox.pth.tar --host tpsm --output out", "expected a checkpoint of tpsm, but it looks like fomm's"),
    "no pickle": ("text.pth.tar --output out", "text.pth.tar: expected a checkpoint, found a text file, .*'hello'"),
    "depth apart": ("dagan.pth.tar --output out", "encoder.pth and depth.pth as well, or by --model FILE .* zeros or"),
    "size it refuses": ("vox.pth.tar --output out --size 7", "--size 7: the host 'fomm' takes no pictures of"),
    "nobody's": ("odd.pth.tar --output out", "not a checkpoint of fomm, .*: it has net with a"),
    "output exists": ("vox.pth.tar --output full", "full: expected a new name, it exists already"),
    "output below a file": (
        "vox.pth.tar --output vox.pth.tar/out",
        "vox.pth.tar: expected a folder that can be written",
    ),
    "size of none": ("vox.pth.tar --output out --size 0", "--size: expected 1 or more, got 0"),
    "model is no YAML": ("vox.pth.tar --output out --model bad.yaml", "bad.yaml: expected YAML"),
    "model of no host": ("vox.pth.tar --output out --model odd.yaml", "model_params: expected a mapping, got 3"),
    "model of texts": (
        "vox.pth.tar --output out --model flat.yaml",
        "kp_detector_params: expected a mapping of .*, got 5",
    ),
    "weights without config": ("bare --output out", r"bare: expected a pretrained folder with .*; no config\.json"),
    "no model": ("vox.pth.tar --output out --model fom", "fom: expected a recipe file or one of .*did you mean"),
    "two of ours": ("full full --output out", "full: expected files of upstream"),
    "ours and a model": ("full --output out --host fomm", "--model, --host: expected upstream's checkpoint"),
    "upstream to upstream": ("vox.pth.tar --to upstream --output out", "first: memcomp convert vox.pth.tar --output"),
    "two to upstream": ("full full --to upstream --output out", "--to upstream: expected one run or pretrained folder"),
    "output of a run exists": ("full --to upstream --output vox.pth.tar", "vox.pth.tar: expected a new name"),
    "other weights": ("torn --to upstream --output out", "sha256 .*config.json says"),
}


class Runs:
    def __reduce__(self):
        return os.mkdir, ("it ran",)


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_line_and_writes_nothing(place, host, capsys, case):
    sections = {name: dict(state) for name, state in host.upstream_sections().items()}
    (place / "cut.pth.tar").write_bytes((place / "vox.pth.tar").read_bytes()[:1000])
    torch.save(sections | {"generator": {"a": Runs()}}, "bad.pth.tar")
    torch.save({"generator": sections["generator"]}, "part.pth.tar")
    torch.save({"net": {"a": torch.ones(1)}}, "odd.pth.tar")
    (place / "text.pth.tar").write_text("hello")
    dagan = create_host("dagan", MODEL | {"depth": "zeros"}) if case == "depth apart" else host
    torch.save(dagan.upstream_sections(), "dagan.pth.tar")
    generator = sections["generator"]
    torch.save(sections | {"generator": generator | {"surplus": torch.ones(1)}}, "more.pth.tar")
    bias = torch.full_like(generator["final.bias"], torch.nan)
    torch.save(sections | {"generator": generator | {"final.bias": bias}}, "nan.pth.tar")
    (place / "bad.yaml").write_text("a: [")
    (place / "odd.yaml").write_text("model_params: 3")
    (place / "flat.yaml").write_text("model_params: {kp_detector_params: 5}")
    for name in ("full", "torn", "bare"):
        host.save_pretrained(name)
    (place / "bare" / "config.json").unlink()
    weights = place / "bare" / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "memcomp-pretrained-1"})  # as version 0.1.0 wrote it
    with (place / "torn" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    arguments, message = BAD[case]
    before = sorted(place.rglob("*"))
    assert command(f"convert {arguments}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(message, lines[0]), lines
    assert sorted(place.rglob("*")) == before


def test_a_missing_start_says_how_to_make_one(small_recipe):
    with pytest.raises(UserError, match=r"none: expected a checkpoint to start from, found nothing; upstream's are "):
        initialise(build_host(small_recipe), "none")


def test_nothing_is_computed_on_meta():
    from memcomp.experiments.processes import resolve_device

    with pytest.raises(UserError, match="device: expected auto, cpu or cuda, got 'meta', on which nothing is computed"):
        resolve_device("meta")
