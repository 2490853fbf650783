"""A real JupyterLab and a headless Chromium that looks at it, for tests and for the pictures of the docs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
SETTINGS = {
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "docmanager-extension/plugin": {"autosave": False},
}
PYTHON = os.environ.get("TAGENT_LAB_PYTHON") or sys.executable
"""The Python whose JupyterLab and kernel are looked at; of `make version-browser`, one with JupyterLab 3."""
STARTS = 60_000
"""Milliseconds that the first page may take; the machine may be busy."""


class Lab:
    """The running server."""

    def __init__(self, url: str, root: Path) -> None:
        self.url = url
        self.root = root

    def write(self, name: str, cells: list[str]) -> str:
        """Write a notebook of code cells in a folder of its own; returns its path."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        (self.root / name).mkdir()
        nbformat.write(notebook, self.root / name / "notebook.ipynb")
        return f"{name}/notebook.ipynb"


class LabPage:
    """A page with a notebook open. Commands of JupyterLab instead of keys: keys get lost."""

    def __init__(self, lab: Lab, page: Page) -> None:
        self.lab = lab
        self.page = page
        self.requests: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: str, *, theme: str = "JupyterLab Light") -> LabPage:
        """Open a notebook and wait for its kernel."""
        self.page.goto(f"{self.lab.url}/lab/tree/{path}?reset", timeout=STARTS)
        self.page.wait_for_function("window.jupyterapp !== undefined", timeout=STARTS)
        self.page.evaluate(
            """async (theme) => {
                const app = window.jupyterapp;
                await app.restored;
                while (!app.shell.currentWidget?.context) await new Promise(done => setTimeout(done, 50));
                const panel = app.shell.currentWidget;
                await panel.context.ready;
                await panel.sessionContext.ready;
                if (panel.sessionContext.session) await panel.sessionContext.session.kernel.info;
                await app.commands.execute('apputils:change-theme', {theme});
                app.shell.collapseLeft();
                app.shell.collapseRight();
            }""",
            theme,
        )
        return self

    def command(self, name: str, *, wait: bool = True) -> None:
        """Execute a command of JupyterLab; with ``wait`` until it is done."""
        self.page.evaluate(
            """([name, wait]) => {
                const done = window.jupyterapp.commands.execute(name);
                return wait ? done.then(() => null) : null;
            }""",
            [name, wait],
        )

    def run_all(self, *, wait: bool = True) -> None:
        """Run all cells."""
        self.command("notebook:run-all-cells", wait=wait)

    def run_cell(self, index: int, *, wait: bool = True) -> None:
        """Run one cell."""
        self._select(index)
        self.command("notebook:run-cell", wait=wait)

    def edit(self, index: int, text: str) -> None:
        """Write other text into a cell."""
        self.page.evaluate(
            """([index, text]) => {
                window.jupyterapp.shell.currentWidget.content.widgets[index].model.sharedModel.setSource(text);
            }""",
            [index, text],
        )

    def delete(self, index: int) -> None:
        """Delete a cell, as a user does."""
        self._select(index)
        self.command("notebook:delete-cell")

    def _select(self, index: int) -> None:
        self.page.evaluate(
            """(index) => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.deselectAll();
                notebook.activeCellIndex = index;
            }""",
            index,
        )

    def cell(self, index: int) -> Locator:
        """A cell by its place."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(index)

    def output(self, index: int) -> Locator:
        """The output area of a cell."""
        return self.cell(index).locator(".jp-Cell-outputWrapper")

    def shut_down(self) -> None:
        """Shut the notebook's kernel down."""
        self.page.evaluate(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown().then(() => null)"
        )

    def picture(self, name: str, target: Locator | None = None) -> Path:
        """Store a screenshot for people in test-artifacts/."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        (self.page if target is None else target).screenshot(path=path)
        return path


def as_html(notebook: Path) -> Path:
    """The notebook as HTML, as nbconvert writes it."""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(notebook), "--log-level", "ERROR"]
    subprocess.run(command, check=True, timeout=120)
    return notebook.with_suffix(".html")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_settings(folder: Path) -> None:
    for name, values in SETTINGS.items():
        path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


def _await_server(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + STARTS / 1000
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/api/status", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@contextmanager
def serve(home: Path) -> Iterator[Lab]:
    """A JupyterLab with private folders below ``home``; stopped at the end."""
    root = home / "notebooks"
    root.mkdir()
    _write_settings(home / "settings")
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    port = _free_port()
    flags = [
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--allow-root",
        f"--ServerApp.root_dir={root}",
    ]
    flags += ["--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.expose_app_in_browser=True"]
    log = home / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [PYTHON, "-m", "jupyterlab", *flags],
            env=environment,
            stdout=stream,
            stderr=stream,
            cwd=root,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_server(url, server, log)
        yield Lab(url, root)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium of the system."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield running
        running.close()
