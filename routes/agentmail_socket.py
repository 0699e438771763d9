"""AgentMail's websocket: mail that arrives, and what becomes of mail that was sent, as it happens.

Whoever subscribes without ids hears of the whole account there; here of their own pod. Events name their inbox (fields of
agentmail 2.0.18, Python); those that name none are the account's.
"""

from proxy.meters import Free
from proxy.surface import EventSocket, Example, MessageIds, Operation, QueryKey
from routes.agentmail_errors import shown_socket_error, socket_error

INBOX, POD = "inbox", "pod"
"""Kinds of objects that the vendor keeps."""
ORGANIZATION_ID, ANY_ORGANIZATION = "organization_id", "organization"
"""The account's own id, where it stands, and the word that stands for it."""

SOCKET = Operation(
    "GET",
    "/v0",
    meter=Free(),
    query=(),
    namespaced=("client_id",),
    socket=EventSocket(
        "wss://ws.agentmail.to",
        url_env="AGENTMAIL_WS_UPSTREAM_URL",
        asks="subscribe",
        choices=("event_types",),
        ids=(
            MessageIds(INBOX, one="inbox_id", many="inbox_ids", is_caseless=True),
            MessageIds(POD, one="pod_id", many="pod_ids"),
        ),
        home=POD,
        answers=("subscribed",),
        errors="error",
        says_error=socket_error,
        shown_error=shown_socket_error,
        more_token_places=(QueryKey("api_key"),),
        contents=("headers", "metadata"),
        conceals={ORGANIZATION_ID: ANY_ORGANIZATION},
    ),
    example=Example("/v0", answer=b""),
)
