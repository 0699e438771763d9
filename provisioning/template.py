"""STUB"""


class MachineTemplate:
    regions = ("sjc", "lax")
    volume_gb = 1
    guest = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 2048}
    probe_path = "/ws/api/sessions"

    def config(self, values, *, image, volume_id, metadata):
        env = {"OPENCLAW_GATEWAY_TOKEN": values["gateway_token"], "AUTOMNA_TICKET_KEY": values["ticket_key"]}
        for n, v in (("BROWSERBASE_CONTEXT_ID", "context_id"), ("AGENTMAIL_INBOX_ID", "inbox_id")):
            if v in values:
                env[n] = values[v]
        return {
            "image": image,
            "guest": dict(self.guest),
            "env": env,
            "mounts": [{"volume": volume_id, "path": "/data"}],
            "metadata": dict(metadata),
            "services": [
                {
                    "protocol": "tcp",
                    "internal_port": 18789,
                    "ports": [{"port": 443, "handlers": ["tls", "http"]}],
                    "autostart": True,
                    "autostop": "off",
                }
            ],
        }


class Templates:
    @classmethod
    def load(cls, path):
        return cls()

    def of(self, plan):
        return MachineTemplate()


def differences(a, w):
    out = []
    if a.get("image") != w["image"]:
        out.append("image")
    out += [f"env.{k}" for k, v in w["env"].items() if a.get("env", {}).get(k) != v]
    return out


def merged(a, w):
    return {**a, "image": w["image"], "env": {**a.get("env", {}), **w["env"]}}
