"""The application: one address per page, bound to this machine unless a user and a password are set."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402

from studio.errors import ConfigError  # noqa: E402
from ui.guard import LOCAL, Guard  # noqa: E402
from ui.shell import PAGES  # noqa: E402
from ui.site import Site  # noqa: E402

UPLOAD = "20mb"  # largest file a browser may send


def build(root: Path) -> gr.Blocks:
    """All pages over the runs in `root`."""
    site = Site(root)
    with gr.Blocks(title="Alignment Studio", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as app:
        gr.Navbar(visible=False)  # the header of a page keeps the run on the way to others
        _page("runs").build(site)
    for title, address in PAGES[1:]:
        with app.route(title, f"/{address}", show_in_navbar=False):
            _page(address).build(site)
    app.queue(default_concurrency_limit=4, max_size=64)
    app.runs = site.root
    return app


def _page(name: str) -> Any:
    return import_module(f"ui.pages.{name}")


def launch(app: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None, auth: str | None = None) -> Any:
    """Serve from threads of this process -> the address."""
    user = login(host, auth)
    style = {name: (files("ui") / "assets" / f"studio.{name}").read_text("utf-8") for name in ("css", "js")}
    _, address, _ = app.launch(
        server_name=host,
        server_port=port,
        auth=user,
        share=False,
        ssr_mode=False,  # no second server process
        run_history=False,
        footer_links=["settings"],
        max_file_size=UPLOAD,
        allowed_paths=[],
        show_error=False,  # browsers read messages as HTML: gr.Error is told anyway, other errors may quote a run
        quiet=True,
        prevent_thread_lock=True,
        theme=theme(),
        css=style["css"],
        head=f"<script>{style['js']}</script>",
        favicon_path=None,
        app_kwargs={"middleware": [(Guard, (), {"root": app.runs, "alone": user is None})]},
    )
    return address


def login(host: str, auth: str | None) -> tuple[str, str] | None:
    """User and password of `user:password`; a public address without them is refused."""
    user, colon, password = (auth or "").partition(":")
    if auth and not (user and colon and password):
        raise ConfigError("--auth: expected USER:PASSWORD, got something else. Give both, or set STUDIO_UI_AUTH.")
    if host not in LOCAL and not auth:
        raise ConfigError(
            f"studio ui: expected --auth USER:PASSWORD with the public address {host!r}, got none. Add it, set STUDIO_UI_AUTH, or "
            "use 127.0.0.1 and a tunnel."
        )
    return (user, password) if auth else None


def theme() -> gr.themes.Base:
    """Neutral colors and the fonts of the system, so that nothing is fetched."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
