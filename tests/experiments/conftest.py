"""Things that the experiments' tests share: an untrained host with a memory, clips of coloured squares, a browser."""

import importlib
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SMALL = [
    "device=cpu",
    "size=32",
    "host.model.common_params.num_kp=4",
    "host.model.kp_detector_params.block_expansion=4",
    "host.model.kp_detector_params.num_blocks=2",
    "host.model.generator_params.block_expansion=4",
    "host.model.generator_params.max_features=8",
    "host.model.generator_params.num_bottleneck_blocks=1",
    "host.model.generator_params.dense_motion_params.block_expansion=4",
    "host.model.generator_params.dense_motion_params.num_blocks=2",
    "data.frames=6",
    "data.rate=3",
    "memory.memory_channels=8",
    "memory.memory_size=[4, 4]",
]


@pytest.fixture(scope="session")
def head_cache(tmp_path_factory):
    """Rendered heads, kept for the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def narrow():
    """Overrides that make the host of a first-order recipe small."""
    return [override for override in SMALL if override.startswith("host.")]


@pytest.fixture(scope="session")
def small_recipe(head_cache):
    """The demo's recipe, narrow, at 32 px, with a small memory."""
    from memcomp.experiments.recipe.load import load_recipe

    return load_recipe("demo/fomm", [*SMALL, f"data.cache={head_cache}"])


@pytest.fixture(scope="session")
def small_run(small_recipe, tmp_path_factory):
    """Folder of a finished run: of an untrained host whose memory has left the identity start."""
    from memcomp.experiments.checkpoints.build import build_host
    from memcomp.experiments.checkpoints.trained import save_trained

    host = build_host(small_recipe)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        host.kp_detector.kp.weight *= 30  # pointed heatmaps: the keypoints move with the picture
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(small_recipe.to_yaml())
    save_trained(folder, host, small_recipe, 7, {"backbone": None})
    return folder


@pytest.fixture(scope="session")
def small_host(small_run):
    """Its host, in eval mode."""
    from memcomp.experiments.checkpoints.trained import load_host

    return load_host(small_run)[0]


def write_clip(path: Path, seed: int, frames: int = 9, size: int = 48) -> Path:
    """A clip in which a square of one colour moves over a background of another."""
    from memcomp.experiments.video import write_video

    generator = np.random.default_rng(seed)
    back, front = generator.integers(0, 255, (2, 3), dtype=np.uint8)
    with write_video(path, 10) as append:
        for t in range(frames):
            picture = np.full((size, size, 3), back, np.uint8)
            picture[12:30, 4 + 2 * t : 24 + 2 * t] = front
            append(picture)
    return path


@pytest.fixture(scope="session")
def clip_writer():
    """`write_clip(path, seed, frames, size)`."""
    return write_clip


def add_sound(path: Path, output: Path, seconds: float) -> Path:
    """Write the video `path` with a tone of `seconds`, H.264 and AAC in mp4."""
    import av

    with av.open(str(path)) as given, av.open(str(output), "w", format="mp4") as made:
        picture = given.streams.video[0]
        target, sound = made.add_stream_from_template(picture), made.add_stream("aac", rate=16_000)
        for packet in given.demux(picture):
            if packet.dts is not None:
                packet.stream = target
                made.mux(packet)
        for start in range(0, int(16_000 * seconds), 1024):
            wave = np.sin(np.arange(start, start + 1024) / 10).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
            made.mux(sound.encode(frame))
        made.mux(sound.encode(None))
    return output


@pytest.fixture(scope="session")
def sounding():
    """`sounding(path, output, seconds)`: a video with a tone."""
    return add_sound


@pytest.fixture(scope="session")
def clips_root(tmp_path_factory):
    """Folder with test/ clips of three people, the first of whom has two."""
    root = tmp_path_factory.mktemp("clips")
    (root / "test").mkdir()
    for number, name in enumerate(("a_1", "a_2", "b_1", "c_1")):
        write_clip(root / "test" / f"{name}.mp4", number)
    return root


def lack(reason: str) -> None:
    """Skip a test whose tools are missing; in CI, which installs them, it fails."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture(scope="session")
def needed():
    """`needed(module, extra)` imports what not everybody has installed."""

    def find(module: str, extra: str):
        try:
            return importlib.import_module(module)
        except ImportError:
            lack(f"{module} is missing: pip install 'memcomp[{extra}]'")

    return find


@pytest.fixture(scope="module")
def browser(needed):
    """A headless Chromium that plays videos."""
    with needed("playwright.sync_api", "dev").sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        usual = next(filter(None, map(shutil.which, BROWSERS)), None)
        found = os.environ.get("MEMCOMP_CHROMIUM") or (own if os.path.exists(own) else usual)
        if found is None:
            lack("no Chromium: `bash tests/chromium.sh` installs one, or MEMCOMP_CHROMIUM names one")
        browser = playwright.chromium.launch(
            executable_path=found,
            chromium_sandbox=False,  # it cannot be had by root in a container; the pages are ours
            args=["--disable-background-networking", "--disable-component-update", "--disable-sync"],
        )
        yield browser
        browser.close()


@pytest.fixture
def plays(browser):
    """`plays(page)`: go on only if this browser plays the videos that pages show."""

    def check(page) -> None:
        if not page.evaluate("document.createElement('video').canPlayType('video/webm; codecs=\"vp9\"')"):
            lack("this Chromium cannot play VP9")

    return check
