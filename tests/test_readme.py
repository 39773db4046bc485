"""Every code block of the README runs, and so does every one of an earlier README: what was typed keeps working."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EARLIER = (ROOT / "tests" / "data" / "round1" / "README.md").read_text()


def blocks(text: str, language: str = r"\w+") -> list[tuple[str, str]]:
    """(language, code) of each block."""
    return re.findall(rf"^```({language})\n(.*?)^```", text, re.M | re.S)


def python(text: str) -> list[str]:
    return [code for _, code in blocks(text, "python")]


def shell(text: str) -> list[str]:
    return [line for _, code in blocks(text, "bash") for line in code.splitlines()]


def commands(text: str) -> list[str]:
    return [line for line in shell(text) if line.startswith("memcomp ")]


# What makes a command of the README short enough for a test; the command itself stays as printed.
SHORTER = {
    "train": "optim.steps=2 data.identities=2 data.frames=3 log.held_out_pairs=2 optim.batch_size=2 threads=1",
    "evaluate": "--pairs 2",
    "inspect": "--identities 2 --device cpu",
    "speed": "--sizes 64 --repeats 1 --memory-channels 8 --no-peak",
}


def test_the_first_two_lines_are_the_demo_and_the_tests() -> None:
    assert shell(README)[:2] == ["bash setup.sh && .venv/bin/memcomp demo", "bash tests/run.sh"]
    assert (ROOT / "setup.sh").is_file() and (ROOT / "tests" / "run.sh").is_file()
    assert "bash tests/run.sh" in (ROOT / ".ci" / "run").read_text()  # so CI runs the second line, as printed
    assert {language for language, _ in blocks(README)} == {"bash", "python", "toml", "yaml", "bibtex"}
    assert shell(README)[2:] == commands(README)  # nothing in a shell block escapes the test below


CODE = dict.fromkeys(python(README) + python(EARLIER))


@pytest.mark.parametrize("code", [code for code in CODE if "first-order-model" not in code])
def test_python_block(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("code", [code for code in CODE if "first-order-model" in code])
def test_upstream_block(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an upstream checkout where one is given, else on a folder of the same layout that holds our own generator."""
    checkouts = os.environ.get("MEMCOMP_UPSTREAM")
    checkout = tmp_path / "first-order-model"
    if checkouts:
        checkout.symlink_to(Path(checkouts) / "first-order-model")
    else:
        (checkout / "modules").mkdir(parents=True)
        (checkout / "modules" / "generator.py").write_text(
            "from memcomp.adapters.fomm import generator\n"
            "def OcclusionAwareGenerator(estimate_jacobian, **params):\n"
            "    return generator.OcclusionAwareGenerator(**params)\n"
        )
        (checkout / "config").mkdir()
        (checkout / "config" / "vox-256.yaml").write_text(
            "model_params:\n"
            "  common_params: {num_kp: 10, num_channels: 3, estimate_jacobian: true}\n"
            "  generator_params: {block_expansion: 8, max_features: 32, num_down_blocks: 2, num_bottleneck_blocks: 1,\n"
            "    estimate_occlusion_map: true,\n"
            "    dense_motion_params: {block_expansion: 8, max_features: 16, num_blocks: 2}}\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    try:
        names: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), names)
        assert "memory_compensation.memory.value" in names["generator"].state_dict()  # type: ignore[attr-defined]
    finally:
        for module in set(sys.modules) - before:
            if module.split(".")[0] in ("modules", "sync_batchnorm"):
                del sys.modules[module]


@pytest.mark.parametrize("text", [README, EARLIER], ids=["today", "earlier"])
def test_a_host_of_ones_own(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host of the README as an installed package: known by its entry point, with a memory, trained, animated."""
    import torch

    from memcomp import CompensationConfig
    from memcomp.adapters import attach, create_host, from_pretrained, list_hosts, registry
    from memcomp.experiments import cli

    (code,) = [c for c in python(text) if "(Host)" in c]
    ((_, project),) = blocks(text, "toml")
    ((_, recipe),) = blocks(text, "yaml")
    assert len(code.splitlines()) < 40
    about = tomllib.loads(project)["project"]
    ((group, points),) = about["entry-points"].items()
    info = tmp_path / "my_hosts-1.0.dist-info"
    info.mkdir()
    (tmp_path / "my_hosts.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".format(**about))
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *(f"{k} = {v}" for k, v in points.items())]))
    monkeypatch.setattr(registry, "_HOSTS", dict(registry._HOSTS))
    assert "shift" not in list_hosts()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert "shift" in list_hosts()
        torch.manual_seed(0)
        host = create_host("shift", {"width": 8, "num_kp": 3})
        source, driving = torch.rand(2, 2, 3, 32, 32).unbind()
        plain = host(source, driving)
        assert plain.sparse_deformed.shape == (2, 4, 3, 8, 8)
        config = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity")
        handle = attach(host, config)
        assert torch.equal(host(source, driving).prediction, plain.prediction)
        with handle.compensation.recording() as record:
            output = host(source, driving)
        ((output.prediction - driving).abs().mean() + record.consistency_loss()).backward()
        assert all(parameter.grad is not None for parameter in host.parameters())
        host.save_pretrained(tmp_path / "shift")
        again = from_pretrained(tmp_path / "shift")
        assert torch.equal(again(source, driving).prediction, host.eval()(source, driving).prediction)
        monkeypatch.setenv("MEMCOMP_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        Path("shift.yaml").write_text(recipe)
        words = [*SHORTER["train"].split(), "size=32", "host.model.width=8", "host.model.num_kp=3", "device=cpu"]
        assert cli.main(["train", "shift.yaml", "--output", "runs/shift", *words]) == 0
        (more,) = re.findall(r"`('memory=.*?)` besides", text)
        words += [*shlex.split(more), "memory.memory_channels=8", "memory.memory_size=[4, 4]"]
        assert cli.main(["train", "shift.yaml", "--output", "runs/more", *words]) == 0
        assert cli.main(["evaluate", "runs/more", "--pairs", "2", "device=cpu"]) == 0
    finally:
        sys.modules.pop("my_hosts", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture and a video, in which the commands run one after the other."""
    import imageio.v3 as imageio
    import numpy as np

    place = tmp_path_factory.mktemp("readme")
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    imageio.imwrite(place / "face.png", frames[0])
    imageio.imwrite(place / "video.mp4", frames, plugin="pyav", codec="libx264", fps=25)
    return place


@pytest.mark.parametrize("line", dict.fromkeys(commands(README) + commands(EARLIER)))
def test_command(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memcomp.experiments import cli

    monkeypatch.chdir(folder)
    monkeypatch.setenv("MEMCOMP_CACHE", str(folder / "cache"))
    words = shlex.split(line)[1:]
    if words[0] == "train" and (run := folder / words[words.index("--output") + 1]).exists():
        shutil.rmtree(run)
    assert cli.main(words + shlex.split(SHORTER.get(words[0], ""))) in (0, None)
