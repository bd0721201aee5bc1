"""A page opened offline in a headless Chromium, with what it asked for and what went wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

DRAWN = "html[data-drawn={}]"


class Visit:
    """A page opened offline, with everything it tried to load and every error it raised."""

    def __init__(
        self, browser: object, path: Path, scheme: str, width: int = 1300, **options: Any
    ) -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(
            offline=True, color_scheme=scheme, viewport=size, **options
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.errors.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(path.as_uri())
        if self.page.locator(".plot").count():
            self.page.wait_for_selector(DRAWN.format(scheme), state="attached")
        if folder := os.environ.get("NANOCHAT_SCREENSHOTS"):
            name = f"{path.parent.name}-{path.stem}-{scheme}-{width}.png"
            self.page.screenshot(path=str(Path(folder) / name), full_page=True)

    def _console(self, message: object) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    @property
    def outside(self) -> list[str]:
        """Return the requests that were for anything but a file or inline data."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
