"""Other people's checkpoints: told by their first bytes, read safely whatever else is in them, or called what they are.

Every file is made here. Pickles of numpy 1 and 2 are made by names of either, whichever is installed.
"""

import argparse
import collections
import decimal
import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import memcomp
from memcomp.adapters import create_host, from_pretrained
from memcomp.adapters.upstream.checkpoint import read_checkpoint
from memcomp.adapters.upstream.files import read_file, read_state
from memcomp.checkpoint import from_file
from memcomp.experiments.backends.files import read_weights
from memcomp.experiments.checkpoints.build import build_host, initialise
from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import with_overrides
from memcomp.formats import weights_format

NARROW = {"block_expansion": 4, "max_features": 8, "num_blocks": 2}
MODEL = {
    "common_params": {"num_kp": 4, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {**NARROW, "temperature": 0.1, "scale_factor": 0.5},
    "generator_params": {
        **{"block_expansion": 4, "max_features": 8, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
        "estimate_occlusion_map": True,
        "dense_motion_params": {**NARROW, "scale_factor": 0.5},
    },
}
HTML = "<!DOCTYPE html><html><head><title>Virus scan warning</title></head></html>"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 362181921\n"


@pytest.fixture(scope="module")
def host():
    torch.manual_seed(0)
    return create_host("fomm", MODEL).eval()


@pytest.fixture
def sections(host):
    return {name: dict(state) for name, state in host.upstream_sections().items()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(text):
    return main(text.split())


def same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def save(name, content, **how):
    with open(name, "wb") as file:  # through a handle: torch makes a path's stem a name inside the file
        torch.save(content, file, **how)


def flat(sections, prefix=""):
    return {f"{prefix}{name}.{key}": value for name, state in sections.items() for key, value in state.items()}


# ---------------------------------------------------------------- by what is in it, not by its name


NAMES = ["vox.ckpt", "vox.pth.tar.1", "vox", "vox.bin", "vox.safetensors", "vox.PTH"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_checkpoint_does_not_count(place, host, sections, name, capsys):
    save(name, sections | {"epoch": 3}, _use_new_zipfile_serialization=name != "vox.bin")
    assert weights_format(name) == "torch"
    assert command(f"convert {name} --output made --size 32") == 0
    same(from_pretrained("made"), host)
    refused(f"evaluate {name}", f"first: memcomp convert {name} --output FOLDER", capsys)


@pytest.mark.parametrize("name", ["vox.pth.tar", "vox.safetensors", "weights"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_hold_a_checkpoint_flat(place, host, sections, name, prefix):
    save_file(flat(sections, prefix), name, {"format": "pt"})
    assert weights_format(name) == "safetensors"
    assert command(f"convert {name} --output made --size 32") == 0
    same(from_pretrained("made"), host)
    save("flat.bin", flat(sections, prefix))  # of torch.save(model.state_dict())
    assert read_checkpoint("flat.bin").sections.keys() == sections.keys()


@pytest.mark.parametrize("name", ["start.pth", "start.ckpt", "start.safetensors"])
def test_training_starts_from_a_file_of_any_name(place, host, sections, small_recipe, name):
    save(name, sections)
    made = build_host(with_overrides(small_recipe, [f"host.model={json.dumps(MODEL)}"], "test"))
    initialise(made, name)
    assert torch.equal(made.generator.final.weight, host.generator.final.weight)


def test_a_run_and_a_memory_of_ours_are_known_under_any_name(place, small_host, small_recipe, capsys):
    from memcomp.experiments.checkpoints.run_file import save_run
    from memcomp.experiments.checkpoints.trained import read_trained

    for name in ("ours.pth", "ours.tar", "ours"):
        save_run(name, small_recipe, small_host, 7)
        assert read_trained(name).step == 7
        assert command(f"convert {name} --output {name}_made") == 0
        same(from_pretrained(f"{name}_made"), small_host)
        memcomp.save(small_host.memory, name)
        assert from_file(name).config == small_host.memory.config
        assert command(f"inspect {name} --output seen_{name} --device cpu") == 0


def test_weights_of_a_network_are_read_under_any_name(place, sections):
    state = {f"module.{key}": value for key, value in sections["kp_detector"].items()}
    save("a.safetensors", state)
    save_file(state, "b.pth")
    save("c", {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=1)})
    for name in ("a.safetensors", "b.pth", "c"):
        assert read_weights(name).keys() == read_state(Path(name)).keys() == sections["kp_detector"].keys()


# ---------------------------------------------------------------- what else people save


class _Numpy:
    """A number as numpy pickles it, under the name of either version."""

    def __init__(self, core, value):
        self.core, self.value = core, value

    def __reduce__(self):
        function, arguments = self.value.__reduce__()[:2]
        module = types.ModuleType(f"numpy.{self.core}.multiarray")
        module.scalar = lambda *args: function(*args)
        module.scalar.__module__, module.scalar.__qualname__ = module.__name__, "scalar"
        sys.modules[module.__name__] = module
        return module.scalar, arguments


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("value", [np.int64(9), np.int32(9), np.uint8(9), np.array(9, ">i2")[()]])
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_are_numbers(place, monkeypatch, core, value, zipped):
    content = {"generator": {"a": torch.ones(1)}, "epoch": _Numpy(core, value), "best": _Numpy(core, np.float32(0.5))}
    monkeypatch.setitem(sys.modules, f"numpy.{core}.multiarray", None)  # as it was before, afterwards
    save("x", content, _use_new_zipfile_serialization=zipped)
    assert f"numpy.{core}.multiarray" in Path("x").read_bytes().decode("latin1").replace("\n", ".")
    found = read_checkpoint("x")
    assert found.epoch == 9 and found.dropped == {"epoch": "of training, 9", "best": "of type float"}
    assert read_file(Path("x"))["best"] == 0.5


SETTINGS = {
    "settings": {"lr": 2e-4, "betas": (0.5, 0.999), "name": "vox"},
    "lr_scheduler": {"step_size": 1, "gamma": 0.1, "last_epoch": np.int64(3), "_last_lr": [np.float64(1e-4)]},
    "args": argparse.Namespace(lr=1, path=Path("data"), kinds={1, 2}, kind=np.float32),
    "simple": types.SimpleNamespace(a=1),
    "log": collections.defaultdict(list, {"loss": [1.0]}),
    "last": collections.deque([1, 2], 3),
    "counts": collections.Counter("aab"),
    "ordered": collections.OrderedDict(a=1),
    "mean": np.zeros(3),
    "random": np.random.get_state(),
    "dtype": np.dtype("float64"),
    "kind": type(np.dtype("float64")),
    "version": torch.__version__,
    "step": torch.tensor(7),
    "rng_state": torch.get_rng_state(),
    "opt": {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 1}]},
    "optimizer": {},
    "none": None,
    "raw": b"bytes",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_no_section_is_listed_as_dropped(place, sections, name):
    if name == "kind" and "." not in SETTINGS[name].__module__:
        pytest.skip("numpy 1.24 has no such classes")
    before = list(torch.serialization.get_safe_globals())
    save("x.pth.tar", sections | {name: SETTINGS[name]})
    read = read_checkpoint("x.pth.tar")
    assert list(read.dropped) == [name] and read.sections.keys() == sections.keys()
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_what_was_dropped_is_told(place, host, sections, capsys):
    save("x.pth.tar", sections | SETTINGS)
    assert command("convert x.pth.tar --output made --size 32") == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^dropped +{name}: ", said, re.MULTILINE) for name in SETTINGS), said
    same(from_pretrained("made"), host)


def test_what_others_admit_to_safe_loading_stays_admitted(place):
    save("x", {"generator": {"a": torch.ones(1)}, "price": decimal.Decimal(3)})
    before = list(torch.serialization.get_safe_globals())
    try:
        torch.serialization.add_safe_globals([decimal.Decimal, np.dtype])
        admitted = set(torch.serialization.get_safe_globals())
        assert read_checkpoint("x").dropped == {"price": "of type Decimal"}
        assert set(torch.serialization.get_safe_globals()) == admitted
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "a part"]
)
def test_wrappers_are_stripped_from_each_section(place, host, sections, prefix):
    def wrapped(key):
        if prefix == "a part":  # torch.compile on a child of the module
            child, _, rest = key.partition(".")
            return f"module.{child}._orig_mod.{rest}"
        return prefix + key

    content = {name: {wrapped(key): value for key, value in state.items()} for name, state in sections.items()}
    save("x", content)
    assert command("convert x --output made --size 32") == 0
    same(from_pretrained("made"), host)
    other = create_host("fomm", MODEL)
    other.load_upstream(content)
    same(other, host)


def test_the_same_key_twice_is_refused(place):
    save("x", {"generator": {"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}})
    with pytest.raises(ValueError, match=r"generator has _orig_mod\.a and the same key with or without"):
        read_checkpoint("x")


# ---------------------------------------------------------------- what is no checkpoint is called what it is


def packed(name, write):
    file = io.BytesIO()
    write(file)
    Path(name).write_bytes(file.getvalue())


def tarred(names):
    def write(file):
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))

    return write


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("vox/00000189.txt", "hello")


def scripted(file):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)


WRONG = {
    "page": (HTML.encode(), "an HTML page.* download the file itself"),
    "page with a mark": (b"\xef\xbb\xbf\r\n" + HTML.lower().encode(), "an HTML page.* download the file itself"),
    "page without a type": (b"<html lang=en><body>Sign in", "an HTML page.* download the file itself"),
    "script": (b"\n\n<script>window.location='/login'</script>", "an HTML page.* download the file itself"),
    "lfs pointer": (LFS.encode(), "a pointer of Git LFS.* git lfs pull"),
    "lfs pointer of old": (LFS.replace("git-lfs.github", "hawser.github").encode(), "a pointer of Git LFS"),
    "lfs pointer with extension": (
        LFS.replace("oid", f"ext-0-foo sha256:{'2' * 64}\noid", 1).encode(),
        "a pointer of Git LFS.* git lfs pull",
    ),
    "lfs pointer of Windows": (LFS.replace("\n", "\r\n").encode(), "a pointer of Git LFS.* git lfs pull"),
    "empty": (b"", "an empty file.* download the file itself again"),
    "zeros": (bytes(4096), "zeros, as a download that broke off"),
    "json": (b'{"error": "quota exceeded"}', "a JSON file.*quota exceeded.* download the file itself"),
    "list": (b'[{"message": "Not Found"}]', "a JSON file.*Not Found"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML file.*AccessDen"),
    "text": (b"Entry not found", "a text file, .*'Entry not found'; download the file itself"),
    "other letters": ("Дата: нет доступа".encode() * 99, "a text file, .*'Дата"),
    "gzip": (gzip.compress(b"hello"), "a file packed by gzip; unpack it"),
    "xz": (b"\xfd7zXZ\0" + bytes(99), "a file packed by xz; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a file packed by 7-Zip; unpack it"),
    "pickle": (pickle.dumps({"generator": 1}, 2), "a pickle that torch.save did not write"),
    "newer pickle": (pickle.dumps({"generator": 1}, 4), "a pickle that torch.save did not write"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "a file of HDF5"),
    "numpy": (b"\x93NUMPY\x01\0" + bytes(99), "a file of NumPy"),
    "noise": (bytes(range(7, 256)), "bytes of no known kind"),
    "tar": (tarred(["vox/data.txt"]), "a tar archive; unpack it"),
    "zip": (zipped, r"a zip archive of vox/00000189\.txt; unpack it"),
    "program": (scripted, "a TorchScript program"),
}


@pytest.fixture
def wrong(request, place):
    content, message = WRONG[request.param]
    if callable(content):
        packed("x.pth.tar", content)
    else:
        Path("x.pth.tar").write_bytes(content)
    return rf"^memcomp: error: .*x\.pth\.tar: expected a checkpoint, found {message}"


def refused(words, message, capsys):
    before = sorted(Path().rglob("*"))
    assert command(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(message, lines[0]), lines
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("wrong", WRONG, indirect=True)
def test_what_is_no_checkpoint_is_called_what_it_is(place, wrong, capsys):
    refused("convert x.pth.tar --output out", wrong, capsys)


@pytest.mark.parametrize("wrong", ["page", "lfs pointer", "empty"], indirect=True)
@pytest.mark.parametrize(
    "words",
    [
        "evaluate x.pth.tar --pairs 2 --output out",
        "animate --checkpoint x.pth.tar --source face.png --driving face --output out.mp4 --device cpu",
        "inspect x.pth.tar --output out --device cpu",
        "convert x.pth.tar --host tpsm --output out",
        "convert x.pth.tar --to upstream --output out",
        "convert good.pth x.pth.tar --output out",
        "benchmark x.pth.tar --pairs 2 --output out",
    ],
)
def test_each_command_says_so(place, wrong, words, capsys):
    from PIL import Image

    Path("face").mkdir()
    for name in ("face.png", "face/1.png"):
        Image.new("RGB", (32, 32)).save(name)
    save("good.pth", {"generator": {"a": torch.ones(1)}})
    refused(words, wrong, capsys)


@pytest.mark.parametrize("wrong", ["page", "lfs pointer", "json"], indirect=True)
def test_files_that_a_recipe_names_are_told_too(place, wrong, small_recipe, capsys):
    with pytest.raises(UserError) as error:
        initialise(build_host(small_recipe), "x.pth.tar")
    assert re.search(wrong, f"memcomp: error: {error.value}")
    weights = "loss.perceptual.backbone=efficientnet_lite0 loss.perceptual.weights=x.pth.tar"
    small = "data.kind=heads data.identities=2 data.frames=3 data.workers=0 optim.steps=1 device=cpu"
    assert command(f"train demo/fomm --output out {weights} {small}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(wrong, lines[0])
    with pytest.raises(UserError, match="expected a checkpoint, found"):
        read_weights("x.pth.tar")
    shutil.copy("x.pth.tar", "depth")
    with pytest.raises(ValueError, match=r"model\.depth: .*expected a checkpoint, found"):
        create_host("dagan", MODEL | {"depth": "depth"})


@pytest.mark.parametrize("content", [HTML, LFS, '{"error": 404}'])
@pytest.mark.parametrize("config", [True, False])
def test_a_folder_cloned_without_its_weights(place, host, content, config, capsys):
    host.save_pretrained("mine", size=32)
    Path("mine/model.safetensors").write_text(content)
    if not config:
        Path("mine/config.json").unlink()
    refused("evaluate mine --pairs 2 --output out", r"mine/model\.safetensors: expected a checkpoint, found", capsys)
    with pytest.raises(ValueError, match="expected a checkpoint, found"):
        from_pretrained("mine")
    with pytest.raises(ValueError, match="expected a checkpoint, found"):
        from_file("mine/model.safetensors")


def test_a_file_that_breaks_off_is_damaged(place, host, sections, capsys):
    save("zip", sections)
    save("legacy", sections, _use_new_zipfile_serialization=False)
    save_file(flat(sections), "safe")
    for name in ("zip", "legacy", "safe"):
        whole = Path(name).read_bytes()
        for part in (0.3, 0.95):
            Path("x").write_bytes(whole[: int(part * len(whole))])
            refused("convert x --output out", "x: (damaged|expected a checkpoint of `memcomp train`)", capsys)


# ---------------------------------------------------------------- the way out


class Config:
    """Of somebody's own code."""


def odd(sections, kind):
    return {
        "a class": sections | {"config": Config()},
        "a decimal": sections | {"loss": decimal.Decimal(1), 3: "x"},
        "a module": {name: _Module(state) for name, state in sections.items()},
        "a pickle of another protocol": sections,
    }[kind]


class _Module(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def state_dict(self):
        return self.state


def old_tar(name, sections):
    """Write a file as torch did before 0.2."""
    tensors = [value.float() for state in sections.values() for value in state.values()]
    given = iter(range(len(tensors)))
    storages, views, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, 2)
    pickle.dump(len(tensors), views, 2)
    for i, tensor in enumerate(tensors):
        pickle.dump((i, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((i, i, torch.FloatTensor), views, 2)
        sizes = (*tensor.shape, *tensor.stride(), 0)
        views.write(struct.pack(f"<ii{len(sizes)}q", tensor.dim(), 0, *sizes))
    pickle.dump([], storages, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return next(given) if isinstance(value, torch.Tensor) else None

    Pickler(pickled, 2).dump(sections)
    system = io.BytesIO(pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2))
    with tarfile.open(name, "w:") as archive:
        for part, file in {"sys_info": system, "pickle": pickled, "tensors": views, "storages": storages}.items():
            about = tarfile.TarInfo(part)
            about.size = file.seek(0, os.SEEK_END)
            file.seek(0)
            archive.addfile(about, file)


@pytest.mark.parametrize("kind", ["a class", "a decimal", "a module", "a pickle of another protocol", "an old tar"])
def test_the_way_out_works(place, host, sections, kind, capsys, monkeypatch):
    for made in (Config, _Module):  # of a module that the other process can import, as in upstream's environment
        monkeypatch.setattr(made, "__module__", "theirs")
    theirs = types.ModuleType("theirs")
    theirs.Config, theirs._Module = Config, _Module
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    (place / "theirs.py").write_text(
        "import torch\nclass Config: pass\n"
        "class _Module(torch.nn.Module):\n    def state_dict(self): return self.state\n"
    )
    if kind == "an old tar":
        old_tar("x.pth.tar", sections)
    else:
        save("x.pth.tar", odd(sections, kind), pickle_protocol=4 if "protocol" in kind else 2)
    refused("convert x.pth.tar --output out", r"x\.pth\.tar: safe loading (refuses it|does not know)", capsys)
    with pytest.raises(ValueError, match="if you trust it") as error:
        read_checkpoint("x.pth.tar")
    code = str(error.value)[str(error.value).index('python -c "') :].replace("python", sys.executable, 1)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_FORCE")}
    subprocess.run(["bash", "-c", code], check=True, env=plain | {"PYTHONPATH": str(place)})
    capsys.readouterr()
    assert command("convert plain.pth.tar --output made --size 32") == 0
    same(from_pretrained("made"), host)


@pytest.mark.parametrize("name", ['a"b', "it's", "$HOME", "`ls`"])
def test_a_name_that_a_shell_would_change_is_left_out(place, name):
    save(name, {"generator": {"a": decimal.Decimal(1)}})
    with pytest.raises(ValueError, match=r"decimal\.Decimal; .*torch\.load\('FILE', 'cpu'\)"):
        read_checkpoint(name)


def test_a_file_of_ours_keeps_its_own_errors(place, host, capsys):
    host.save_pretrained("mine", size=32)
    shutil.copy("mine/model.safetensors", "mine/other.pth")
    refused("convert mine/other.pth --output out", "expected the name model.safetensors, under which", capsys)
    tensors = load_file("mine/model.safetensors")
    save_file(tensors, "bare.safetensors")
    refused("evaluate bare.safetensors --output out", "first: memcomp convert bare.safetensors", capsys)
    Path("mine/model.safetensors").unlink()  # tensors that were read from it look into it
    save("mine/model.safetensors", tensors)
    refused("evaluate mine --output out", r"expected a checkpoint of ours; first: memcomp convert|sha256", capsys)
