"""What AgentMail lets the owner of the account do: keys, webhooks, and who one is."""

from typing import Any

from metering.clock import instant
from simulators import agentmail_errors as errors
from simulators.agentmail_behaviour import ORGANIZATION_ID
from simulators.agentmail_organization import Organization, Scope, client_id_of
from simulators.agentmail_routes import POD, Call, Route, routes

KEY_PREFIX_CHARS = 12


class Account:
    """The endpoints of an owner. Webhooks are kept, not called: a test delivers what it wants delivered."""

    def __init__(self, organization: Organization, webhook_secret: str) -> None:
        self.keys: dict[str, Scope] = {}
        """The scope of every key but the platform's own."""
        self.webhooks: dict[str, dict[str, Any]] = {}
        self._organization = organization
        self._webhook_secret = webhook_secret
        self._key_ids: dict[str, str] = {}
        keys = {"POST /api-keys": self._create_key, "DELETE /api-keys/{api_key}": self._delete_key}
        self.routes: list[Route] = [
            *routes(
                {
                    "GET /auth/me": self._me,
                    "GET /organizations": self._get_organization,
                    "GET /webhooks": self._list_webhooks,
                    "POST /webhooks": self._create_webhook,
                    "GET /webhooks/{webhook}": self._get_webhook,
                    "DELETE /webhooks/{webhook}": self._delete_webhook,
                }
            ),
            *routes(keys, "", POD),
        ]

    def mint(self, scope: Scope) -> str:
        key = f"am_us_{self._organization.new_id().replace('-', '')}"
        self.keys[key] = scope
        return key

    def _me(self, call: Call) -> dict[str, Any]:
        scope = call.view.scopes[0]
        organization = {"organization_id": ORGANIZATION_ID}
        if scope.inbox_id is not None:
            pod_id = call.view.inbox(scope.inbox_id).pod_id
            own = {
                "scope_type": "inbox",
                "scope_id": scope.inbox_id,
                "inbox_id": scope.inbox_id,
                "pod_id": pod_id,
            }
            return {**organization, **own}
        if scope.pod_id is not None:
            return {**organization, "scope_type": "pod", "scope_id": scope.pod_id, "pod_id": scope.pod_id}
        return {**organization, "scope_type": "organization", "scope_id": ORGANIZATION_ID}

    def _owned(self, call: Call) -> None:
        if not call.view.is_whole:
            raise errors.forbidden("This key is confined to a part of the organization")

    def _get_organization(self, call: Call) -> dict[str, Any]:
        self._owned(call)
        at = instant(self._organization.default_pod.created_ms)
        limit = self._organization.plan.inboxes_max
        return {
            "organization_id": ORGANIZATION_ID,
            "inbox_count": len(self._organization.inboxes),
            "domain_count": 0,
            **({} if limit is None else {"inbox_limit": limit}),
            "updated_at": at,
            "created_at": at,
        }

    def _create_key(self, call: Call) -> dict[str, Any]:
        fields = call.fields()
        if "pod" not in call.ids:
            self._owned(call)
        key = self.mint(Scope(pod_id=call.ids.get("pod")))
        key_id = self._organization.new_id()
        self._key_ids[key_id] = key
        return {
            "api_key_id": key_id,
            "api_key": key,
            "prefix": key[:KEY_PREFIX_CHARS],
            "name": fields.get("name") or "key",
            **({"pod_id": call.ids["pod"]} if "pod" in call.ids else {}),
            "created_at": instant(self._organization.now_ms()),
        }

    def _delete_key(self, call: Call) -> None:
        key = self._key_ids.get(call.ids["api_key"])
        if key is None or ("pod" in call.ids and self.keys[key].pod_id != call.ids["pod"]):
            raise errors.not_found("API key")
        if "pod" not in call.ids:
            self._owned(call)
        del self._key_ids[call.ids["api_key"]], self.keys[key]

    def _list_webhooks(self, call: Call) -> dict[str, Any]:
        self._owned(call)
        webhooks = list(self.webhooks.values())
        return {"count": len(webhooks), "webhooks": webhooks}

    def _create_webhook(self, call: Call) -> dict[str, Any]:
        self._owned(call)
        fields = call.fields()
        client_id = client_id_of(fields)
        for known in self.webhooks.values():
            if client_id is not None and known.get("client_id") == client_id:
                return known
        if not isinstance(fields.get("url"), str):
            raise errors.invalid("Required", "url")
        at = instant(self._organization.now_ms())
        named: dict[str, Any] = {
            name: fields[name]
            for name in ("event_types", "pod_ids", "inbox_ids", "client_id")
            if name in fields
        }
        webhook: dict[str, Any] = {
            "webhook_id": f"ep_{self._organization.new_id()}",
            "url": fields["url"],
            **named,
            "secret": self._webhook_secret,
            "enabled": True,
            "updated_at": at,
            "created_at": at,
        }
        self.webhooks[webhook["webhook_id"]] = webhook
        return webhook

    def _get_webhook(self, call: Call) -> dict[str, Any]:
        self._owned(call)
        webhook = self.webhooks.get(call.ids["webhook"])
        if webhook is None:
            raise errors.not_found("Webhook")
        return webhook

    def _delete_webhook(self, call: Call) -> None:
        del self.webhooks[self._get_webhook(call)["webhook_id"]]
