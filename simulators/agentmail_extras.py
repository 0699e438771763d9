"""What else AgentMail serves of an inbox, a pod or the organization: allow and block lists, label events, metrics.

Several of these answers name the organization, as the vendor's do. Lists are kept and shown, not obeyed; metrics have one
bucket for the whole time, whatever period is asked for.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from metering.clock import instant
from simulators import agentmail_errors as errors
from simulators import agentmail_lists as lists
from simulators.agentmail_behaviour import ORGANIZATION_ID
from simulators.agentmail_organization import Organization
from simulators.agentmail_routes import INBOX, POD, Call, Route, routes

DIRECTIONS, LIST_TYPES = ("send", "receive", "reply"), ("allow", "block")
_Where = tuple[str | None, str | None, str, str]
"""Pod, inbox, direction and type of a list."""


@dataclass(frozen=True, slots=True)
class _Ranked:
    """An entry with its place in the list, which is ordered by entry."""

    rank: int
    shown: dict[str, Any]

    @property
    def position(self) -> tuple[int, int]:
        return 0, self.rank


class Extras:
    def __init__(self, organization: Organization) -> None:
        self._organization = organization
        self._entries: dict[_Where, dict[str, dict[str, Any]]] = {}
        self.routes: list[Route] = [
            *routes(
                {
                    "GET /lists/{direction}/{type}": self._list_entries,
                    "POST /lists/{direction}/{type}": self._create_entry,
                    "GET /lists/{direction}/{type}/{entry}": lambda call: self._entry(call)[1],
                    "DELETE /lists/{direction}/{type}/{entry}": self._delete_entry,
                    "GET /metrics/events": self._count_events,
                    "GET /metrics/usage": self._count_usage,
                    "GET /metrics/rates": self._count_rates,
                },
                "",
                POD,
                INBOX,
            ),
            *routes({"GET /events": self._list_label_events}, INBOX),
        ]

    def _where(self, call: Call) -> _Where:
        """The list of a path; one of the whole organization is not for keys confined to a part of it."""
        direction, list_type = call.ids["direction"], call.ids["type"]
        if direction not in DIRECTIONS or list_type not in LIST_TYPES:
            raise errors.not_found("List")
        if "inbox" in call.ids:
            return call.inbox.pod_id, call.inbox.inbox_id, direction, list_type
        if "pod" not in call.ids and not call.view.is_whole:
            raise errors.forbidden("This key is confined to a part of the organization")
        return call.ids.get("pod"), None, direction, list_type

    def _list_entries(self, call: Call) -> dict[str, Any]:
        entries = sorted(self._entries.get(self._where(call), {}).items())
        ranked = [_Ranked(rank, shown) for rank, (_, shown) in enumerate(entries)]
        return lists.page(call.query, ranked, "entries", lambda each: each.shown, is_ascending=True)

    def _create_entry(self, call: Call) -> dict[str, Any]:
        where, fields = self._where(call), call.fields()
        pod_id, inbox_id, direction, list_type = where
        entry = fields.get("entry")
        if not isinstance(entry, str) or not entry:
            raise errors.invalid("Required", "entry")
        shown = {
            "entry": entry,
            "organization_id": ORGANIZATION_ID,
            **({} if fields.get("reason") is None else {"reason": fields["reason"]}),
            "direction": direction,
            "list_type": list_type,
            "entry_type": "email" if "@" in entry else "domain",
            **({} if pod_id is None else {"pod_id": pod_id}),
            **({} if inbox_id is None else {"inbox_id": inbox_id}),
            "created_at": instant(self._organization.now_ms()),
        }
        return self._entries.setdefault(where, {}).setdefault(entry, shown)

    def _entry(self, call: Call) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """A list, and the entry of the path in it."""
        kept = self._entries.get(self._where(call), {})
        if call.ids["entry"] not in kept:
            raise errors.not_found("List entry")
        return kept, kept[call.ids["entry"]]

    def _delete_entry(self, call: Call) -> None:
        kept, shown = self._entry(call)
        del kept[shown["entry"]]

    def _list_label_events(self, call: Call) -> dict[str, Any]:
        of_inbox = [each for each in self._organization.label_events if each.inbox_id == call.inbox.inbox_id]
        return lists.page(call.query, of_inbox, "events", lambda each: each.as_json())

    # metrics

    def _seen(self, call: Call) -> Counter[str]:
        """How many events of each type the caller may count."""
        happened = self._organization.events.recorded
        return Counter(e.event_type for e in happened if call.view.sees(e.pod_id, e.inbox_id))

    def _count_events(self, call: Call) -> dict[str, Any]:
        asked = call.query.values("event_types")
        counts = {name: count for name, count in self._seen(call).items() if not asked or name in asked}
        return self._series(counts.items(), "count")

    def _count_usage(self, call: Call) -> dict[str, Any]:
        inboxes = call.view.inboxes()
        usage = {
            "message_count": sum(len(inbox.messages) for inbox in inboxes),
            "thread_count": len(call.view.threads()),
            "inbox_count": len(inboxes),
            "pod_count": len(call.view.pods()),
        }
        return self._series(usage.items(), "value")

    def _count_rates(self, call: Call) -> dict[str, Any]:
        """Per message; the vendor counts recipients."""
        seen = self._seen(call)
        sent = seen["message.sent"]
        at = instant(self._organization.now_ms())
        failed = {"bounce": seen["message.bounced"], "complaint": seen["message.complained"]}
        return {
            name: [{"timestamp": at, "rate": count / sent if sent else None, "sent": sent}]
            for name, count in failed.items()
        }

    def _series(self, counts: Iterable[tuple[str, int]], name: str) -> dict[str, Any]:
        at = instant(self._organization.now_ms())
        return {each: [{"timestamp": at, name: count}] for each, count in counts}
