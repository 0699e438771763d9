"""Valid requests with their bytes mutated, sent to a gateway, judged by the reference parser.

    python -m tests.hostile.fuzz --seconds 600 --seed 1
    python -m tests.hostile.fuzz --seed 1 --only 4711      one case again

Every case has a number; seed and number make its bytes. Nothing of a case is left to chance but the time that
the network takes.
"""

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import uvloop

from tests.hostile.stage import (
    ANSWERS,
    CALLS,
    CHAT,
    EXTENSIONS,
    GENERATE,
    MESSAGES,
    OWN,
    RESPONSES,
    SEARCH,
    SESSIONS,
    STREAM,
    Stage,
    answers,
    call,
    chat,
    content,
    response,
    session,
    small_body,
    staged,
)

MUTATIONS_MAX = 4
SPLITS_MAX = 6
PROGRESS_EVERY_S = 30.0
TOKENS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b"0\r\n\r\n", b"5\r\nabcde\r\n", b"0x5", b"+5", b"-1",
    b"content-length: 5\r\n", b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n",
    b"transfer-encoding: identity\r\n", b"connection: close\r\n", b"connection: keep-alive\r\n", b"expect: 100-continue\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n", b"upgrade: websocket\r\n", b"host: other\r\n", b" HTTP/1.0", b"HTTP/2.0", b"#", b"%2f",
    b"?key=a", b"&fields=a", b"%6bey=", b":countTokens", b"%3a", b'"stream_options":{},', b'"include_usage":0', b'"id":"x",', b"\\u0073",
    b"content-type: application/x-www-form-urlencoded\r\n", b"idempotency-key: a\r\n",
    b'"enable_research":true,', b'"stream":false,', b"x-subscription-token: a\r\n", b"&q=a", b"/res/v1/",
    b'"metadata":{},', b'"max_duration":9,', b'"timeout":60,', b"/stop", b"/v1/calls/active", b"?to_number=%2B1",
    b"\xff", b"\x7f", b";", b",", b"GET /api/llm/v1/models HTTP/1.1\r\nhost: a\r\n\r\n", b"ffffffffffffffff", b"\\", b'"', b"{", b"]",
)  # fmt: skip


def seeds(stage: Stage) -> list[bytes]:
    """The valid requests that are mutated."""
    body, stream = small_body(), small_body(stream=True)
    upgrade = (
        b"connection: Upgrade, HTTP2-Settings",
        b"upgrade: h2c",
        b"http2-settings: AAMAAABkAAQCAAAAAAIAAAAA",
    )
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:20], body[20:21], body[21:]))
    chunked = stage.head(b"transfer-encoding: chunked") + chunks + b"0\r\n\r\n"
    extended = chunked.replace(b"14\r\n", b'14;a;b=c;d="e"\r\n').replace(
        b"0\r\n\r\n", b"0\r\nx-end: 1\r\n\r\n"
    )
    models = stage.head(method=b"GET", target=b"/api/llm/v1/models?limit=5")
    count = stage.post(target=MESSAGES + b"/count_tokens")
    asked = stage.post(b"content-type: application/json", body=chat(stream=True), target=CHAT)
    spliced = chat(stream=True, stream_options={"include_obfuscation": False})
    created = stage.post(
        body=response(store=False, input=[{"role": "user", "id": "msg_1", "content": "Hi"}]), target=RESPONSES
    )
    by_header = stage.post(body=content(), target=STREAM + b"?alt=sse")
    by_query = by_header.replace(b"x-goog-api-key: " + stage.token.encode() + b"\r\n", b"").replace(
        b"?alt=sse", b"?key=" + stage.token.encode() + b"&alt=sse"
    )
    shown = stage.head(method=b"GET", target=b"/api/gemini/v1beta/models/gemini-2.5-flash")
    searched = stage.head(method=b"GET", target=SEARCH + b"?q=teal&count=1")
    posted = stage.post(body=b'{"q":"teal"}', target=SEARCH.replace(b"/api/brave", b"/api/search"))
    answered = stage.post(body=answers(), target=ANSWERS)
    whole = stage.post(body=answers(stream=False), target=ANSWERS)
    one_call, one_session = CALLS + b"/" + OWN, SESSIONS + b"/" + OWN
    dialled = stage.post(body=call(metadata={"a": 1}), target=CALLS)
    calls = stage.head(method=b"GET", target=CALLS + b"?ascending=true&answered_by=human")
    shown_call = stage.head(method=b"GET", target=one_call)
    stopped = stage.post(body=b"", target=one_call + b"/stop")
    heard = stage.head(method=b"GET", target=b"/api/bland/v1/recordings/" + OWN)
    opened = stage.post(body=session(userMetadata={"a": "b"}), target=SESSIONS)
    sessions = stage.head(method=b"GET", target=SESSIONS + b"?status=RUNNING")
    ended = stage.post(
        b"content-type: application/json", body=b'{"status":"REQUEST_RELEASE"}', target=one_session
    )
    uploaded = stage.post(
        b"content-type: multipart/form-data; boundary=x", body=bytes(range(256)), target=EXTENSIONS
    )
    file = stage.head(b"transfer-encoding: chunked", target=one_session + b"/uploads") + chunks + b"0\r\n\r\n"
    return [
        stage.post(),
        stage.post(body=stream),
        stage.post(b"connection: close"),
        chunked,
        extended,
        models + stage.post() + count,
        chunked + models + stage.post(body=stream),
        stage.post(b"expect: 100-continue"),
        stage.post(*upgrade),
        stage.head(b"transfer-encoding: chunked", *upgrade) + chunks + b"0\r\n\r\n" + models,
        stage.post(target=b"http://proxy" + MESSAGES) + models,
        stage.post(version=b"HTTP/1.0"),
        asked,
        stage.post(body=spliced, target=CHAT) + created + shown,
        by_header + asked,
        by_query,
        stage.post(body=content(), target=GENERATE) + stage.post(),
        searched,
        posted + answered,
        whole + searched,
        dialled + shown_call,
        calls + stopped + heard,
        opened + sessions,
        ended + stage.head(method=b"GET", target=one_session + b"/logs") + uploaded,
        file + opened,
    ]


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes, and the offsets at which they are sent in pieces."""

    data: bytes
    cuts: tuple[int, ...]

    @property
    def pieces(self) -> list[bytes]:
        edges = [0, *self.cuts, len(self.data)]
        return [self.data[a:b] for a, b in pairwise(edges)]


def case_of(originals: list[bytes], seed: int, number: int) -> Case:
    """The case of that number; 0 and on, unmutated first."""
    if number < len(originals):
        return Case(originals[number], ())
    rng = random.Random(f"{seed}/{number}")
    data = rng.choice(originals)
    for _ in range(rng.randint(1, MUTATIONS_MAX)):
        data = _mutated(rng, data, originals)
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 2, SPLITS_MAX))))
    return Case(data, tuple(cuts))


def _mutated(rng: random.Random, data: bytes, originals: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 64)))
    match rng.randrange(9):
        case 0:  # flip
            return (
                data[:at]
                + bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at : at + 1])
                + data[at + 1 :]
            )
        case 1:  # delete
            return data[:at] + data[end:] or b"\r\n"
        case 2:  # insert a byte
            return data[:at] + bytes([rng.randrange(256)]) + data[at:]
        case 3:  # insert what parsers look for
            return data[:at] + rng.choice(TOKENS) + data[at:]
        case 4:  # insert it where a line begins
            starts = [index + 2 for index in range(len(data)) if data[index : index + 2] == b"\r\n"] or [at]
            start = rng.choice(starts)
            return data[:start] + rng.choice(TOKENS) + data[start:]
        case 5:  # repeat a slice
            return data[:end] + data[at:]
        case 6:  # exchange line ends
            old, new = rng.sample((b"\r\n", b"\n", b"\r", b"\n\r", b""), 2)
            return data.replace(old, new, rng.choice((1, 2, -1))) if old else data
        case 7:  # change a number
            digits = [index for index, byte in enumerate(data) if 48 <= byte <= 57] or [0]
            index = rng.choice(digits)
            return data[:index] + rng.choice((b"0", b"1", b"9", b"00", b"-", b"0x", b" ")) + data[index + 1 :]
        case _:  # put another request behind it, or into it
            return (
                data[:at] + rng.choice(originals) + data[at:]
                if rng.random() < 0.3
                else data + rng.choice(originals)
            )


class FoundError(AssertionError):
    """A case that must not be: how to see it again."""


async def run_case(stage: Stage, case: Case, *, name: str) -> None:
    """Send one case. Raises FoundError."""
    stage.forget()
    try:
        conversation = await stage.converse(*case.pieces, answers=99)
        await stage.assert_held(case.data, conversation)
    except (AssertionError, TimeoutError, ValueError, KeyError) as error:
        raise FoundError(f"{name}: {error!r}\nsent, cut at {case.cuts}: {case.data!r}") from error


async def fuzz(
    stage: Stage,
    *,
    seed: int,
    seconds: float | None = None,
    cases: int | None = None,
    first: int = 0,
    keep_going: bool = False,
) -> tuple[int, list[str]]:
    """Run cases until the time or their number is over. (cases run, what was found)"""
    originals = seeds(stage)
    started_s = told_s = time.monotonic()
    found: list[str] = []
    number = first
    while cases is None or number < first + cases:
        now_s = time.monotonic()
        if seconds is not None and now_s - started_s > seconds:
            break
        if now_s - told_s > PROGRESS_EVERY_S:
            told_s = now_s
            print(
                f"{number - first} cases, {now_s - started_s:.0f} s, {len(found)} found",
                file=sys.stderr,
                flush=True,
            )
        try:
            name = f"seed {seed}, case {number}"
            await run_case(stage, case_of(originals, seed, number), name=name)
        except FoundError as error:
            if not keep_going:
                raise
            stage.gateway.defects.clear()
            found.append(str(error))
            print(error, flush=True)
        number += 1
    return number - first, found


async def _main(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with staged(Path(folder)) as stage:
            if options.only is not None:
                await run_case(
                    stage, case_of(seeds(stage), options.seed, options.only), name=f"case {options.only}"
                )
                return 0
            ran, found = await fuzz(stage, seed=options.seed, seconds=options.seconds, keep_going=True)
    print(f"seed {options.seed}: {ran} cases, {len(found)} found")
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, by its number")
    return uvloop.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
