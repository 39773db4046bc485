"""A host as a folder: every weight, dtype and memory comes back; what is damaged or foreign is refused by name."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from memcomp import CompensationConfig
from memcomp.adapters import attach, create_host, from_pretrained
from memcomp.adapters.pretrained import read_pretrained, save_pretrained

MODEL = {
    "common_params": {"num_kp": 3, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 16, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
        "estimate_occlusion_map": True,
        "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.5},
    },
    "discriminator_params": {"scales": [1], "block_expansion": 4, "max_features": 8, "num_blocks": 2, "sn": True},
}
MEMORY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), temperature=3.0)


def make(memory=None, **options):
    torch.manual_seed(0)
    host = create_host("fomm", MODEL)
    if memory is not None:
        attach(host, memory, **options)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return host.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pretrained") / "made" / "on the way"
    make(MEMORY).save_pretrained(place, size=32)
    return place


@pytest.fixture
def broken(folder, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(folder, **entries):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | entries))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("memory", "options"),
    [
        (None, {}),
        (MEMORY, {}),
        (MEMORY, {"scales": [0, 2]}),
        (MEMORY, {"mode": "skip"}),
        (MEMORY, {"mode": "skip_control"}),
        (CompensationConfig.release(memory_channels=8, memory_size=(4, 4)), {"scales": [1]}),
    ],
)
def test_a_host_comes_back_with_its_memory_and_dtype(tmp_path, memory, options, dtype):
    host = make(memory, **options).to(dtype)
    host.save_pretrained(tmp_path / "host")
    again = from_pretrained(tmp_path / "host")
    assert not again.training and again.model == MODEL
    state, expected = again.state_dict(), host.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
    if host.memory is not None:
        assert (again.memory.config, again.memory.channels) == (host.memory.config, host.memory.channels)
    if dtype == torch.bfloat16 and torch.__version__.startswith("2.4."):
        return  # it cannot sample a picture of this dtype on a CPU
    source, driving = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype).unbind()
    with torch.no_grad():
        assert torch.equal(again(source, driving).prediction, host(source, driving).prediction)


def test_the_folder_tells_what_it_holds(folder):
    about = json.loads((folder / "config.json").read_text())
    assert {key: about[key] for key in ("format", "host", "model", "size", "source")} == {
        **{"format": "memcomp-pretrained-1", "host": "fomm", "model": MODEL, "size": 32, "source": None}
    }
    assert about["memory"] == {"config": MEMORY.to_dict(), "mode": "inplace", "scales": [0, 1, 2], "keypoints": 3}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert read_pretrained(folder).size == 32


def test_the_same_host_is_written_as_the_same_bytes(folder, tmp_path):
    for index in range(3):
        make(MEMORY).save_pretrained(tmp_path / str(index), size=32)
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / str(index) / name).read_bytes() == (folder / name).read_bytes()


def test_writing_again_replaces_both_files(broken):
    save_pretrained(make(), broken, source={"file": "x.pth.tar"})
    assert from_pretrained(broken).memory is None
    assert read_pretrained(broken).source == {"file": "x.pth.tar"}


def test_what_cannot_be_kept_is_refused_and_nothing_is_written(tmp_path):
    host = make(MEMORY)
    host.model["extra"] = {1, 2}
    with pytest.raises(ValueError, match="model of the host 'fomm' cannot be written as JSON"):
        host.save_pretrained(tmp_path / "no")
    del host.model["extra"]
    with torch.no_grad():
        host.generator.final.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"the host 'fomm' has non-finite weights: generator\.final\.bias"):
        host.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make().save_pretrained(tmp_path / "file")


def test_a_memory_that_attach_did_not_place_is_refused(tmp_path):
    from memcomp import KeypointTap, MemoryCompensation, Tap, inject

    host = make()
    inject(
        host.generator, MemoryCompensation([16], 3, MEMORY), [Tap("bottleneck.r0")], KeypointTap("dense_motion_network")
    )
    with pytest.raises(ValueError, match="taps are not the host's: save it alone"):
        host.save_pretrained(tmp_path / "no")


def test_damaged_weights_are_refused(broken):
    file = broken / "model.safetensors"
    good = file.read_bytes()
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[: len(good) // 2]):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"model\.safetensors: sha256 \w{12}…, config\.json says \w{12}…"):
            from_pretrained(broken)
    import hashlib

    file.write_bytes(b"rubbish")
    change(broken, sha256=hashlib.sha256(b"rubbish").hexdigest())
    with pytest.raises(ValueError, match="found a text file"):
        from_pretrained(broken)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        from_pretrained(broken)


def test_weights_that_are_not_finite_are_refused(broken):
    import hashlib

    from safetensors.torch import load_file, save

    tensors = load_file(broken / "model.safetensors")
    tensors["generator.final.bias"][1] = torch.inf
    weights = save(tensors)
    (broken / "model.safetensors").write_bytes(weights)
    change(broken, sha256=hashlib.sha256(weights).hexdigest())
    with pytest.raises(ValueError, match=r"non-finite weights: generator\.final\.bias"):
        from_pretrained(broken)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "memcomp-pretrained-9"}, "expected format 'memcomp-pretrained-1', found 'memcomp-pretrained-9'"),
        ({"host": "fom"}, r"unknown host 'fom', did you mean fomm\?"),
        ({"model": {**MODEL, "kp_detector_param": {}}}, r"did you mean kp_detector_params\?"),
        ({"model": None}, "'model' is None"),
        ({"surplus": 1}, "unknown key 'surplus'"),
        ({"size": -4}, "'size' must be 1 or more, not -4"),
        ({"memory": {"mode": "inplace"}}, "'memory' must have config, mode, scales and keypoints"),
        ({"memory": {"config": {}, "mode": "beside", "scales": [0], "keypoints": 3}}, "'beside'"),
        ({"memory": {"config": {"memory_chanels": 8}, "mode": "inplace", "scales": [0], "keypoints": 3}}, "mory_chann"),
        ({"memory": {"config": {}, "mode": "inplace", "scales": "all", "keypoints": 3}}, "indices of taps, not .all"),
        ({"memory": None}, r"model\.safetensors does not fit: .*memory_compensation\.memory\.value: found"),
        (
            {"model": {**MODEL, "common_params": {"num_kp": 4, "estimate_jacobian": True}}, "memory": None},
            r"kp_detector\.kp\.weight: found \(3, 7, 7, 7\), expected \(4, 7, 7, 7\)",
        ),
    ],
)
def test_a_wrong_config_is_refused_by_name(broken, entries, message):
    change(broken, **entries)
    with pytest.raises(ValueError, match=message):
        from_pretrained(broken)


def test_a_config_that_is_no_json_is_refused(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        from_pretrained(broken)
    (broken / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="found None"):
        from_pretrained(broken)


def test_a_name_of_nothing_is_refused():
    with pytest.raises(FileNotFoundError, match="no such folder: /no/such/place"):
        from_pretrained("/no/such/place")


def test_the_hub_is_asked_for_two_files_only(folder, monkeypatch):
    asked = []
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, **options: asked.append((name, options)) or str(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert from_pretrained("someone/their-host", revision="v1").memory is not None
    assert asked == [("someone/their-host", {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]})]

    def fail(name, **options):
        raise ConnectionError("no route\nmore")

    hub.snapshot_download = fail
    message = "no folder someone/their-host, nor to be had from the hub (are you offline?): no route"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        from_pretrained("someone/their-host")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'memcomp\[hub\]'"):
        from_pretrained("someone/their-host")


def test_the_hubs_package_is_not_imported_without_need(folder):
    code = f"import sys; from memcomp.adapters import from_pretrained; from_pretrained({str(folder)!r}); "
    code += "print([name for name in ('huggingface_hub', 'timm', 'torchvision', 'yaml') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- a writer that is stopped on the way


class Killed(BaseException):
    """What ends a process that is killed: nothing after it runs."""


def kill(monkeypatch, step):
    """Let the writer die at its n-th step on the disk, in the middle of it; the dead clean nothing up."""
    done = []

    def dying(name, real, half):
        def call(*args, **options):
            done.append(name)
            if len(done) == step:
                half(*args)
            if len(done) >= step:
                raise Killed
            return real(*args, **options)

        return call

    nothing = lambda *args: None  # noqa: E731
    write = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", dying("write", write, lambda path, data: write(path, data[: len(data) // 2]))
    )
    monkeypatch.setattr(os, "replace", dying("replace", os.replace, nothing))
    monkeypatch.setattr(Path, "unlink", dying("unlink", Path.unlink, nothing))
    return done


KEPT = Path(__file__).parents[1] / "data" / "round1" / "pretrained"
STEPS = ["write", "replace", "unlink", "write", "replace", "unlink"]


@pytest.mark.parametrize("before", ["another", "version 0.1.0", "nothing"])
@pytest.mark.parametrize("step", range(1, len(STEPS) + 1))
def test_a_writer_killed_at_any_step_leaves_the_old_host_or_the_new_one(folder, tmp_path, monkeypatch, before, step):
    place = tmp_path / "place"
    old = {"another": folder, "version 0.1.0": KEPT}.get(before)
    if old is not None:
        shutil.copytree(old, place)
    new = make(CompensationConfig.paper(memory_channels=4, memory_size=(2, 2)), scales=[1])
    with monkeypatch.context() as patched:
        done = kill(patched, step)
        with pytest.raises(Killed):
            new.save_pretrained(place, size=48, training={"steps": 7})
    assert done[:step] == STEPS[:step]
    if step <= 2 and old is None:
        with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
            from_pretrained(place)
    else:
        read, expected = read_pretrained(place), new if step > 2 else from_pretrained(old)
        assert (read.size, read.training) == ((48, {"steps": 7}) if step > 2 else (32, None))
        host = from_pretrained(place)
        assert host.model == expected.model and host.memory.config == expected.memory.config
        state = host.state_dict()
        assert state.keys() == expected.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
    new.save_pretrained(place, size=48)  # whatever was left is no hindrance
    assert read_pretrained(place).training is None


def test_weights_describe_themselves(broken):
    (broken / "config.json").unlink()
    assert read_pretrained(broken).size == 32 and from_pretrained(broken).memory.config == MEMORY
    file = broken / "model.safetensors"
    good = file.read_bytes()
    for place in (good.index(b'"size') + 9, len(good) - 1):  # of the description, of the weights
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(FileNotFoundError, match=r"no config\.json"):
            from_pretrained(broken)


def test_version_0_1_0_could_read_what_is_written(folder):
    import hashlib

    from safetensors import safe_open

    about = json.loads((folder / "config.json").read_text())
    assert about.keys() == {"format", "host", "model", "memory", "size", "sha256", "source"}
    assert about["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == about["format"]


def test_how_it_was_trained_is_kept(tmp_path):
    save_pretrained(make(), tmp_path / "host", training={"steps": 3, "backbone": None})
    assert read_pretrained(tmp_path / "host").training == {"steps": 3, "backbone": None}
    change(tmp_path / "host", training=3)
    with pytest.raises(ValueError, match="'training' is 3"):
        from_pretrained(tmp_path / "host")
