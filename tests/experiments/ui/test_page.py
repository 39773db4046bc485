"""`memcomp ui` in a real browser: upload, run, look; several people at once; nothing leaves, nothing stays."""

import os
import re
import socket
import sys
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import torch
from PIL import Image

from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.cli import main
from memcomp.experiments.video import Frames

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LONG = 60_000  # milliseconds; the machine may have much else to do


def test_the_command_names_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["ui"]) == 2
    assert "`memcomp ui` needs gradio: pip install 'memcomp[ui]'" in capsys.readouterr().err
    assert main(["ui", "--seconds", "0"]) == 2
    assert "--seconds: expected a number from 0.1 to 600" in capsys.readouterr().err


def test_where_nobody_can_listen(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["ui", "--port", str(taken.getsockname()[1])]) == 2
    assert main(["ui", "--address", "203.0.113.7"]) == 2  # an address for examples, nobody's
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 2 and all("expected an address and a port to listen at (" in line for line in lines)


@pytest.fixture(scope="module")
def connections():
    """Addresses that this process looked up or connected to, other than this machine."""
    found, on = [], [True]

    def note(event, arguments):
        if on[0] and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
            host = address[0] if isinstance(address, tuple) else address
            if isinstance(host, bytes):
                host = host.decode()
            if host not in LOOPBACK and not str(host).startswith(("/", "\0")) and host is not None:
                found.append((event, host))

    sys.addaudithook(note)
    yield found
    on[0] = False


@pytest.fixture(scope="module")
def pointed(small_run, tmp_path_factory):
    """The small run with a strong memory: places of an untrained one are read almost alike, which shows nothing."""
    host = read_trained(small_run).host()
    with torch.no_grad():
        host.memory.memory.value *= 10
    folder = tmp_path_factory.mktemp("pointed") / "pointed"
    host.save_pretrained(folder, size=32)
    return folder


@pytest.fixture(scope="module")
def served(pointed, connections, needed):
    """The page, of the demo's host and of a small one with a memory."""
    needed("gradio", "ui")
    from memcomp.experiments.ui.options import UiOptions
    from memcomp.experiments.ui.server import serving

    with pytest.MonkeyPatch.context() as environment:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
            environment.setenv(name, "")  # put back afterwards
        environment.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.5")
        with serving(UiOptions(("demo", str(pointed)), device="cpu", seconds=2)) as served:
            yield served
    assert not served.uploads.parent.exists()


@pytest.fixture
def opened(served, browser):
    """Open the page in a browser of its own; what it asks for, and complains of, is kept."""
    contexts = []

    def open_page(**window):
        context = browser.new_context(**window)
        contexts.append(context)
        page, requests, complaints = context.new_page(), [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
        page.set_default_timeout(LONG)
        page.goto(served.url)
        page.locator("#animate").wait_for()
        return SimpleNamespace(page=page, context=context, requests=requests, complaints=complaints)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def faces(clips_root, tmp_path_factory):
    """Pictures of two people: who is in a result is told by its colours."""
    folder = tmp_path_factory.mktemp("faces")
    for name in ("a_1", "b_1"):
        Image.fromarray(next(iter(Frames(clips_root / "test" / f"{name}.mp4")))).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def loud(clips_root, sounding, tmp_path_factory):
    """A driving clip with sound."""
    return sounding(clips_root / "test" / "c_1.mp4", tmp_path_factory.mktemp("loud") / "clip.mp4", seconds=0.9)


def bring(page, picture, clip):
    page.set_input_files("#source input[type=file]", picture)
    page.locator("#source img").wait_for()
    page.set_input_files("#driving input[type=file]", clip)
    page.locator("#driving video").wait_for()


def finished(page):
    page.locator("#status", has_text="synthetic").wait_for()
    page.wait_for_function("document.querySelector('#tile_second video')?.readyState > 1")


def file_of(served, page, tile):
    """The file on this machine that a tile of the page shows."""
    address = page.locator(tile).get_attribute("src")
    name = re.search(rf"({re.escape(str(served.results))}/.*)$", address).group(1)
    return os.path.join(served.results, name)


def emptied(folder, seconds=60):
    """Whether no file is left in a folder, now or soon."""
    end = time.monotonic() + seconds
    while (left := [path for path in folder.rglob("*") if path.is_file()]) and time.monotonic() < end:
        time.sleep(0.1)
    return not left


def test_two_people_at_once(opened, served, plays, faces, loud, connections):
    people = {name: opened(viewport={"width": 1280, "height": 900}) for name in ("a_1", "b_1")}
    for name, one in people.items():
        bring(one.page, faces / f"{name}.png", loud)
    for one in people.values():  # the second job begins while the first is at work, or waits
        one.page.locator("#animate").click()
    for one in people.values():
        finished(one.page)
    shown = {}
    for name, one in people.items():
        source = np.asarray(Image.open(file_of(served, one.page, "#tile_source img")).convert("RGB")).mean((0, 1))
        brought = np.asarray(Image.open(faces / f"{name}.png").convert("RGB")).mean((0, 1))
        assert np.abs(source - brought).max() < 3
        shown[name] = np.stack(list(Frames(file_of(served, one.page, "#tile_first video"))))
        assert len(shown[name]) == 9
    assert np.abs(shown["a_1"].astype(int) - shown["b_1"]).mean() > 5

    one = people["a_1"]
    plays(one.page)
    play_together(one.page)
    look_at_a_pixel(one.page)
    files = one.page.locator("#files a")
    names = ["demo.mp4", "pointed__with_memory.mp4", "side_by_side.mp4"]
    assert files.count() == len(names) and "9 frames in 0.90 s, with the clip's sound" in status_of(one.page)
    for number, name in enumerate(names):
        with one.page.expect_download() as download:
            files.nth(number).click()
        saved = download.value.path()
        assert download.value.suggested_filename == name and len(list(Frames(saved))) == 9
        assert sound_of(saved) == sound_of(loud)  # copied, packet by packet

    for one in people.values():
        assert not one.complaints
        hosts = {urlsplit(url).hostname for url in one.requests if not url.startswith(("data:", "blob:"))}
        assert hosts == {"127.0.0.1"}
        assert not emptied(served.uploads, seconds=0)
        one.context.close()
    assert emptied(served.uploads) and emptied(served.results)
    assert not connections


def status_of(page):
    return page.locator("#status").inner_text()


def sound_of(path):
    """The packets of a file's sound."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


def play_together(page):
    page.evaluate("for (const v of document.querySelectorAll('#tiles video')) v.pause()")
    page.locator("#play").click()
    page.wait_for_function(
        "[...document.querySelectorAll('#tiles video')].filter((v) => v.currentTime > 0.15 && !v.error).length === 3"
    )


def look_at_a_pixel(page):
    """Click on the background, then on the square, which read differently: the table and the picture change."""
    frame, table, before = page.locator("#frame img"), page.locator("#table"), [None, ""]
    for x, y in ((0.9, 0.9), (0.3, 0.45)):
        page.wait_for_function("document.querySelector('#frame img')?.naturalWidth > 0")
        box = frame.bounding_box()
        frame.click(position={"x": x * box["width"], "y": y * box["height"]})  # waits until it lies still
        page.wait_for_function(
            "(before) => { const image = document.querySelector('#memory img');"
            " return image && image.complete && image.naturalWidth > 0 && image.getAttribute('src') !== before[0]"
            " && document.querySelector('#table').innerText.trim() !== before[1].trim(); }",
            arg=before,
        )
        before = [page.locator("#memory img").get_attribute("src"), table.inner_text()]
        rows = table.locator("tbody tr").all_inner_texts()
        assert len(rows) == 2 and all("of 4×4" in row and "nats" in row for row in rows)


def test_what_cannot_be_used_is_said_in_one_line(opened, served, faces, clips_root, tmp_path):
    one = opened(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert one.page.evaluate("document.documentElement.scrollWidth") == 390
    one.page.locator("#animate").click()
    error = one.page.locator(".toast-body, [data-testid=toast-body]").last
    error.wait_for()
    assert "source picture: expected one, none is chosen" in error.inner_text()
    (tmp_path / "notes.mp4").write_bytes(b"no video at all")
    one.page.set_input_files("#source input[type=file]", faces / "a_1.png")
    one.page.locator("#source img").wait_for()
    one.page.set_input_files("#driving input[type=file]", tmp_path / "notes.mp4")
    one.page.locator("#driving video").wait_for()
    one.page.locator("#animate").click()
    error = one.page.get_by_text("notes.mp4: expected a video, it cannot be read as one")
    error.wait_for()
    assert str(served.uploads) not in one.page.locator("body").inner_text()
    one.context.close()
    assert emptied(served.uploads)
