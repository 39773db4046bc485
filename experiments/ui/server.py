"""The server of the page: a folder of its own that goes with it, and nothing that leaves the machine."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import UserError
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.ui.limits import Limits
from memcomp.experiments.ui.models import read_models
from memcomp.experiments.ui.options import UiOptions
from memcomp.experiments.ui.page import CSS, build
from memcomp.experiments.ui.sessions import Sessions
from memcomp.experiments.ui.studio import Shown, Studio

AGE = 3600  # seconds after which an upload goes even if its page is open
HEARTBEAT = "5"  # seconds after which the server notices that a page is closed
# whatever a version of gradio may link to, browsers ask this server alone
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Served:
    """A page that is being served.

    Attributes:
        url: where.
        uploads: the folder of what browsers sent.
        results: the folder of what was made of it.
    """

    url: str
    uploads: Path
    results: Path


@contextmanager
def serving(options: UiOptions) -> Iterator[Served]:
    """Serve the page inside of the block; at its end all files of all sessions go.

    Raises:
        UserError: a host that cannot be read; an address or a port that cannot be had.
        ModuleNotFoundError: gradio is missing.
    """
    _check_free(options.address, options.port)
    with tempfile.TemporaryDirectory(prefix="memcomp-ui-") as name:
        root = Path(name).resolve()
        uploads, results = root / "uploads", root / "results"
        uploads.mkdir()
        results.mkdir()
        _settle_gradio(uploads)
        import gradio as gr
        from starlette.middleware import Middleware

        choices = read_models(options.checkpoints, resolve_device(options.device))
        studio = Studio(choices, Limits(options.seconds, options.megabytes), Sessions[Shown](results, uploads))
        gr.set_static_paths([results])  # served from where they are, not copied
        page = build(studio, options.jobs, age=AGE)
        system = ["system-ui", "sans-serif"]
        _, url, _ = page.launch(
            server_name=options.address,
            server_port=options.port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_file_size=options.megabytes * 1_000_000,
            app_kwargs={"middleware": [Middleware(OwnOnly)]},
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
        try:
            yield Served(url, uploads, results)
        finally:
            page.close(verbose=False)


class OwnOnly:
    """Tells browsers with every answer to ask nobody else (ASGI middleware)."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the policy to its answer's head."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_policy)


def _check_free(address: str, port: int | None) -> None:
    """Raise UserError unless a server can listen there; gradio would wait for ever."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address, port or 0))
    except (OSError, OverflowError) as error:
        where = address if port is None else f"{address}:{port}"
        why = error.strerror if isinstance(error, OSError) else "a port is at most 65535"
        raise UserError(f"{where}: expected an address and a port to listen at ({why})") from None


def _settle_gradio(uploads: Path) -> None:
    """Say by its environment what gradio reads there and nowhere else, some of it as it is imported."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", HEARTBEAT)
