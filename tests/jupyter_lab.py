"""JupyterLab with a headless Chromium in front of it, for the browser tests of notebooks.

The server listens on 127.0.0.1 with a token, asks nobody for news or versions, and runs notebooks
from a copy, so that the repository's stay without outputs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "browser-tests"
# What JupyterLab itself says on the console of a healthy page.
HARMLESS = ("WebGL", "Source map", "sourcemap", "ResizeObserver loop", "favicon")
RUN_ALL = """async (path) => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = await app.commands.execute("docmanager:open", {path, factory: "Notebook"});
  await panel.context.ready;
  await panel.sessionContext.ready;
  window.panel = panel;
  await app.commands.execute("notebook:run-all-cells");
}"""
ERRORS = """() => window.panel.content.widgets.flatMap(cell =>
  (cell.model.toJSON().outputs || []).filter(o => o.output_type === "error")
    .map(o => o.ename + ": " + o.evalue))"""
IS_DONE = """() => window.panel.content.widgets.every(cell =>
  cell.model.type !== "code" || !cell.model.sharedModel.getSource().trim()
    || cell.model.executionCount)"""


@contextmanager
def lab_server(folder: Path, settings: Path) -> Iterator[str]:
    """Run JupyterLab over a folder of notebooks and yield its address."""
    quiet = settings / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True, exist_ok=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(news))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--allow-root", f"--IdentityProvider.token={TOKEN}"]
    command += ["--expose-app-in-browser", "--LabApp.extension_manager=readonly"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(settings)}
    with (settings / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, server)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "JupyterLab ended at once"
            time.sleep(0.1)
    raise AssertionError("JupyterLab did not answer within a minute")


class LabPage:
    """One notebook, opened and run; `problems` collects what the page complained about."""

    def __init__(self, browser: Any, address: str, path: str, *, dark: bool = False) -> None:
        self.context = browser.new_context(viewport={"width": 1500, "height": 1400})
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.outside: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda r: self._request(r.url, address))
        self.page.goto(f"{address}/lab?token={TOKEN}&reset")
        self.page.wait_for_function("window.jupyterapp && window.jupyterapp.restored")
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        self.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
        )
        self.page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        self.page.evaluate(RUN_ALL, path)

    def _console(self, message: Any) -> None:
        if message.type == "error" and not any(word in message.text for word in HARMLESS):
            self.problems.append(f"{message.text} {message.location.get('url', '')}")

    def _request(self, url: str, address: str) -> None:
        own = (address, address.replace("http", "ws", 1), "data:", "blob:")
        if not url.startswith(own):
            self.outside.append(url)

    def wait_until_done(self, seconds: float = 180) -> list[str]:
        """Wait until every cell ran, and return the errors that cells ended with."""
        self.page.wait_for_function(
            f"() => ({IS_DONE})() || ({ERRORS})().length", timeout=1000 * seconds
        )
        return self.page.evaluate(ERRORS)

    def picture(self, name: str) -> None:
        """Keep a picture where NANOCHAT_SCREENSHOTS says, to look at."""
        if folder := os.environ.get("NANOCHAT_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))

    def close(self) -> None:
        """Shut the notebook's kernel down and close the page."""
        self.page.evaluate("window.panel && window.panel.sessionContext.shutdown()")
        self.context.close()


def copy_notebooks(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Copy notebooks with other parameters, as papermill would write them."""
    import papermill

    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.ipynb")):
        papermill.execute_notebook(
            path, target / path.name, parameters, prepare_only=True, progress_bar=False
        )
    for path in source.glob("*.rs"):
        shutil.copy(path, target)
