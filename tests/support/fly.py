"""The simulated Fly for tests: where the vendor's document lies, and a client that makes what most tests need."""

from pathlib import Path

import httpx

from simulators.fly import ORG_SLUG, TOKEN, VENDOR_KEY

DOCUMENT = Path(__file__).resolve().parents[2].parent / "shared" / "vendors" / "fly-machines.json"
"""The vendor's OpenAPI document, beside the project; absent in a checkout on its own."""
IMAGE = "registry.fly.io/agent@sha256:5e1f"


def fly_client(url, key=VENDOR_KEY, **options):
    return httpx.AsyncClient(
        base_url=f"{url}/v1", headers={"authorization": f"Bearer {key}"}, trust_env=False, **options
    )


def config(*, token="gw-token", volume=None, image=IMAGE, **more):
    """A machine as the platform makes them; `more` are further fields of it."""
    service = {
        "protocol": "tcp",
        "internal_port": 18789,
        "ports": [{"port": 443, "handlers": ["tls", "http"]}],
        "autostop": "off",
        "autostart": True,
    }
    mounts = {"mounts": [{"volume": volume, "path": "/data"}]} if volume else {}
    made = {
        "image": image,
        "env": {TOKEN: token},
        "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 2048},
        "services": [service],
        **mounts,
    }
    return {**made, **more}


async def made(client, path, **fields):
    """What a POST made."""
    answer = await client.post(path, json=fields)
    assert answer.is_success, answer.text
    return answer.json()


async def made_app(client, name="u-ada", *, network="net-ada"):
    await made(client, "/apps", app_name=name, org_slug=ORG_SLUG, network=network)
    return f"/apps/{name}"


async def made_volume(client, app, name="data_1", region="sjc", **fields):
    return await made(client, f"{app}/volumes", name=name, region=region, **fields)


async def made_machine(client, app, *, name="gw", region="sjc", fields=None, **of_config):
    """`fields` are those of the request, `of_config` those of `config`."""
    return await made(
        client, f"{app}/machines", name=name, region=region, config=config(**of_config), **(fields or {})
    )


def refused(answer):
    """Status, and what stands in the error's two fields."""
    error = answer.json()
    assert set(error) == {"error", "status"}, error
    return answer.status_code, error["status"], error["error"]
