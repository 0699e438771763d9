"""What the demo plays: who asks what, how the simulated vendor answers, and what must come of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

from automna_proxy.demo_apis import CHAT, EMAIL, GEMINI, MESSAGES, RESPONSE, RESPONSES, SEARCH, Api
from automna_proxy.demo_browser import Visit
from automna_proxy.demo_calls import Dial
from simulators import agentmail, behaviour, brave, gemini, openai
from simulators.anthropic import Behaviour, streams
from simulators.vendor import Answered

SONNET, HAIKU = "claude-sonnet-4-5", "claude-haiku-4-5"
GPT, FLASH = "gpt-4o-mini", "gemini-2.5-flash"
PACE_S = 0.02
"""Between two events: slow enough to be watched."""
ADA, BOB = "ada", "bob"
PLAN_OF = {ADA: "pro", BOB: "tiny"}
PLAN_TINY = """
[plans.tiny]
credits_per_month = 100
requests_per_minute = 60
tokens_per_minute = 100_000
concurrent_requests = 4
searches_per_month = 1
browser_minutes_per_month = 0
concurrent_browsers = 0
emails_per_day = 1
call_minutes_per_month = 0
"""
"""A plan for one: 100 credits are $0.01, which two searches cost; it includes one, and an e-mail a day."""
SEARCHES_METER, EMAILS_METER = "searches_per_month", "emails_per_day"
"""Of a plan, and of `/api/user/limits`."""
OWN_NUMBER = "+14155550111"
"""The phone number that Ada calls from."""
CALL_METER = "call_seconds_per_month"
BROWSER_METER = "browser_seconds_per_month"
SEARCH_NANOUSD = 5_000_000
"""What a search costs, said once more: whatever the price list says."""
EMAIL_NANOUSD = 2_000_000
"""What each recipient of a mail costs; so too."""

STREAMED = {"stream": True}
"""Asked for in the body, everywhere but at Gemini."""

_HANDBOOK = " ".join(
    f"Section {number}: answer politely, cite the page, and say so when the handbook is silent."
    for number in range(1, 201)
)
_HANDBOOK_TOKENS = len(_HANDBOOK) // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request and what must come of it: a status, or an error of the vendor's type.

    `behaviour` is the vendor's; None where the vendor must not be asked at all. `leaves_after` so many pieces of
    text the client goes away, and only then the vendor says the rest. `shown` is the command or code.
    `used`: what `/api/user/limits` must tell afterwards, by meters that are named as the plan's limits are.
    `sends`: the addresses that a mail with the body's subject and text must go to, once; where empty, none may go out.
    `lost`: answers of the vendor that do not reach the proxy, which asks again.
    """

    client: str
    question: str
    behaviour: behaviour.Behaviour | None
    api: Api = MESSAGES
    is_free: bool = False
    """The vendor answers, and bills nothing."""
    user: str = ADA
    model: str = HAIKU
    max_tokens: int = 400
    is_streaming: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    error: str = ""
    leaves_after: int | None = None
    shown: tuple[str, ...] = ()
    used: Mapping[str, int] = field(default_factory=dict)
    sends: tuple[str, ...] = ()
    lost: int = 0

    def path(self, object_id: str) -> str:
        return self.api.path.format(model=self.model, id=object_id, question=quote_plus(self.question))

    def text(self, answer: Answered) -> str:
        """All that the client must read of the vendor's answer."""
        if self.api.told_of is not None:
            return self.api.told_of(answer)
        if self.behaviour is None:
            return ""
        if self.behaviour.raw is not None:
            return self.api.text_of(json.loads(self.behaviour.raw.body))
        return self.behaviour.text or ""

    @property
    def body(self) -> dict[str, Any] | None:
        if self.api.body_of is None:
            return None
        return {**self.api.body_of(self.model, self.question, self.max_tokens), **self.fields}


@dataclass(frozen=True, slots=True)
class Scene:
    """Requests that belong together under one heading; or what a browser is sent to, and who is called."""

    title: str
    asks: tuple[Ask, ...] = ()
    visits: tuple[Visit, ...] = ()
    dials: tuple[Dial, ...] = ()


def _about_handbook(question: str, text: str, **usage: int) -> Ask:
    """A question below a long system prompt that the vendor is asked to cache for five minutes."""
    cached = {"type": "text", "text": _HANDBOOK, "cache_control": {"type": "ephemeral"}}
    return Ask(
        client="sdk",
        question=question,
        model=SONNET,
        fields={"system": [cached]},
        behaviour=Behaviour(text=text, usage_changes={"input_tokens": len(question) // 4 + 8, **usage}),
    )


def _finds(*results: tuple[str, str, str]) -> brave.Behaviour:
    """Results of a search: title, address and description."""
    names = ("title", "url", "description")
    found = [dict(zip(names, result, strict=True)) for result in results]
    return brave.answers({"type": "search", "web": {"type": "search", "results": found}})


def _mail(
    question: str,
    text: str,
    *recipients: str,
    behaviour: agentmail.Behaviour | None = agentmail.PLAIN,
    **more: Any,
) -> Ask:
    """A mail to the first of the recipients, with copies to the others. None goes out where the vendor is not asked."""
    to, *copies = recipients
    return Ask(
        client="curl",
        api=EMAIL,
        question=question,
        fields={"to": to, "cc": copies, "text": text},
        behaviour=behaviour,
        sends=() if behaviour is None else recipients,
        **more,
    )


SCENES = (
    Scene(
        "A streamed request, with curl",
        (
            Ask(
                client="curl",
                question="Why does a ledger only ever append?",
                model=SONNET,
                is_streaming=True,
                fields=STREAMED,
                behaviour=streams(
                    text="Because what was written down stays true. A correction is a new line with its own "
                    "reason, so every balance can be added up again from the first line to the last.",
                    pace_s=PACE_S,
                ),
                shown=(
                    '$ curl -N $URL/api/llm/v1/messages -H "x-api-key: $TOKEN" \\',
                    """    -H "content-type: application/json" -d '{"model": ..., "stream": true, ...}'""",
                ),
            ),
        ),
    ),
    Scene(
        "A streamed request, with the anthropic SDK",
        (
            Ask(
                client="sdk",
                question="And what is a hold?",
                is_streaming=True,
                fields=STREAMED,
                behaviour=streams(
                    text="Money set aside before the work begins: as much as it may cost at most. When the work "
                    "is done, what it did cost is booked and the rest is free again.",
                    pace_s=PACE_S,
                ),
                shown=(
                    '>>> claude = anthropic.Anthropic(base_url=URL + "/api/llm", api_key=TOKEN)',
                    '>>> with claude.messages.stream(model="claude-haiku-4-5", ...) as stream:',
                ),
            ),
        ),
    ),
    Scene(
        "Not streamed",
        (
            Ask(
                client="curl",
                question="A colour, please.",
                behaviour=Behaviour(text="Teal."),
            ),
        ),
    ),
    Scene(
        "Prompt caching: written once, then read at a tenth of the price",
        (
            _about_handbook(
                "What if the handbook is silent?",
                "Then say so. (The handbook was written to the cache.)",
                cache_write_5m_tokens=_HANDBOOK_TOKENS,
            ),
            _about_handbook(
                "And how should I answer?",
                "Politely, citing the page. (It was read from the cache.)",
                cache_read_tokens=_HANDBOOK_TOKENS,
            ),
        ),
    ),
    Scene(
        "Web search: the vendor's own tool, priced per search, none of the plan's",
        (
            Ask(
                client="curl",
                question="What is the weather in Lisbon today?",
                model=SONNET,
                fields={"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]},
                behaviour=Behaviour(
                    text="Sunny, 19 degrees, says the second page found.",
                    usage_changes={"web_searches": 2, "input_tokens": 8_214},
                ),
                used={SEARCHES_METER: 0},
            ),
        ),
    ),
    Scene(
        "A client that leaves in mid-stream: all that the vendor bills is booked",
        (
            Ask(
                client="curl",
                question="Count slowly to twenty.",
                is_streaming=True,
                fields=STREAMED,
                behaviour=streams(
                    text="One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, "
                    "fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty.",
                    pace_s=PACE_S,
                ),
                leaves_after=7,
            ),
        ),
    ),
    Scene(
        "OpenAI, streamed: who did not ask for the usage does not see it, and it is booked",
        (
            Ask(
                client="curl",
                api=CHAT,
                question="And who counts the tokens?",
                model=GPT,
                is_streaming=True,
                fields=STREAMED,
                behaviour=openai.streams(
                    text="The proxy asks for the count, and keeps the chunk that nobody else asked for.",
                    pace_s=PACE_S,
                    usage_changes={"cached_tokens": 8, "reasoning_tokens": 3},
                ),
                shown=(
                    '$ curl -N $URL/api/openai/v1/chat/completions -H "authorization: Bearer $TOKEN" \\',
                    """    -H "content-type: application/json" -d '{"model": ..., "stream": true, ...}'""",
                ),
            ),
        ),
    ),
    Scene(
        "OpenAI, a stored response: its user reads it again, another user finds nothing",
        (
            Ask(
                client="curl",
                api=RESPONSES,
                question="Remember a bird for me.",
                model=GPT,
                behaviour=openai.streams(text="A wren it is."),
            ),
            Ask(
                client="curl",
                api=RESPONSE,
                question="(reads it again)",
                behaviour=openai.Behaviour(text="A wren it is."),
                is_free=True,
                shown=('$ curl $URL/api/openai/v1/responses/$ID -H "authorization: Bearer $TOKEN"',),
            ),
            Ask(
                client="curl",
                api=RESPONSE,
                question="(reads it too)",
                user=BOB,
                behaviour=None,
                status=404,
                error="not found",
            ),
        ),
    ),
    Scene(
        "Gemini, streamed, with curl",
        (
            Ask(
                client="curl",
                api=GEMINI,
                question="Say it in three words.",
                model=FLASH,
                is_streaming=True,
                behaviour=gemini.streams(text="Measured, priced, booked.", thinking="Hm.", pace_s=PACE_S),
                shown=(
                    '$ curl -N "$URL/api/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse" \\',
                    """    -H "x-goog-api-key: $TOKEN" -H "content-type: application/json" -d '{"contents": ...}'""",
                ),
            ),
        ),
    ),
    Scene(
        "Brave Search, with curl: a search has its price, and is one of the plan's",
        (
            Ask(
                client="curl",
                api=SEARCH,
                question="between blue and green",
                behaviour=_finds(
                    ("Teal", "https://colours.example/teal", "dark, and named after a duck."),
                    ("Cyan", "https://colours.example/cyan", "bright, and half of each."),
                    ("Ochre", "https://colours.example/ochre", "neither of them."),
                ),
                shown=(
                    '$ curl "$URL/api/brave/res/v1/web/search?q=between+blue+and+green" \\',
                    '    -H "x-subscription-token: $TOKEN"',
                ),
                used={SEARCHES_METER: 1},
            ),
        ),
    ),
    Scene(
        "Refused: one search more than the plan includes",
        (
            Ask(
                client="curl",
                api=SEARCH,
                user=BOB,
                question="a rhyme for coin",
                behaviour=_finds(("Rhymes", "https://words.example/coin", "join, groin, sirloin.")),
                used={SEARCHES_METER: 1},
            ),
            Ask(
                client="curl",
                api=SEARCH,
                user=BOB,
                question="a rhyme for silver",
                behaviour=None,
                status=402,
                error="Monthly usage limit reached (1 of 1 searches)",
                used={SEARCHES_METER: 1},
            ),
        ),
    ),
    Scene(
        "E-mail, with curl: each recipient has its price, and is one of the day's",
        (
            _mail(
                "Lunch on Friday?",
                "Noon, by the pond.",
                "ann@example.com",
                "carl@example.com",
                shown=(
                    '$ curl $URL/api/user/email/send -H "authorization: Bearer $TOKEN" \\',
                    """    -H "content-type: application/json" \\""",
                    """    -d '{"to": "ann@example.com", "cc": ["carl@example.com"], ...}'""",
                ),
                used={EMAILS_METER: 2},
            ),
        ),
    ),
    Scene(
        "E-mail whose answer is lost at the vendor: sent once, and its id is told",
        (
            _mail(
                "Friday it is",
                "See you there.",
                "ann@example.com",
                behaviour=agentmail.loses_reply(),
                lost=1,
                used={EMAILS_METER: 3},
            ),
        ),
    ),
    Scene(
        "Refused: one e-mail more than the plan includes",
        (
            _mail(
                "Good morning",
                "It is a fine day.",
                "dora@example.com",
                user=BOB,
                used={EMAILS_METER: 1},
            ),
            _mail(
                "Good night",
                "It was one.",
                "dora@example.com",
                user=BOB,
                behaviour=None,
                status=429,
                error="Daily email limit reached",
                used={EMAILS_METER: 1},
            ),
        ),
    ),
    Scene(
        "A browser at Browserbase, driven through the proxy: held while it runs, billed by the second",
        visits=(Visit(ADA, "https://ponds.example/", "Simulated page at https://ponds.example/"),),
    ),
    Scene(
        "A phone call at Bland: dialled once, billed by the connected second when the vendor tells of its end",
        dials=(Dial(ADA, OWN_NUMBER, "+12025550100", "Ask whether the pond is open on Friday."),),
    ),
    Scene(
        "Refused: a model that nobody offers",
        (
            Ask(
                client="sdk",
                question="Hello?",
                model="claude-imaginary-9",
                behaviour=None,
                status=404,
                error="claude-imaginary-9",
            ),
        ),
    ),
    Scene(
        "Refused: a budget that cannot cover it",
        (
            Ask(
                client="curl",
                user=BOB,
                question="A short poem about coins.",
                max_tokens=300,
                behaviour=Behaviour(
                    text="Small coins fall in the jar; their sum rings far.",
                    usage_changes={"output_tokens": 287},
                ),
            ),
            Ask(
                client="curl",
                user=BOB,
                question="A long one, please.",
                max_tokens=1_000,
                behaviour=None,
                status=402,
                error="Monthly usage limit reached",
            ),
        ),
    ),
)
