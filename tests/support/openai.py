"""The OpenAI surface before its simulator, and a plain client of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from simulators.openai import VENDOR_KEY, OpenAISimulator
from tests.support.gateway import Gateway, running_gateway


@asynccontextmanager
async def serving_openai(
    folder: Path, vendor: OpenAISimulator, *, env: dict[str, str | None] | None = None, **more: Any
) -> AsyncIterator[Gateway]:
    """A gateway whose OpenAI is `vendor`; `more` as `running_gateway` has it."""
    variables = {"OPENAI_API_KEY": VENDOR_KEY, "OPENAI_UPSTREAM_URL": vendor.url, **(env or {})}
    async with running_gateway(folder, env=variables, **more) as gateway:
        yield gateway


def openai_client_of(gateway: Gateway, token: str) -> httpx.AsyncClient:
    """A plain HTTP client of the OpenAI surface."""
    return httpx.AsyncClient(
        base_url=f"{gateway.url}/api/openai/v1",
        headers={"authorization": f"Bearer {token}"},
        timeout=30,
        trust_env=False,
    )


def chat_body(*, model: str = "gpt-5.6-sol", **more: Any) -> dict[str, Any]:
    """A small chat request."""
    messages = [{"role": "user", "content": "Two colours, please."}]
    return {"model": model, "max_completion_tokens": 100, "messages": messages, **more}


def response_body(*, model: str = "gpt-5.6-sol", **more: Any) -> dict[str, Any]:
    """A small request for a response."""
    return {"model": model, "max_output_tokens": 100, "input": "Two colours, please.", **more}
