"""What Bland's endpoints for calls, texts and numbers do, one method each."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from metering.clock import instant
from simulators import bland_errors as errors
from simulators.bland_account import Account, Number, e164
from simulators.bland_behaviour import ORGANIZATION_ID, ReportedUsage
from simulators.bland_call import Call, has_recording, item
from simulators.bland_calls import Calls
from simulators.bland_texts import Texts
from simulators.bland_turn import PREFIX, Answer, Audio, Handler, Request
from simulators.bland_webhooks import Post
from simulators.paths import routes

LIST_LIMIT = 1000
"""Calls of one answer, unless the request says less (the vendor's default)."""
RECORDING_BYTES = 64_000
ANALYSIS_USD = Decimal("0.0045")
"""What an analysis of one call costs, roughly (the vendor's page on it)."""
NUMBER_SETTINGS = [
    "prompt",
    "webhook",
    "webhook_events",
    "voice",
    "first_sentence",
    "max_duration",
    "record",
    "metadata",
    "model",
    "language",
    "wait_for_greeting",
    "interruption_threshold",
    "pathway_id",
    "transfer_list",
]


class Api:
    """`appears_after_ms` says how long a new call is not found; `details` tells all of a call."""

    def __init__(
        self,
        account: Account,
        calls: Calls,
        texts: Texts,
        *,
        posts: list[Post],
        appears_after_ms: Callable[[], int],
        details: Callable[[Call], dict[str, Any]],
    ) -> None:
        self._account = account
        self._calls = calls
        self._texts = texts
        self._posts = posts
        self._appears_after_ms = appears_after_ms
        self._details = details
        table: Mapping[str, Handler] = {
            "POST /calls": self._dial,
            "GET /calls": self._list,
            "GET /calls/active": self._list_active,
            "GET /calls/{call}": lambda request: self._details(self._call(request)),
            "GET /calls/{call}/correct": self._correct,
            "POST /calls/{call}/stop": self._stop,
            "POST /calls/{call}/analyze": self._analyze,
            "POST /calls/{call}/listen": self._listen,
            "POST /calls/{call}/transcript-stream/token": self._transcript_token,
            "GET /recordings/{call}": self._recording,
            "GET /event_stream/{call}": lambda request: self._call(request).events,
            "GET /postcall/webhooks/{call}": self._list_posts,
            "POST /sms/send": self._send_text,
            "GET /sms/conversations": self._list_conversations,
            "POST /sms/conversations": self._list_conversations,
            "GET /sms/conversations/{conversation}": self._conversation,
            "GET /inbound": self._list_numbers,
            "POST /inbound/insert": self._insert_numbers,
            "POST /inbound/purchase": self._purchase,
            "POST /inbound/delete": self._delete_number,
            "GET /inbound/{number}": lambda request: _number_as_json(self._number(request)),
            "POST /inbound/{number}": self._configure_number,
            "POST /inbound/{number}/delete": self._delete_number,
        }
        purchase: Mapping[str, Handler] = {"POST /numbers/purchase": self._purchase}
        self.routes = [*routes(table, PREFIX), *routes(purchase, "", PREFIX)]

    # calls

    def _call(self, request: Request) -> Call:
        """The call of the path, unless it is too new to be found yet."""
        call = self._calls.by_id.get(request.ids["call"])
        if call is None or not self._appears(call):
            raise errors.not_found("Call")
        return call

    def _appears(self, call: Call) -> bool:
        return self._account.now_ms() - call.created_ms >= self._appears_after_ms()

    def _is_byot(self, request: Request) -> bool:
        """Whether the request brings the key of the operator's Twilio account. Raises RefusedError(400)."""
        key = request.received.header(b"encrypted_key")
        if key and key.decode("latin-1") != self._account.byot_key:
            raise errors.key_not_valid()
        return bool(key)

    def _dial(self, request: Request) -> Answer:
        call = self._calls.dial(request.fields(), request.origin(), is_byot=self._is_byot(request))
        request.made, request.usage = call.call_id, ReportedUsage(calls=1)
        return {
            "status": "success",
            "message": "Call successfully queued.",
            "call_id": call.call_id,
            "batch_id": None,
        }

    def _list(self, request: Request) -> Answer:
        """All calls of the account, or those of its Twilio account; `from` and `to` are indexes, `to` not included."""
        asked = dict(parse_qsl(request.received.target.partition("?")[2]))
        is_byot = self._is_byot(request)
        matching = [
            call
            for call in self._calls.by_id.values()
            if self._appears(call) and (call.is_byot or not is_byot) and _matches(call, asked)
        ]
        if asked.get("ascending") != "true":
            matching.reverse()
        first = _index(asked, "from", 0)
        last = min(_index(asked, "to", len(matching)), first + _index(asked, "limit", LIST_LIMIT))
        now_ms = self._account.now_ms()
        page = [item(call, now_ms) for call in matching[first:last]]
        return {"total_count": len(matching), "count": len(page), "calls": page}

    def _list_active(self, request: Request) -> Answer:  # noqa: ARG002 - the signature of a handler
        now_ms = self._account.now_ms()
        active = [
            {
                "call_id": call.call_id,
                "user_id": ORGANIZATION_ID,
                "from": call.from_number,
                "to": call.to,
                "status": call.queue_status(now_ms),
            }
            for call in self._calls.running
        ]
        return {"data": active, "errors": None}

    def _correct(self, request: Request) -> Answer:
        call = self._call(request)
        lines = call.transcripts()
        corrected = [
            {
                "start": float(number),
                "end": number + 1.0,
                "text": line["text"],
                "speaker": number + 1,
                "speaker_label": line["user"],
                "confidence": 0.9,
            }
            for number, line in enumerate(lines)
        ]
        return {
            "status": "success",
            "message": "Successfully corrected",
            "corrected": corrected,
            "aligned": lines,
        }

    def _stop(self, request: Request) -> Answer:
        self._calls.stop(self._call(request))
        return {"status": "success", "message": "Call ended successfully."}

    def _analyze(self, request: Request) -> Answer:
        call, fields = self._call(request), request.fields()
        questions = fields.get("questions")
        if not fields.get("goal") or not isinstance(questions, list):
            raise errors.invalid("goal and questions: required")
        self._account.balance_usd -= ANALYSIS_USD
        request.made, request.usage = call.call_id, ReportedUsage(analyses=1)
        answers = [call.answered_by if number == 0 else None for number in range(len(questions))]
        return {
            "status": "success",
            "message": "Successfully analyzed call",
            "answers": answers,
            "credits_used": float(ANALYSIS_USD),
        }

    def _listen(self, request: Request) -> Answer:
        """A URL that anyone may connect to who knows it."""
        call = self._active(request)
        url = f"wss://api.bland.ai/ws/listen/{call.call_id}?token={self._account.new_id()}"
        return {"status": "success", "data": {"url": url}, "errors": None}

    def _transcript_token(self, request: Request) -> Answer:
        call, token = self._active(request), self._account.new_id()
        url = f"wss://api.bland.ai/ws/transcript/{call.call_id}"
        return {"data": {"token": token, "url": f"{url}?token={token}"}, "errors": None}

    def _active(self, request: Request) -> Call:
        call = self._call(request)
        if call.is_over:
            raise errors.not_active()
        return call

    def _recording(self, request: Request) -> Answer:
        """WAV unless MP3 is asked for. No player would take it: the sound is the id of the call, over and over."""
        call = self._calls.by_id.get(request.ids["call"])
        if call is None or not has_recording(call):
            raise errors.not_found_in_envelope("Call recording")
        is_mp3 = request.received.header(b"content-type") == b"audio/mpeg"
        begin = b"ID3\x04\x00\x00\x00\x00\x00\x00" if is_mp3 else b"RIFF"
        sound = call.call_id.encode() * math.ceil(RECORDING_BYTES / len(call.call_id))
        return Audio((begin + sound)[:RECORDING_BYTES], "audio/mpeg" if is_mp3 else "audio/wav")

    def _list_posts(self, request: Request) -> Answer:
        call = self._call(request)
        told = [
            {"call_id": post.call_id, "payload": post.body, "url": post.url, "user_id": ORGANIZATION_ID}
            for post in self._posts
            if post.call_id == call.call_id
        ]
        return {"data": told, "errors": None}

    # texts

    def _send_text(self, request: Request) -> Answer:
        text, is_new = self._texts.send(request.fields(), request.origin())
        request.made, request.usage = text.conversation_id, ReportedUsage(texts=1) if is_new else None
        data = {
            "message": "SMS sent successfully",
            "conversation_id": text.conversation_id,
            "workflow_id": f"workflow_{text.conversation_id}",
        }
        return {"data": data, "errors": None}

    def _list_conversations(self, request: Request) -> Answer:  # noqa: ARG002 - the signature of a handler
        return {"data": self._texts.conversations(), "errors": None}

    def _conversation(self, request: Request) -> Answer:
        return {"data": self._texts.conversation(request.ids["conversation"]), "errors": None}

    # numbers

    def _number(self, request: Request) -> Number:
        """Of the path, with or without its `+` or its country, or of the body."""
        return self._account.number(request.ids.get("number") or str(request.fields().get("phone_number")))

    def _list_numbers(self, request: Request) -> Answer:  # noqa: ARG002 - the signature of a handler
        return {"inbound_numbers": [_number_as_json(number) for number in self._account.numbers.values()]}

    def _insert_numbers(self, request: Request) -> Answer:
        """Numbers of the operator's Twilio account become the account's."""
        numbers = request.fields().get("numbers")
        if not self._is_byot(request):
            raise errors.key_not_valid()
        if not isinstance(numbers, list) or not numbers or not all(_is_number(each) for each in numbers):
            raise errors.invalid("numbers: must be a list of phone numbers")
        inserted = [self._account.add_number(e164(each) or "", is_byot=True) for each in numbers]
        return {
            "status": "success",
            "message": "Successfully inserted numbers",
            "inserted": [number.phone_number for number in inserted],
        }

    def _purchase(self, request: Request) -> Answer:
        """$15 a month, from the account's payment method."""
        fields = request.fields()
        wished = fields.get("phone_number")
        if wished is None:
            area = str(fields.get("area_code") or 415)
            wished = f"+1{area}555{len(self._account.numbers):04}"
        if not _is_number(wished) or e164(wished) in self._account.numbers:
            raise errors.invalid("phone_number: not available")
        return {"phone_number": self._account.add_number(e164(wished) or "", is_byot=False).phone_number}

    def _configure_number(self, request: Request) -> Answer:
        number, fields = self._number(request), request.fields()
        unknown = [name for name in fields if name not in NUMBER_SETTINGS]
        if unknown:
            raise errors.invalid(*(f"{name}: unknown property" for name in unknown))
        number.settings.update(fields)
        return {"status": "success", "message": "Successfully updated", "updates": fields}

    def _delete_number(self, request: Request) -> Answer:
        number = self._number(request)
        if number.is_byot and not self._is_byot(request):
            raise errors.key_not_valid()
        del self._account.numbers[number.phone_number]
        return {"status": "success", "message": "Successfully deleted"}


def _number_as_json(number: Number) -> dict[str, Any]:
    return {
        "created_at": instant(number.created_ms),
        "phone_number": number.phone_number,
        "max_duration": 30,
        **number.settings,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and e164(value) is not None


def _index(asked: dict[str, str], name: str, default: int) -> int:
    value = asked.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit()):
        raise errors.invalid(f"{name}: must be a whole number")
    return int(value)


def _matches(call: Call, asked: Mapping[str, str]) -> bool:
    """The filters of a list. Days are UTC; a number may be written in any way that the vendor takes."""
    day = instant(call.created_ms)[:10]
    shown = {
        "completed": str(call.is_over).lower(),
        "inbound": str(call.is_inbound).lower(),
        "answered_by": call.answered_by,
        "created_at": day,
        "batch_id": None,
    }
    numbers = {"from_number": call.from_number, "to_number": call.to}
    return (
        all(asked[name] == value for name, value in shown.items() if name in asked)
        and all(e164(asked[name]) == value for name, value in numbers.items() if name in asked)
        and asked.get("start_date", day)[:10] <= day <= asked.get("end_date", day)[:10]
    )
