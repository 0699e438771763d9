"""What AgentMail's endpoints do, one method each."""

from collections.abc import Callable
from typing import Any

from metering.clock import instant
from simulators import agentmail_content as contents
from simulators import agentmail_errors as errors
from simulators import agentmail_lists as lists
from simulators.agentmail_mail import Mail, Sent
from simulators.agentmail_organization import Organization, client_id_of
from simulators.agentmail_parts import Attachment
from simulators.agentmail_routes import INBOX, POD, Call, Route, routes
from simulators.agentmail_state import SYSTEM_LABELS, Draft, Inbox, Message, Thread
from simulators.paths import decoded

BATCH_GET_MAX, BATCH_UPDATE_MAX = 500, 50
THREAD_LABEL_MESSAGES_MAX = 100
"""A thread with so many messages refuses new labels (422)."""


class Api:
    """The endpoints of inboxes, messages, threads and drafts. `link` makes a signed URL and says when it expires."""

    def __init__(
        self,
        organization: Organization,
        mail: Mail,
        link: Callable[[bytes, str], tuple[str, int]],
    ) -> None:
        self._organization = organization
        self._mail = mail
        self._link = link
        self.routes: list[Route] = [
            *routes(
                {
                    "GET /pods": self._list_pods,
                    "POST /pods": self._create_pod,
                    "GET /pods/{pod}": lambda call: call.view.pod(call.ids["pod"]).as_json(),
                    "DELETE /pods/{pod}": self._delete_pod,
                }
            ),
            *routes(
                {
                    "GET /inboxes": self._list_inboxes,
                    "POST /inboxes": self._create_inbox,
                    "GET /inboxes/search": lambda call: lists.search_inboxes(call.query, call.view.inboxes()),
                    "GET /inboxes/{inbox}": lambda call: call.inbox.as_json(),
                    "PATCH /inboxes/{inbox}": self._update_inbox,
                    "DELETE /inboxes/{inbox}": lambda call: organization.delete_inbox(call.inbox),
                },
                "",
                POD,
            ),
            *routes(
                {
                    "GET /threads": self._list_threads,
                    "GET /threads/search": lambda call: lists.search(
                        call.query, call.view.threads(), "threads"
                    ),
                    "GET /threads/{thread}": self._get_thread,
                    "PATCH /threads/{thread}": self._update_thread,
                    "DELETE /threads/{thread}": self._delete_thread,
                    "GET /threads/{thread}/attachments/{attachment}": self._get_thread_attachment,
                    "GET /drafts": self._list_drafts,
                    "GET /drafts/{draft}": lambda call: call.view.draft(call.ids["draft"]).as_json(),
                    "GET /drafts/{draft}/attachments/{attachment}": self._get_draft_attachment,
                },
                "",
                POD,
                INBOX,
            ),
            *routes(
                {
                    "POST /drafts": self._create_draft,
                    "PATCH /drafts/{draft}": self._update_draft,
                    "DELETE /drafts/{draft}": self._delete_draft,
                    "POST /drafts/{draft}/send": self._send_draft,
                    "GET /messages": self._list_messages,
                    "GET /messages/search": self._search_messages,
                    "POST /messages/batch-get": self._batch_get,
                    "POST /messages/batch-update": self._batch_update,
                    "POST /messages/send": self._send,
                    "POST /messages/{message}/reply": self._reply,
                    "POST /messages/{message}/reply-all": self._reply_all,
                    "POST /messages/{message}/forward": self._forward,
                    "GET /messages/{message}/raw": self._get_raw,
                    "GET /messages/{message}/attachments/{attachment}": self._get_attachment,
                    "GET /messages/{message}": lambda call: self._message(call).as_json(),
                    "PATCH /messages/{message}": self._update_message,
                    "DELETE /messages/{message}": lambda call: self._mail.delete(
                        call.inbox, self._message(call)
                    ),
                },
                INBOX,
            ),
        ]

    # pods and inboxes

    def _list_pods(self, call: Call) -> dict[str, Any]:
        return lists.page(call.query, call.view.pods(), "pods", lambda pod: pod.as_json())

    def _create_pod(self, call: Call) -> dict[str, Any]:
        if not call.view.is_whole:
            raise errors.forbidden("This key may not create pods")
        return self._organization.create_pod(call.fields()).as_json()

    def _delete_pod(self, call: Call) -> None:
        self._organization.delete_pod(call.view.pod(call.ids["pod"]))

    def _list_inboxes(self, call: Call) -> dict[str, Any]:
        return lists.page(call.query, call.view.inboxes(), "inboxes", lambda inbox: inbox.as_json())

    def _create_inbox(self, call: Call) -> dict[str, Any]:
        pods = call.view.pods()
        pod = (
            self._organization.default_pod
            if self._organization.default_pod in pods
            else next(iter(pods), None)
        )
        if "pod" in call.ids:
            pod = call.view.pod(call.ids["pod"])
        if pod is None:
            raise errors.forbidden("This key may not create inboxes")
        return self._organization.create_inbox(pod, call.fields()).as_json()

    def _update_inbox(self, call: Call) -> dict[str, Any]:
        inbox, fields = call.inbox, call.fields()
        if not {"display_name", "status", "metadata"} & fields.keys():
            raise errors.invalid("Expected display_name, status, or metadata")
        self._organization.update_inbox(inbox, fields)
        return inbox.as_json()

    # messages

    def _message(self, call: Call) -> Message:
        return call.view.message(call.inbox, call.ids["message"])

    def _list_messages(self, call: Call) -> dict[str, Any]:
        messages = lists.matching(call.query, lists.labelled(call.query, call.inbox.messages.values()))
        return lists.page(call.query, messages, "messages", Message.item)

    def _search_messages(self, call: Call) -> dict[str, Any]:
        return lists.search(call.query, call.inbox.messages.values(), "messages")

    def _batch(self, call: Call, fields: dict[str, Any], limit: int) -> tuple[list[Message], int]:
        """The messages that are there, in the order asked for, and how many were asked for."""
        message_ids = contents.strings(fields.get("message_ids"), "message_ids")
        if not 1 <= len(message_ids) <= limit:
            raise errors.invalid(f"Expected 1 to {limit} ids", "message_ids")
        known = call.inbox.messages
        return [known[each] for each in message_ids if each in known], len(message_ids)

    def _batch_get(self, call: Call) -> dict[str, Any]:
        messages, asked = self._batch(call, call.fields(), BATCH_GET_MAX)
        return {"limit": asked, "count": len(messages), "messages": [message.item() for message in messages]}

    def _batch_update(self, call: Call) -> dict[str, Any]:
        fields = call.fields()
        messages, asked = self._batch(call, fields, BATCH_UPDATE_MAX)
        if not fields.get("add_labels") and not fields.get("remove_labels"):
            raise errors.invalid("Expected add_labels or remove_labels")
        updates = [self._relabel(call.inbox, message, fields) for message in messages]
        return {"limit": asked, "count": len(updates), "updates": updates}

    def _update_message(self, call: Call) -> dict[str, Any]:
        return self._relabel(call.inbox, self._message(call), call.fields())

    def _relabel(self, inbox: Inbox, message: Message, fields: dict[str, Any]) -> dict[str, Any]:
        self._organization.relabel(inbox, message, contents.relabelled(message.labels, fields))
        return {"message_id": message.message_id, "labels": message.labels}

    def _get_raw(self, call: Call) -> dict[str, Any]:
        message = self._message(call)
        raw = message.raw()
        url, expires_ms = self._link(raw, "message/rfc822")
        named = {"message_id": message.message_id, "size": len(raw)}
        return {**named, "download_url": url, "expires_at": instant(expires_ms)}

    def _get_attachment(self, call: Call) -> dict[str, Any]:
        return self._attached(call, self._message(call))

    def _attached(self, call: Call, holder: Message | Thread | Draft) -> dict[str, Any]:
        attachment: Attachment | None = holder.attachment(call.ids["attachment"])
        if attachment is None:
            raise errors.not_found("Attachment")
        kind = attachment.content_type or "application/octet-stream"
        url, expires_ms = self._link(attachment.content, kind)
        return {**attachment.as_json(), "download_url": url, "expires_at": instant(expires_ms)}

    # sending

    def _send_once(self, call: Call, send: Callable[[], Sent]) -> dict[str, Any]:
        key = call.origin("").idempotency_key
        asked = (decoded(call.request.path), call.fields())
        call.sent, is_new = self._mail.once(key, asked, send)
        call.is_repeated = not is_new
        return call.sent.as_json()

    def _send(self, call: Call) -> dict[str, Any]:
        inbox = call.inbox
        return self._send_once(
            call,
            lambda: self._mail.send(inbox, self._mail.composed(inbox, call.fields()), call.origin("send")),
        )

    def _reply(self, call: Call) -> dict[str, Any]:
        return self._answer(call, "reply", call.fields())

    def _reply_all(self, call: Call) -> dict[str, Any]:
        fields = {name: value for name, value in call.fields().items() if name not in ("to", "cc", "bcc")}
        return self._answer(call, "reply-all", {**fields, "reply_all": True})

    def _answer(self, call: Call, via: str, fields: dict[str, Any]) -> dict[str, Any]:
        inbox = call.inbox

        def send() -> Sent:
            original = self._message(call)
            content = self._mail.composed(inbox, fields, reply_to=original)
            return self._mail.send(inbox, content, call.origin(via), answers=original)

        return self._send_once(call, send)

    def _forward(self, call: Call) -> dict[str, Any]:
        inbox = call.inbox

        def send() -> Sent:
            original = self._message(call)
            content = self._mail.composed(inbox, call.fields(), forward_of=original)
            return self._mail.send(inbox, content, call.origin("forward"), answers=original)

        return self._send_once(call, send)

    # threads

    def _list_threads(self, call: Call) -> dict[str, Any]:
        threads = lists.matching(call.query, lists.labelled(call.query, call.view.threads()))
        return lists.page(call.query, threads, "threads", Thread.item)

    def _thread(self, call: Call) -> Thread:
        return call.view.thread(call.ids["thread"])

    def _get_thread(self, call: Call) -> dict[str, Any]:
        """The page holds the newest messages, the oldest of them first."""
        thread = self._thread(call)
        shown = lists.page(
            call.query, thread.messages, "messages", lambda message: message.as_json(), is_ascending=False
        )
        shown["messages"].reverse()
        return {**thread.item(), **shown}

    def _update_thread(self, call: Call) -> dict[str, Any]:
        thread, fields = self._thread(call), call.fields()
        touched = {
            label for name in ("add_labels", "remove_labels") for label in contents.strings(fields.get(name))
        }
        if touched & SYSTEM_LABELS:
            raise errors.invalid("System labels cannot be changed")
        if len(thread.messages) >= THREAD_LABEL_MESSAGES_MAX:
            raise errors.unprocessable("Thread has too many messages")
        for message in thread.messages:
            self._relabel(call.view.inbox(thread.inbox_id), message, fields)
        return {"thread_id": thread.thread_id, "labels": thread.labels}

    def _delete_thread(self, call: Call) -> None:
        thread = self._thread(call)
        self._mail.delete(call.view.inbox(thread.inbox_id), *thread.messages)

    def _get_thread_attachment(self, call: Call) -> dict[str, Any]:
        return self._attached(call, self._thread(call))

    # drafts

    def _list_drafts(self, call: Call) -> dict[str, Any]:
        drafts = lists.labelled(call.query, call.view.drafts())
        return lists.page(call.query, drafts, "drafts", Draft.item)

    def _draft(self, call: Call) -> Draft:
        return call.view.draft(call.ids["draft"])

    def _get_draft_attachment(self, call: Call) -> dict[str, Any]:
        return self._attached(call, self._draft(call))

    def _create_draft(self, call: Call) -> dict[str, Any]:
        inbox, fields = call.inbox, call.fields()
        client_id = client_id_of(fields)
        known = self._organization.known(Draft, client_id)
        if known is not None:
            return known.as_json()
        reply_id, forward_id = fields.get("in_reply_to"), fields.get("forward_of")
        if reply_id is not None and forward_id is not None:
            raise errors.invalid("in_reply_to and forward_of exclude each other", "forward_of")
        reply_to = None if reply_id is None else call.view.message(inbox, reply_id)
        if forward_id is not None:
            call.view.message(inbox, forward_id)
        now_ms = self._organization.now_ms()
        draft = Draft(
            number=self._organization.number(),
            inbox_id=inbox.inbox_id,
            draft_id=self._organization.new_id(),
            content=self._mail.composed(inbox, fields, reply_to=reply_to),
            created_ms=now_ms,
            updated_ms=now_ms,
            client_id=client_id,
            in_reply_to=reply_id,
            forward_of=forward_id,
        )
        _schedule(draft, fields)
        inbox.drafts[draft.draft_id] = draft
        self._organization.remember(client_id, draft)
        return draft.as_json()

    def _update_draft(self, call: Call) -> dict[str, Any]:
        draft, fields = self._draft(call), call.fields()
        content = contents.changed(draft.content, fields, self._organization.new_id)
        _schedule(draft, fields)
        draft.content, draft.updated_ms = content, self._organization.now_ms()
        return draft.as_json()

    def _delete_draft(self, call: Call) -> None:
        draft = self._draft(call)
        del call.inbox.drafts[draft.draft_id]
        self._organization.forget(draft.client_id, draft)

    def _send_draft(self, call: Call) -> dict[str, Any]:
        def send() -> Sent:
            draft = self._draft(call)
            labels = contents.relabelled(draft.content.labels, call.fields())
            return self._mail.send_draft(call.inbox, draft, call.origin("draft"), labels=labels)

        return self._send_once(call, send)


def _schedule(draft: Draft, fields: dict[str, Any]) -> None:
    """As `send_at` says; null takes it back, and without it nothing changes."""
    if "send_at" not in fields:
        return
    at = fields["send_at"]
    draft.send_at_ms = None if at is None else lists.parse_instant(at, "send_at")
    draft.send_status = None if at is None else "scheduled"
