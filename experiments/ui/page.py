"""The page itself: what is where, and which call each click makes.

No `from __future__ import annotations` here: gradio reads the annotations of the functions that it calls.
"""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from memcomp.experiments.errors import UserError
from memcomp.experiments.ui.jobs import Result, Stopped
from memcomp.experiments.ui.models import usual
from memcomp.experiments.ui.studio import NONE, SMOOTHEST, Asked, Studio

TITLE = """# memcomp
Move the face of a picture as a clip moves. Use your own face, people who agreed, or heads that nobody has; label what
you publish as synthetic. What you bring stays on the machine that runs this page, and is deleted when you close it."""
LIMITS = "Clips of up to {seconds:g} s, files of up to {megabytes} MB."
LOOK = """### What does a pixel read?
Click on a pixel of the frame. Above, the memory is bright where that pixel reads it; below, the frame is bright where
the place that it reads most is read."""
# all at once, from the first frame on
PLAY = """() => {
  for (const video of document.querySelectorAll("#tiles video")) { video.currentTime = 0; video.play(); }
}"""
CSS = """
.gradio-container { max-width: 1180px !important; margin: auto; }
#tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
#tiles > * { min-width: 0 !important; }
#tiles video, #tiles img { width: 100%; aspect-ratio: 1; object-fit: contain; }
#driving video { max-height: 215px; }
#status { min-height: 3.2em; }
#frame img { cursor: crosshair; }
"""
PENDING = 16  # jobs that wait at most
LOOKS = 4  # clicks on pixels that are answered at a time


@dataclass
class Parts:
    """The components that events read and change."""

    source: Any
    driving: Any
    heads: Any
    animate: Any
    options: list[Any]
    """In the order of `Asked`, from `first` on."""
    status: Any
    tiles: list[Any]
    """Source, driving, first, second."""
    play: Any
    files: Any
    look: Any
    """What is shown only where a memory acted."""
    number: Any
    frame: Any
    maps: list[Any]
    """Memory, readers, table."""


def build(studio: Studio, jobs: int, *, age: int) -> Any:
    """Make the page, a `gradio.Blocks`.

    Args:
        studio: does what it asks for.
        jobs: how many run at a time.
        age: seconds after which uploads go even if their page is open.
    """
    import gradio as gr

    with gr.Blocks(title="memcomp", analytics_enabled=False, delete_cache=(60, age)) as page:
        gr.Markdown(TITLE + " " + LIMITS.format(seconds=studio.limits.seconds, megabytes=studio.limits.megabytes))
        parts = _parts(studio)
        _animating(studio, parts, jobs)
        _looking(studio, parts)

        def close(request: gr.Request) -> None:
            studio.sessions.end(str(request.session_hash))

        page.unload(close)
    page.queue(max_size=PENDING)
    return page


def _parts(studio: Studio) -> Parts:
    import gradio as gr

    first, second = usual(list(studio.choices.values()))
    names = list(studio.choices)
    with gr.Row():
        source = gr.Image(label="source picture", type="filepath", image_mode=None, height=280, elem_id="source")
        driving = gr.Video(label="driving clip", height=280, elem_id="driving")
    with gr.Accordion("hosts and motion", open=len(names) > 2, elem_id="options"):
        with gr.Row():
            hosts = [
                gr.Dropdown(names, value=first.name, label="host", elem_id="first"),
                gr.Dropdown([*names, NONE], value=second.name if second else NONE, label="beside it", elem_id="second"),
            ]
        with gr.Row():
            mode = gr.Radio(
                ["relative", "absolute"],
                value="relative",
                label="motion",
                info="relative: how the driving face moves; absolute: where it is too",
            )
            best = gr.Checkbox(True, label="count from the driving frame most like the source")
            smooth = gr.Slider(0, SMOOTHEST, 0, step=0.05, label="smooth over seconds")
            crop = gr.Checkbox(False, label="find the face in both")
    with gr.Row():
        heads = gr.Button("Take rendered heads", elem_id="heads")
        animate = gr.Button("Animate", variant="primary", elem_id="animate")
    status = gr.Markdown(elem_id="status")
    with gr.Row(elem_id="tiles"):
        tiles = [gr.Image(label="source", interactive=False, buttons=[], elem_id="tile_source")]
        tiles += [
            gr.Video(label=label, interactive=False, buttons=[], loop=True, visible=label != "beside", elem_id=name)
            for label, name in (("driving", "tile_driving"), ("host", "tile_first"), ("beside", "tile_second"))
        ]
    with gr.Row():
        play = gr.Button("Play together", elem_id="play", visible=False)
        files = gr.File(label="download", file_count="multiple", interactive=False, visible=False, elem_id="files")
    with gr.Column(visible=False, elem_id="look") as look:
        gr.Markdown(LOOK)
        with gr.Row():
            with gr.Column(scale=2):
                frame = gr.Image(label="frame", interactive=False, buttons=[], elem_id="frame")
                number = gr.Slider(0, 1, 0, step=1, label="frame", elem_id="number")
            with gr.Column(scale=3):
                maps = [
                    gr.Image(show_label=False, interactive=False, buttons=[], elem_id="memory"),
                    gr.Image(show_label=False, interactive=False, buttons=[], elem_id="readers"),
                    gr.Markdown(elem_id="table"),
                ]
    options = [*hosts, mode, best, smooth, crop]
    return Parts(source, driving, heads, animate, options, status, tiles, play, files, look, number, frame, maps)


def _animating(studio: Studio, parts: Parts, jobs: int) -> None:
    """Uploads, and the job of a click on Animate."""
    import gradio as gr

    def bring(value: Any, request: gr.Request) -> None:
        if path := _path(value):
            with _told():
                studio.sessions.file(str(request.session_hash), path, "file")

    def heads(request: gr.Request) -> tuple[str, str]:
        with _told():
            picture, clip = studio.heads(str(request.session_hash))
        return str(picture), str(clip)

    def animate(
        source: Any,
        driving: Any,
        first: str,
        second: str,
        motion: str,
        best: bool,
        smooth: float,
        crop: bool,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio finds it there)
    ) -> list[Any]:
        def report(done: int, total: int, what: str) -> None:
            progress((done, total), desc=what, unit="frames")

        asked = Asked(_path(source), _path(driving), first, second, motion, best, smooth, crop)
        key = str(request.session_hash)
        with _told():
            result = studio.animate(key, asked, report)
            return _result(studio, key, result)

    quiet: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
    parts.source.change(bring, [parts.source], None, **quiet)
    parts.driving.change(bring, [parts.driving], None, **quiet)
    parts.heads.click(heads, None, [parts.source, parts.driving], api_visibility="private", concurrency_limit=jobs)
    parts.animate.click(
        animate,
        [parts.source, parts.driving, *parts.options],
        [parts.status, *parts.tiles, parts.play, parts.files, parts.look, parts.number, parts.frame, *parts.maps],
        preprocess=False,
        show_progress_on=[parts.status],
        api_visibility="private",
        concurrency_limit=jobs,
    )
    parts.play.click(None, None, None, js=PLAY)


def _result(studio: Studio, key: str, result: Result) -> list[Any]:
    """What a finished job changes, in the order of the outputs."""
    import gradio as gr

    tiles: list[Any] = [str(result.source), str(result.driving)]
    tiles += [gr.Video(value=str(moved.video), label=moved.choice.name, visible=True) for moved in result.moved]
    tiles += [gr.Video(value=None, visible=False)] * (4 - len(tiles))
    files = [*(str(moved.download) for moved in result.moved), str(result.together)]
    number, frame = studio.usual_frame(key), None
    if (moved := result.remembering()) is not None:
        frame = str(studio.frame(key, number))
    return [
        html.escape(result.words),
        *tiles,
        gr.Button(visible=True),
        gr.File(value=files, interactive=False, visible=True),
        gr.Column(visible=moved is not None),
        gr.Slider(maximum=max(1, len(moved.track) - 1), value=number) if moved else gr.Slider(),
        gr.Image(value=frame, label=f"frame {number} of {moved.choice.name}" if moved else "frame"),
        None,
        None,
        "",
    ]


def _looking(studio: Studio, parts: Parts) -> None:
    """Another frame to look at, and clicks on its pixels."""
    import gradio as gr

    def show(number: float, request: gr.Request) -> list[Any]:
        with _told():
            path = studio.frame(str(request.session_hash), int(number))
        return [gr.Image(value=str(path), label=f"frame {int(number)}"), None, None, ""]

    def pick(event: gr.SelectData, request: gr.Request) -> list[Any]:
        from memcomp.experiments.ui.attention import STILL

        x, y = event.index
        with _told():
            picked = studio.pick(str(request.session_hash), (x + 0.5) / STILL, (y + 0.5) / STILL)
        return [str(picked.still), str(picked.memory), str(picked.readers), picked.words]

    shown = [parts.frame, *parts.maps]
    common: dict[str, Any] = {
        "preprocess": False,
        "api_visibility": "private",
        "concurrency_limit": LOOKS,
        "concurrency_id": "looks",
        "show_progress_on": [parts.frame],
    }
    parts.number.release(show, [parts.number], shown, **common)
    parts.frame.select(pick, None, shown, **common)


@contextmanager
def _told() -> Iterator[None]:
    """Show the project's errors on the page, in their one line."""
    import gradio as gr

    try:
        yield
    except UserError as error:
        line = html.escape(" ".join(str(error).split()))
        raise gr.Error(line, duration=None, print_exception=False) from None
    except Stopped:
        raise gr.Error("closed", print_exception=False) from None


def _path(value: Any) -> str | None:
    """The path of an uploaded file, out of what a browser says of it."""
    path = value.get("path") if isinstance(value, dict) else getattr(value, "path", value)
    return path if isinstance(path, str) else None
