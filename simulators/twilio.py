"""Twilio, simulated: the part that sells phone numbers, which is all that the platform uses of it.

Shapes and codes come from the vendor's OpenAPI description and error dictionary. What an answer does comes as
`simulators.vendor` says, and whether the work behind it is done as `simulators.stateful` says.
"""

import base64
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any, Unpack
from urllib.parse import parse_qsl

import orjson

from metering.clock import Clock, SystemClock
from simulators import stateful
from simulators.behaviour import HeaderLanguage
from simulators.paths import Route, decoded, found, routes
from simulators.script import Answer, Ready, Script
from simulators.server import ReceivedRequest
from simulators.vendor import Options, RefusedError, VendorSimulator

ACCOUNT_SID = "ACsimulated00000000000000000000f00d"
AUTH_TOKEN = "simulated-auth-token"
FOREIGN_NAME = "automna:somebody-else"
"""A number that the account has already, and that is nobody's whom a test knows."""
LIMIT_DEFAULT, LIMIT_MAX = 50, 1000
AREA_DEFAULT = "415"
TOLL_FREE_AREA = "800"
CODES: Mapping[int, int] = {400: 21400, 401: 20003, 404: 20404, 429: 20429, 500: 20500, 503: 20503}
"""The code of an error that names none."""


@dataclass(frozen=True, slots=True)
class Behaviour(stateful.Behaviour):
    """What one answer does. `code` is the vendor's own number of the error."""

    code: int | None = None


PLAIN = Behaviour()

_BEHAVIOURS = stateful.StatefulBehaviours(Behaviour)
answers = _BEHAVIOURS.answers
fails = _BEHAVIOURS.fails
hangs = _BEHAVIOURS.hangs
drops = _BEHAVIOURS.drops
loses_reply = _BEHAVIOURS.loses_reply


class Turn(stateful.Turn[Behaviour]):
    """One request with its behaviour: builds the answer."""

    @property
    def request_id(self) -> str:
        return f"RQ{self.request.number:032x}"

    @classmethod
    def headers(cls, content_type: str, request_id: str) -> tuple[tuple[str, str], ...]:
        return (
            ("Date", formatdate(0, usegmt=True)),
            ("Content-Type", content_type),
            ("Twilio-Request-Id", request_id),
        )

    def error_body(self) -> bytes:
        behaviour = self.behaviour
        code = behaviour.code or CODES.get(behaviour.status, 20500)
        body = {
            "code": code,
            "message": behaviour.error_message,
            "more_info": f"https://www.twilio.com/docs/errors/{code}",
            "status": behaviour.status,
        }
        return orjson.dumps(body)

    def error_event(self) -> bytes:
        """The vendor streams nothing."""
        return self.error_body()

    def give(self, status: int, answer: Mapping[str, Any] | None) -> Script | Ready:
        """The endpoint's answer, unless the behaviour has something else to say."""
        if self.is_ordinary:
            self.behaviour = replace(self.behaviour, status=status)
        return self.json(b"" if answer is None else orjson.dumps(answer))


@dataclass(slots=True)
class Number:
    """A number that was bought."""

    sid: str
    phone_number: str
    friendly_name: str
    bought_ms: int

    def as_json(self) -> dict[str, Any]:
        at = formatdate(self.bought_ms / 1000)
        return {
            "sid": self.sid,
            "account_sid": ACCOUNT_SID,
            "phone_number": self.phone_number,
            "friendly_name": self.friendly_name,
            "capabilities": {"voice": True, "sms": True, "mms": True, "fax": False},
            "date_created": at,
            "date_updated": at,
            "status": "in-use",
            "uri": f"{ACCOUNT_PATH}/IncomingPhoneNumbers/{self.sid}.json",
        }


@dataclass(frozen=True, slots=True)
class Request:
    """One request on its path; `form` is the query of a GET, else the form of the body."""

    ids: Mapping[str, str]
    form: Mapping[str, str]


Handler = Callable[[Request], tuple[int, Mapping[str, Any] | None]]
"""Does the work and returns status and body; None where there is none. Raises RefusedError."""
ACCOUNT_PATH = f"/2010-04-01/Accounts/{ACCOUNT_SID}"


class TwilioSimulator(VendorSimulator[Behaviour, Turn]):
    """`https://api.twilio.com` on a loopback port. `api_key` is the auth token, beside the account's id.

    `bought` holds the numbers of the account by their sid; `bought_total` and `released_total` count what was really done,
    also where the answer was lost. `is_sold_out` judges area codes.
    """

    vendor_key = AUTH_TOKEN
    behaviour_type = Behaviour
    turn_type = Turn
    parse_simulate = staticmethod(
        HeaderLanguage(PLAIN, usage_words={}, usage_name_words={}, words=stateful.WORKS).parse
    )

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        is_sold_out: Callable[[str], bool] = lambda area: area == "212",
        **options: Unpack[Options[Behaviour]],
    ) -> None:
        super().__init__(**options)
        self.bought: dict[str, Number] = {}
        self.bought_total = 0
        self.released_total = 0
        self._clock = clock or SystemClock()
        self._is_sold_out = is_sold_out
        self.add_number(f"+1{AREA_DEFAULT}5550000", FOREIGN_NAME)
        table: Mapping[str, Handler] = {
            "GET /AvailablePhoneNumbers/{country}/{kind}.json": self._available,
            "GET /IncomingPhoneNumbers.json": self._list,
            "POST /IncomingPhoneNumbers.json": self._buy,
            "GET /IncomingPhoneNumbers/{sid}.json": lambda request: (200, self._number(request).as_json()),
            "POST /IncomingPhoneNumbers/{sid}.json": self._update,
            "DELETE /IncomingPhoneNumbers/{sid}.json": self._release,
        }
        self._routes: list[Route[Handler]] = routes(table, ACCOUNT_PATH)

    def add_number(self, phone_number: str, friendly_name: str) -> Number:
        """A number that was there before."""
        sid = f"PN{len(self.bought) + self.released_total + 1:032x}"
        number = Number(sid, phone_number, friendly_name, self._clock.now_ms())
        self.bought[sid] = number
        return number

    def route(self, request: ReceivedRequest) -> Callable[[Turn], Answer]:
        match = found(self._routes, request.method, decoded(request.path))
        if match is None:
            raise _not_found(request.path)
        handler, ids = match
        return lambda turn: self._handle(turn, handler, ids)

    def authenticate(self, request: ReceivedRequest) -> None:
        """Basic: the account's id and its auth token."""
        given = request.header(b"authorization").removeprefix(b"Basic ")
        key = b"" if self.api_key is None else self.api_key
        if self.api_key is not None and given != base64.b64encode(f"{ACCOUNT_SID}:".encode() + key):
            raise RefusedError(401, "Authenticate")

    def _handle(self, turn: Turn, handler: Handler, ids: Mapping[str, str]) -> Script | Ready:
        if not turn.behaviour.takes_effect:
            return turn.give_nothing()
        received = turn.request
        form = received.query if received.method == "GET" else dict(parse_qsl(received.body.decode()))
        return turn.give(*handler(Request(ids, form)))

    def _available(self, request: Request) -> tuple[int, Mapping[str, Any]]:
        """Numbers that nobody has, of the area asked for."""
        is_toll_free = request.ids["kind"] == "TollFree"
        area = TOLL_FREE_AREA if is_toll_free else request.form.get("AreaCode", AREA_DEFAULT)
        numbers = itertools.islice(self._free(area), _whole(request.form.get("Limit"), LIMIT_DEFAULT))
        shown = [
            {
                "phone_number": number,
                "friendly_name": f"({number[2:5]}) {number[5:8]}-{number[8:]}",
                "iso_country": request.ids["country"],
                "region": "CA",
                "locality": "Simulated",
                "capabilities": {"voice": True, "SMS": True, "MMS": True},
            }
            for number in numbers
        ]
        return 200, {"available_phone_numbers": shown, "uri": f"{ACCOUNT_PATH}/AvailablePhoneNumbers"}

    def _free(self, area: str) -> Iterator[str]:
        taken = {number.phone_number for number in self.bought.values()}
        if not self._is_sold_out(area):
            candidates = (f"+1{area}555{last:04}" for last in range(10_000))
            yield from (number for number in candidates if number not in taken)

    def _list(self, request: Request) -> tuple[int, Mapping[str, Any]]:
        """The account's numbers, by exact name and by number."""
        form = request.form
        matching = [
            number.as_json()
            for number in self.bought.values()
            if form.get("FriendlyName") in (None, number.friendly_name)
            and form.get("PhoneNumber") in (None, number.phone_number)
        ]
        size, page = _whole(form.get("PageSize"), LIMIT_DEFAULT), _whole(form.get("Page"), 0)
        more = f"{ACCOUNT_PATH}/IncomingPhoneNumbers.json?PageSize={size}&Page={page + 1}"
        return 200, {
            "incoming_phone_numbers": matching[page * size : (page + 1) * size],
            "page": page,
            "page_size": size,
            "next_page_uri": more if (page + 1) * size < len(matching) else None,
        }

    def _buy(self, request: Request) -> tuple[int, Mapping[str, Any]]:
        form = request.form
        area = form.get("AreaCode", AREA_DEFAULT)
        wished = form.get("PhoneNumber") or next(self._free(area), None)
        if wished is None or any(number.phone_number == wished for number in self.bought.values()):
            raise RefusedError(400, f"PhoneNumber {wished} is not available", code=21422)
        number = self.add_number(wished, form.get("FriendlyName", wished))
        self.bought_total += 1
        return 201, number.as_json()

    def _number(self, request: Request) -> Number:
        number = self.bought.get(request.ids["sid"])
        if number is None:
            raise _not_found(f"{ACCOUNT_PATH}/IncomingPhoneNumbers/{request.ids['sid']}.json")
        return number

    def _update(self, request: Request) -> tuple[int, Mapping[str, Any]]:
        number = self._number(request)
        number.friendly_name = request.form.get("FriendlyName", number.friendly_name)
        return 200, number.as_json()

    def _release(self, request: Request) -> tuple[int, None]:
        del self.bought[self._number(request).sid]
        self.released_total += 1
        return 204, None


def _whole(given: str | None, default: int) -> int:
    return min(int(given), LIMIT_MAX) if given and given.isdecimal() else default


def _not_found(path: str) -> RefusedError:
    return RefusedError(404, f"The requested resource {path} was not found")
