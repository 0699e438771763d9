"""The pages of a scripted browser."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BLANK = "about:blank"
PAGE_PROXY_BYTES = 250_000
"""What a navigation of a session with proxies moves through them."""


@dataclass(eq=False, slots=True)
class Page:
    id: str
    url: str = BLANK
    loads: int = 0

    @property
    def title(self) -> str:
        return "" if self.url == BLANK else f"Simulated page at {self.url}"

    @property
    def frame(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "loaderId": f"{self.id}-{self.loads}",
            "url": self.url,
            "securityOrigin": self.url,
            "mimeType": "text/html",
        }

    def info(self, *, is_attached: bool) -> dict[str, Any]:
        """As the domain Target shows it."""
        return {
            "targetId": self.id,
            "type": "page",
            "title": self.title,
            "url": self.url,
            "attached": is_attached,
            "canAccessOpener": False,
            "browserContextId": "simulated-context",
        }


@dataclass(eq=False)
class Pages:
    """Those of one session's browser. `log` takes each command; `move` takes the bytes that a navigation moves."""

    id: str
    log: Callable[[dict[str, Any]], None]
    move: Callable[[int], None]
    open_pages: dict[str, Page] = field(default_factory=dict)
    opened_total: int = 0

    def __post_init__(self) -> None:
        self.open(BLANK)

    def open(self, url: str) -> Page:
        self.opened_total += 1
        page = Page(uuid.uuid5(uuid.UUID(self.id), str(self.opened_total)).hex.upper(), url)
        self.open_pages[page.id] = page
        return page

    def navigate(self, page: Page, url: str) -> None:
        page.url = url
        page.loads += 1
        self.move(PAGE_PROXY_BYTES)

    def pages(self) -> list[dict[str, str]]:
        return [{"id": page.id, "title": page.title, "url": page.url} for page in self.open_pages.values()]
