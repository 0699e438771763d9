"""Texts at Bland: sent and received, each metered, in conversations between a number of the account and somebody's."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from metering.clock import instant
from simulators import bland_errors as errors
from simulators.bland_account import Account, e164
from simulators.bland_call import Origin


@dataclass(frozen=True, slots=True)
class Text:
    """One text. `is_inbound`: it came to the account's number."""

    conversation_id: str
    user_number: str
    agent_number: str
    message: str
    is_inbound: bool
    price_usd: Decimal
    at_ms: int
    origin: Origin

    def as_json(self) -> dict[str, Any]:
        sender = "USER" if self.is_inbound else "AGENT"
        return {"sender": sender, "message": self.message, "created_at": instant(self.at_ms)}


class Texts:
    """All texts of the account, in order. An `idempotency-key` is one for all of it, which is a guess."""

    def __init__(self, account: Account) -> None:
        self.all: list[Text] = []
        self._account = account
        self._conversations: dict[tuple[str, str], str] = {}
        self._by_key: dict[str, Text] = {}

    def send(self, fields: Mapping[str, Any], origin: Origin) -> tuple[Text, bool]:
        """Send a text, unless the key is known; and whether it was sent now. Raises RefusedError."""
        key = origin.headers.get("idempotency-key")
        if key is not None and key in self._by_key:
            return self._by_key[key], False
        user, agent = (e164(str(fields.get(name) or "")) for name in ("user_number", "agent_number"))
        if user is None or agent not in self._account.numbers or not fields.get("agent_message"):
            raise errors.invalid("user_number, agent_number (of your account) and agent_message: required")
        text = self._add(user, agent, str(fields["agent_message"]), origin, is_inbound=False)
        if key is not None:
            self._by_key[key] = text
        return text, True

    def leave(self, user_number: str, agent_number: str, message: str) -> Text:
        """The text that follows a voicemail."""
        return self._add(user_number, agent_number, message, Origin(), is_inbound=False)

    def receive(self, user_number: str, agent_number: str, message: str) -> Text:
        agent = self._account.number(agent_number).phone_number
        return self._add(user_number, agent, message, Origin(), is_inbound=True)

    def conversations(self) -> list[dict[str, Any]]:
        return [self._as_json(conversation_id) for conversation_id in self._conversations.values()]

    def conversation(self, conversation_id: str) -> dict[str, Any]:
        if conversation_id not in self._conversations.values():
            raise errors.not_found_in_envelope("Conversation")
        messages = [text.as_json() for text in self.all if text.conversation_id == conversation_id]
        return {**self._as_json(conversation_id), "messages": messages}

    def _as_json(self, conversation_id: str) -> dict[str, Any]:
        texts = [text for text in self.all if text.conversation_id == conversation_id]
        return {
            "id": conversation_id,
            "user_number": texts[0].user_number,
            "agent_number": texts[0].agent_number,
            "message_count": len(texts),
            "created_at": instant(texts[0].at_ms),
        }

    def _add(self, user: str, agent: str, message: str, origin: Origin, *, is_inbound: bool) -> Text:
        account = self._account
        conversation_id = self._conversations.setdefault((user, agent), account.new_id())
        price_usd = account.tariff.text_usd
        account.balance_usd -= price_usd
        text = Text(conversation_id, user, agent, message, is_inbound, price_usd, account.now_ms(), origin)
        self.all.append(text)
        return text
