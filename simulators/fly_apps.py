"""Apps of the simulated Fly, their addresses and their secrets."""

import re
from collections.abc import Mapping
from typing import Any

import httpx

from simulators import fly_errors as errors
from simulators.fly_organization import ORG_SLUG, Organization
from simulators.fly_state import Address, App
from simulators.fly_turn import ACCEPTED, CREATED, EMPTY, Call, Given, Handler, given

NAME = re.compile(r"[a-z0-9-]{1,62}")
ADDRESS_KINDS = ("v4", "shared_v4", "v6", "private_v6")


class Apps:
    """Their endpoints."""

    def __init__(self, organization: Organization) -> None:
        self._organization = organization
        self.routes: Mapping[str, Handler] = {
            "GET /apps": self._list,
            "POST /apps": self._create,
            "GET /apps/{app}": lambda call: given(self._shown(self._app(call))),
            "DELETE /apps/{app}": self._delete,
            "GET /apps/{app}/ip_assignments": self._addresses,
            "POST /apps/{app}/ip_assignments": self._assign,
            "DELETE /apps/{app}/ip_assignments/{ip}": self._release,
            "GET /apps/{app}/secrets": self._secrets,
            "POST /apps/{app}/secrets": self._set_secrets,
            "GET /apps/{app}/secrets/{secret}": self._secret,
            "POST /apps/{app}/secrets/{secret}": self._set_secret,
            "DELETE /apps/{app}/secrets/{secret}": self._delete_secret,
        }

    def _app(self, call: Call) -> App:
        return self._organization.app(call.ids["app"])

    def _shown(self, app: App) -> dict[str, Any]:
        machines = [machine for machine in self._organization.app_machines(app) if machine.exists]
        return {
            "id": app.id,
            "internal_numeric_id": app.number,
            "name": app.name,
            "network": app.network,
            "machine_count": len(machines),
            "volume_count": sum(volume.exists for volume in self._organization.app_volumes(app)),
            "organization": {"name": ORG_SLUG, "slug": ORG_SLUG},
            "status": "deployed" if machines else "pending",
        }

    def _list(self, call: Call) -> Given:
        check_org(call.asked("org_slug"))
        apps = [self._shown(app) for app in self._organization.apps.values()]
        return given({"total_apps": len(apps), "apps": apps})

    def _create(self, call: Call) -> Given:
        fields = call.fields()
        name = fields.get("app_name") or fields.get("name") or ""
        check_org(fields.get("org_slug") or "")
        if name in self._organization.foreign_apps:
            raise errors.name_taken()
        if name in self._organization.apps:
            raise errors.name_taken_here()
        if not NAME.fullmatch(name):
            raise errors.unprocessable(
                "Validation failed: Name may only contain numbers, lowercase letters and dashes"
            )
        app = self._organization.create_app(name, fields.get("network") or "default")
        return given({"id": app.id, "created_at": app.created_ms}, CREATED)

    def _delete(self, call: Call) -> Given:
        """That one with machines needs force is a guess."""
        app = self._app(call)
        is_used = any(machine.exists for machine in self._organization.app_machines(app))
        if is_used and not call.is_asked("force"):
            raise errors.precondition("app has machines")
        self._organization.delete_app(app)
        return Given(status=ACCEPTED)

    # addresses

    def _addresses(self, call: Call) -> Given:
        return given({"ips": [address.as_json() for address in self._app(call).addresses]})

    def _assign(self, call: Call) -> Given:
        app, fields = self._app(call), call.fields()
        kind, network = fields.get("type") or "", fields.get("network") or ""
        if kind not in ADDRESS_KINDS:
            raise errors.unprocessable(f"type must be one of {', '.join(ADDRESS_KINDS)}")
        if kind == "private_v6" and network != app.network:
            raise errors.unprocessable(f"network {network!r} is not the app's")
        repeated_ip = self._organization.habits.repeated_ip
        if httpx.codes.is_error(repeated_ip) and any(address.kind == kind for address in app.addresses):
            raise errors.ip_allocated(repeated_ip, kind)
        address = self._new_address(kind, fields.get("region") or "global", network, fields)
        app.addresses.append(address)
        return given(address.as_json())

    def _new_address(self, kind: str, region: str, network: str, fields: Mapping[str, Any]) -> Address:
        number = self._organization.next_number()
        ip = {
            "v4": f"137.66.{number >> 8 & 255}.{number & 255}",
            "shared_v4": f"66.241.{number >> 8 & 255}.{number & 255}",
            "v6": f"2a09:8280:1::{number:x}:0",
            "private_v6": f"fdaa:0:{number:x}::2",
        }[kind]
        service_name = fields.get("service_name") or ""
        return Address(ip, kind, region, network, service_name, self._organization.now_ms())

    def _release(self, call: Call) -> Given:
        app = self._app(call)
        for address in app.addresses:
            if address.ip == call.ids["ip"]:
                app.addresses.remove(address)
                return Given(status=EMPTY)
        raise errors.not_found("ip address")

    # secrets

    def _secrets(self, call: Call) -> Given:
        app = self._app(call)
        self._check_version(app, call)
        return given({"secrets": [secret.as_json() for secret in app.secrets.values()]})

    def _set_secrets(self, call: Call) -> Given:
        app = self._app(call)
        for name, value in (call.fields().get("values") or {}).items():
            self._organization.set_secret(app, name, value)
        app.secrets_version += 1
        return given({"version": app.secrets_version, "Version": app.secrets_version})

    def _secret(self, call: Call) -> Given:
        app, name = self._app(call), call.ids["secret"]
        self._check_version(app, call)
        if name not in app.secrets:
            raise errors.not_found("secret")
        return given(app.secrets[name].as_json())

    def _set_secret(self, call: Call) -> Given:
        app, name, value = self._app(call), call.ids["secret"], call.fields().get("value")
        if not isinstance(value, str):
            raise errors.invalid("value is missing")
        self._organization.set_secret(app, name, value)
        app.secrets_version += 1
        return given({**app.secrets[name].as_json(), "version": app.secrets_version}, CREATED)

    def _delete_secret(self, call: Call) -> Given:
        app, name = self._app(call), call.ids["secret"]
        if name not in app.secrets:
            raise errors.not_found("secret")
        self._organization.set_secret(app, name, None)
        app.secrets_version += 1
        return given({"version": app.secrets_version})

    def _check_version(self, app: App, call: Call) -> None:
        """Whether the secrets are as new as is asked for. Raises RefusedError."""
        text = call.asked("min_version", "0")
        if not text.isascii() or not text.isdigit():
            raise errors.invalid("min_version is not a number")
        check_secrets_version(app, int(text))


def check_secrets_version(app: App, wished: int) -> None:
    """That a version which is not there is refused so is a guess. Raises RefusedError."""
    if wished > app.secrets_version:
        raise errors.precondition(f"secrets version {wished} is not available yet")


def check_org(slug: str) -> None:
    """Raises RefusedError for any organization but our own."""
    if slug != ORG_SLUG:
        raise errors.not_found("organization")
