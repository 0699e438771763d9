"""What a machine is: what ships, what a file may say, how it is refused when it says something else, and what Fly is given."""

import base64
import json
import re
from dataclasses import fields
from importlib import resources
from pathlib import Path

import pytest

from provisioning.changes import differences
from provisioning.placeholders import PLACEHOLDERS
from provisioning.template import FILE_BYTES_MAX, MachineTemplate, TemplateError, Templates, check_image
from simulators.fly import FlySimulator, Habits
from tests.support.fly import DOCUMENT, fly_client, made_app, made_volume
from tests.support.machines import IMAGE

PROXY = "https://proxy.example.com"
TOKEN = "amp_the-gateway-token"
VALUES = {
    "gateway_token": TOKEN,
    "proxy": PROXY,
    "ticket_key": "5ec7e7",
    "hook_token": "hook_secret",
    "project_id": "project-1",
    "context_id": "context-1",
    "inbox_id": "ada@mail.example",
}
CONFIG_PATH = "/etc/automna/openclaw.json"
VOLUME_PATH = "/home/node/.openclaw"
SIZE = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 2048}
ALWAYS = {"policy": "always"}
ON_FAILURE = {"policy": "on-failure", "max_retries": 10}
SHIPPED = [
    # plan, autostop, machines running, restart
    ("free", "suspend", 0, ON_FAILURE),
    ("lite", "suspend", 0, ON_FAILURE),
    ("starter", "suspend", 0, ON_FAILURE),
    ("pro", "off", 1, ALWAYS),
    ("power", "off", 1, ALWAYS),
    ("business", "off", 1, ALWAYS),
    ("a plan that the file does not name", "suspend", 0, ON_FAILURE),
]
PLANS = [plan for plan, *_ in SHIPPED]
WHOLE = resources.files("provisioning").joinpath("machines.toml").read_text(encoding="utf-8")


def config_of(template: MachineTemplate, *without: str, **more: str) -> dict:
    values = {name: value for name, value in {**VALUES, **more}.items() if name not in without}
    return template.config(values, image=IMAGE, volume_id="vol_1", metadata={"user": "u", "generation": "1"})


def openclaw_json(config: dict) -> dict:
    (file,) = config["files"]
    assert file["guest_path"] == CONFIG_PATH
    return json.loads(base64.b64decode(file["raw_value"]))


def texts(node: object) -> list[str]:
    if isinstance(node, dict | list):
        return [text for each in (node.values() if isinstance(node, dict) else node) for text in texts(each)]
    return [node] if isinstance(node, str) else []


def written(folder: Path, text: str, **files: str) -> Path:
    """A machines file, and others beside it."""
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- what ships ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "autostop", "running", "restart"), SHIPPED)
def test_the_machines_that_ship_are_those_of_the_table(plan, autostop, running, restart):
    template = Templates.load().of(plan)
    config = config_of(template)
    assert config["image"] == IMAGE
    assert config["guest"] == template.guest == SIZE
    assert config["services"] == [
        {
            "protocol": "tcp",
            "internal_port": 18789,
            "ports": [
                {"port": 443, "handlers": ["tls", "http"]},
                {"port": 80, "handlers": ["http"], "force_https": True},
            ],
            "autostart": True,
            "autostop": autostop,
            "min_machines_running": running,
        }
    ]
    assert config["mounts"] == [{"volume": "vol_1", "path": VOLUME_PATH}]
    assert config["restart"] == restart
    assert config["stop_config"] == {"signal": "SIGTERM", "timeout": "1m0s"}
    assert config["metadata"] == {"user": "u", "generation": "1"}
    assert (template.regions[0], template.volume_gb, template.probe_path) == ("sjc", 1, "/startupz")


ENVIRONMENT = {
    "OPENCLAW_GATEWAY_TOKEN": TOKEN,
    "OPENCLAW_CONFIG_PATH": CONFIG_PATH,
    "AUTOMNA_PROXY_URL": PROXY,
    "AUTOMNA_TICKET_KEY": "5ec7e7",
    "AUTOMNA_HOOK_TOKEN": "hook_secret",
    "ANTHROPIC_API_KEY": TOKEN,
    "ANTHROPIC_BASE_URL": f"{PROXY}/api/llm",
    "OPENAI_API_KEY": TOKEN,
    "OPENAI_BASE_URL": f"{PROXY}/api/openai/v1",
    "GEMINI_API_KEY": TOKEN,
    "GOOGLE_API_KEY": TOKEN,
    "GOOGLE_GEMINI_BASE_URL": f"{PROXY}/api/gemini",
    "GOOGLE_API_BASE_URL": f"{PROXY}/api/gemini",
    "BRAVE_API_KEY": TOKEN,
    "BRAVE_API_URL": f"{PROXY}/api/brave",
    "BROWSERBASE_API_KEY": TOKEN,
    "BROWSERBASE_BASE_URL": f"{PROXY}/api/browserbase",
    "BROWSERBASE_API_URL": f"{PROXY}/api/browserbase",
    "BROWSERBASE_PROJECT_ID": "project-1",
    "BROWSERBASE_CONTEXT_ID": "context-1",
    "AGENTMAIL_INBOX_ID": "ada@mail.example",
}


def test_an_agent_finds_in_its_environment_what_it_expects():
    assert config_of(Templates.load().of("pro"))["env"] == ENVIRONMENT


@pytest.mark.parametrize(
    ("value", "variable"),
    [
        ("hook_token", "AUTOMNA_HOOK_TOKEN"),
        ("project_id", "BROWSERBASE_PROJECT_ID"),
        ("context_id", "BROWSERBASE_CONTEXT_ID"),
        ("inbox_id", "AGENTMAIL_INBOX_ID"),
    ],
)
def test_a_variable_without_its_value_is_left_out(value, variable):
    template = Templates.load().of("pro")
    expected = {name: text for name, text in ENVIRONMENT.items() if name != variable}
    assert config_of(template, value)["env"] == config_of(template, **{value: ""})["env"] == expected


@pytest.mark.parametrize("value", ["gateway_token", "proxy", "ticket_key"])
def test_no_machine_is_without_its_token_its_proxy_and_its_ticket_key(value):
    with pytest.raises(
        TemplateError, match=re.escape(f"{{{value}}}: no value given, and every machine needs one")
    ):
        config_of(Templates.load().of("pro"), value)


def test_a_value_that_is_no_placeholders_is_refused():
    with pytest.raises(
        TemplateError, match=re.escape("{hok_token}: no placeholder, expected {context_id}, ")
    ):
        config_of(Templates.load().of("pro"), hok_token="x")


def test_openclaw_is_configured_to_reach_nobody_but_the_proxy_and_no_token_stands_in_its_file():
    config = openclaw_json(config_of(Templates.load().of("pro")))
    addresses = [text for text in texts(config) if "://" in text]
    assert len(addresses) > 6
    assert {text for text in addresses if not text.startswith(f"{PROXY}/api/")} == set()
    providers = config["models"]["providers"]
    assert {name for name, one in providers.items() if not one["baseUrl"].startswith(PROXY)} == set()
    assert providers.keys() >= {"automna", "anthropic", "openai", "google"}, "built in: found by their keys"
    assert {text for text in texts(config) if "{" in text} == {
        "${OPENCLAW_GATEWAY_TOKEN}",
        "${AUTOMNA_HOOK_TOKEN}",
    }
    assert not [text for text in texts(config) if TOKEN in text or "hook_secret" in text]
    assert config["gateway"]["port"] == Templates.load().of("pro").internal_port


def test_without_a_hook_token_openclaw_has_no_hooks():
    """It would take the text `${AUTOMNA_HOOK_TOKEN}` for the token."""
    template = Templates.load().of("pro")
    whole = openclaw_json(config_of(template))
    assert whole.pop("hooks") == {"enabled": True, "token": "${AUTOMNA_HOOK_TOKEN}"}
    assert openclaw_json(config_of(template, "hook_token")) == whole


# --- the image -----------------------------------------------------------------------------------

NO_IMAGES = [
    "",
    "registry.example.com/agent",
    "registry.example.com/agent:latest",
    f"agent@sha256:{'0' * 63}",
    f"agent@sha256:{'0' * 65}",
    f"agent@sha256:{'A' * 64}",
    f"agent@sha512:{'0' * 64}",
    f"@sha256:{'0' * 64}",
    f"an agent@sha256:{'0' * 64}",
    f"agent@sha256:{'0' * 64}\n",
]


@pytest.mark.parametrize("image", NO_IMAGES)
def test_an_image_that_is_not_pinned_is_refused(image):
    expected = f"MACHINE_IMAGE: given {image!r}, expected an image by its digest"
    with pytest.raises(TemplateError, match=re.escape(expected)):
        check_image(image)
    with pytest.raises(TemplateError, match=re.escape(expected)):
        Templates.load().of("pro").config(VALUES, image=image, volume_id="vol_1", metadata={})


@pytest.mark.parametrize("name", ["agent", "registry.fly.io/agent", "localhost:5000/a/b-c_d", "agent:1.2"])
def test_an_image_by_its_digest_is_taken(name):
    check_image(f"{name}@sha256:{'0a' * 32}")


# --- a file of one's own -------------------------------------------------------------------------


def test_a_copy_of_the_file_says_the_same(tmp_path):
    own, shipped = Templates.load(written(tmp_path, WHOLE)), Templates.load()
    for plan in PLANS:
        assert config_of(own.of(plan)) == config_of(shipped.of(plan))


def test_a_plan_replaces_keys_and_single_variables(tmp_path):
    text = (
        WHOLE
        + '\n[plans.large]\ncpus = 4\nfiles = []\n[plans.large.env]\nANTHROPIC_API_KEY = "own"\nMORE = "1"\n'
    )
    templates = Templates.load(written(tmp_path, text))
    config, usual = config_of(templates.of("large")), config_of(templates.of("free"))
    assert config == {
        **usual,
        "guest": {**SIZE, "cpus": 4},
        "env": {**usual["env"], "ANTHROPIC_API_KEY": "own", "MORE": "1"},
        "files": [],
    }


def changed(key: str, value: str) -> str:
    """The file that ships, with a key of [machine] set to something else."""
    text, times = re.subn(
        rf"^{key} = (?:\[\n.*?^\]|.*?)$",
        lambda _: f"{key} = {value}",
        WHOLE,
        count=1,
        flags=re.MULTILINE | re.DOTALL,
    )
    assert times == 1
    return text


WRONG = [
    ("regions", "[]", 'given [], expected a list of Fly\'s regions, each once, such as ["sjc", "lax"]'),
    ("regions", '["sjc", "sjc"]', "given ['sjc', 'sjc'], expected a list of Fly's regions"),
    ("regions", '"sjc"', "given 'sjc', expected a list of Fly's regions"),
    ("regions", '["San Jose"]', "given ['San Jose'], expected a list of Fly's regions"),
    ("cpu_kind", '"fast"', "given 'fast', expected one of shared, performance"),
    ("cpus", '"two"', "given 'two', expected a whole number from 1 to 16"),
    ("cpus", "0", "given 0, expected a whole number from 1 to 16"),
    ("cpus", "true", "given True, expected a whole number from 1 to 16"),
    ("memory_mb", "1000", "given 1000, expected a whole number from 256 to 131072, a multiple of 256"),
    ("volume_gb", "1.5", "given 1.5, expected a whole number from 1 to 500"),
    ("volume_path", '"data"', "given 'data', expected an absolute path"),
    ("volume_path", '"/data/"', "given '/data/', expected an absolute path without a slash at its end"),
    ("volume_path", '"/data/../etc"', "given '/data/../etc', expected an absolute path"),
    ("internal_port", "65536", "given 65536, expected a whole number from 1 to 65535"),
    ("ports", "[]", "given [], expected a list of ports"),
    ("ports", "[443]", "given [443], expected a list of ports"),
    (
        "ports",
        "[{ port = 0, handlers = [] }]",
        "given [{'port': 0, 'handlers': []}], expected a list of ports",
    ),
    ("ports", "[{ port = 443 }]", "given [{'port': 443}], expected a list of ports"),
    ("ports", '[{ port = 443, handlers = ["tcp"] }]', "expected a list of ports"),
    ("ports", "[{ port = 443, handlers = [], tls = true }]", "expected a list of ports"),
    ("ports", '[{ port = 443, handlers = [], force_https = "yes" }]', "expected a list of ports"),
    (
        "ports",
        "[{ port = 1, handlers = [] }, { port = 1, handlers = [] }]",
        "expected a list of ports, each once",
    ),
    ("autostop", "true", "given True, expected one of off, stop, suspend"),
    ("min_machines_running", "2", "given 2, expected a whole number from 0 to 1"),
    ("restart", '"sometimes"', "given 'sometimes', expected one of no, on-failure, always"),
    ("restarts_max", "-1", "given -1, expected a whole number from 0 to 100"),
    ("stop_signal", '"SIGSTOP"', "given 'SIGSTOP', expected one of SIGTERM, SIGINT, "),
    ("stop_timeout_s", "301", "given 301, expected a whole number from 1 to 300"),
    (
        "probe_path",
        '"startupz"',
        "given 'startupz', expected a path that begins with a slash, without a query",
    ),
    ("probe_path", '"/x?token=1"', "given '/x?token=1', expected a path that begins with a slash"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_wrong_value_is_refused_with_file_key_given_and_expected(tmp_path, key, value, words):
    path = written(tmp_path, changed(key, value))
    with pytest.raises(TemplateError) as caught:
        Templates.load(path)
    assert str(caught.value).startswith(f"{path}: machine.{key}: ")
    assert words in str(caught.value)


KEYS = sorted({key for key, *_ in WRONG})


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_missing_is_named_with_what_is_expected(tmp_path, key):
    path = written(tmp_path, changed(key, "0").replace(f"\n{key} = 0\n", "\n"))
    with pytest.raises(TemplateError, match=re.escape(f"{path}: machine.{key}: missing, expected ")):
        Templates.load(path)


def test_a_plans_wrong_value_is_refused_under_its_own_name(tmp_path):
    path = written(tmp_path, WHOLE + "\n[plans.large]\ncpus = 17\n")
    with pytest.raises(TemplateError, match=re.escape(f"{path}: plans.large.cpus: given 17, expected ")):
        Templates.load(path)


MACHINE = "\n[[machine.files]]\nguest_path = "
MISTAKES = {
    "no TOML": ("[machine", "Expected ']'"),
    "nothing": ("", "machine: missing, expected a table"),
    "unknown table": (WHOLE + "\n[machines]\n", "machines: unknown key, expected [machine] and [plans.NAME]"),
    "unknown key": (changed("cpus", "1\nimage = 'x'"), "machine.image: unknown key, expected one of regions, "),
    "unknown key of a plan": (WHOLE + "\n[plans.x]\ncpu = 1\n", "plans.x.cpu: unknown key, expected one of "),
    "a plan that is no table": (WHOLE.replace("[plans.pro]", "[plans]\nx = 1\n[plans.pro]"), "plans.x: given 1, expected a table"),
    "unknown placeholder": (
        WHOLE.replace('"{inbox_id}"', '"{inbox}"'),
        "machine.env.AGENTMAIL_INBOX_ID: given {inbox}, expected one of {context_id}, ",
    ),
    "no name of a variable": (WHOLE.replace("AGENTMAIL_INBOX_ID", '"AGENT-MAIL"'), "machine.env.AGENT-MAIL: expected the name of a variable"),
    "no text": (WHOLE.replace('"{inbox_id}"', "1"), "machine.env.AGENTMAIL_INBOX_ID: given a int, expected a text"),
    "a file of no content": (WHOLE + MACHINE + '"/etc/x"\n', "machine.files.2: expected either `content`, a file beside this one, or `packaged`"),
    "a file of two contents": (
        WHOLE + MACHINE + '"/etc/x"\ncontent = "x"\npackaged = "openclaw.json"\n',
        "machine.files.2: expected either `content`",
    ),
    "a packaged file that does not ship": (WHOLE + MACHINE + '"/etc/x"\npackaged = "../template.py"\n', "machine.files.2.packaged: given '../template.py', expected one of openclaw.json"),
    "a content that is not there": (WHOLE + MACHINE + '"/etc/x"\ncontent = "nowhere"\n', "No such file or directory"),
    "a relative guest_path": (WHOLE + MACHINE + '"etc/x"\ncontent = "x"\n', "machine.files.2.guest_path: given 'etc/x', expected an absolute path"),
    "a file of no mode": (WHOLE + MACHINE + '"/etc/x"\ncontent = "x"\nmode = "644"\n', "machine.files.2.mode: given '644', expected a whole number from 0 to 511"),
    "a file of an unknown key": (WHOLE + MACHINE + '"/etc/x"\ncontent = "x"\nowner = "node"\n', "machine.files.2.owner: unknown key, expected one of content, "),
    "a file twice": (WHOLE + MACHINE + f'"{CONFIG_PATH}"\npackaged = "openclaw.json"\n', f"machine.files: {CONFIG_PATH} twice"),
    "a file on the volume": (WHOLE + MACHINE + f'"{VOLUME_PATH}/x"\ncontent = "x"\n', f"machine.files: given {VOLUME_PATH}/x, expected no file on the volume"),
    "a file that a plan's volume hides": (WHOLE + '\n[plans.x]\nvolume_path = "/etc"\n', f"plans.x.files: given {CONFIG_PATH}, expected no file on the volume"),
    "files that are none": (changed("cpus", "1\nfiles = 1").replace("[[machine.files]]", "[plans.x]").replace("guest_path", "# "), "machine.files: given 1, expected [[machine.files]] tables"),
    "no JSON": (WHOLE + MACHINE + '"/etc/x.json"\ncontent = "x"\n', "machine.files.2: the content of /etc/x.json is no JSON: "),
    "JSON that is no object": (WHOLE + MACHINE + '"/etc/x.json"\ncontent = "list"\n', "machine.files.2: the content of /etc/x.json is a JSON list, expected an object"),
    "JSON that names what is no variable": (
        WHOLE + MACHINE + '"/etc/x.json"\ncontent = "named"\n',
        "machine.files: /etc/x.json names ${HOKO}, expected only variables of [machine.env]",
    ),
    "a long file": (WHOLE + MACHINE + '"/etc/x"\ncontent = "long"\n', f"long is longer than {FILE_BYTES_MAX} bytes"),
}  # fmt: skip
BESIDE = {"x": "x", "list": "[]", "named": '{"a": ["${HOKO}"]}', "long": "x" * (FILE_BYTES_MAX + 1)}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_file_and_place(tmp_path, mistake):
    text, words = MISTAKES[mistake]
    path = written(tmp_path, text, **BESIDE)
    with pytest.raises(TemplateError) as caught:
        Templates.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path):
    path = written(tmp_path, WHOLE + MACHINE + '"/etc/x"\ncontent = "x"\n')
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(TemplateError, match=r"machine\.files\.2.content: x: "):
        Templates.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(TemplateError, match=r"mine\.toml: "):
        Templates.load(path)
    with pytest.raises(TemplateError, match=r"nowhere\.toml: "):
        Templates.load(tmp_path / "nowhere.toml")


def test_no_value_of_a_variable_is_ever_told(tmp_path):
    for text in ("secret {inbox}", "secret\\u0000"):
        path = written(tmp_path, WHOLE.replace('"{inbox_id}"', f'"{text}"'))
        with pytest.raises(TemplateError) as caught:
            Templates.load(path)
        assert "secret" not in str(caught.value)


# --- files of one's own --------------------------------------------------------------------------


def filled(folder: Path, name: str, content: str, *without: str) -> str:
    """What Fly writes for a file of one's own."""
    path = written(
        folder, WHOLE + MACHINE + f'"/etc/{name}"\ncontent = "{name}"\nmode = 0o600\n', **{name: content}
    )
    _, file = config_of(Templates.load(path).of("pro"), *without)["files"]
    assert (file["guest_path"], file["mode"]) == (f"/etc/{name}", 0o600)
    return base64.b64decode(file["raw_value"]).decode()


def test_a_file_has_its_placeholders_filled_and_other_braces_left(tmp_path):
    said = filled(tmp_path, "hosts.sh", "A={proxy}/x B={other} C=${proxy} D={inbox_id} {{inbox_id}}")
    assert said == f"A={PROXY}/x B={{other}} C=${{proxy}} D=ada@mail.example {{ada@mail.example}}"


def test_a_value_stays_a_text_in_json_whatever_is_in_it(tmp_path):
    path = written(tmp_path, WHOLE + MACHINE + '"/etc/x.json"\ncontent = "x"\n', x='{"a": "<{inbox_id}>"}')
    inbox = '"a\\b": {proxy}\n'
    _, file = config_of(Templates.load(path).of("pro"), inbox_id=inbox)["files"]
    assert json.loads(base64.b64decode(file["raw_value"])) == {"a": f"<{inbox}>"}


NODES = [
    # the file, and what of it is left without a hook token and an inbox
    ({"a": 1, "b": {"c": "${AUTOMNA_HOOK_TOKEN}"}}, {"a": 1}),
    ({"a": {"b": {"c": "{inbox_id}", "d": 1}, "e": None}}, {"a": {"e": None}}),
    ({"a": {"b": ["x", "{inbox_id}"]}, "c": []}, {"c": []}),
    ({"a": {"b": [["${AUTOMNA_HOOK_TOKEN}"]]}}, {}),
    ({"a": [{"b": "${AUTOMNA_HOOK_TOKEN}"}, {"b": 2}, 3]}, {"a": [{"b": 2}, 3]}),
    ({"a": "$${AUTOMNA_HOOK_TOKEN}", "b": "${inbox_id}"}, {"a": "$${AUTOMNA_HOOK_TOKEN}", "b": "${inbox_id}"}),
    ({"a": "{project_id}", "b": "${OPENCLAW_GATEWAY_TOKEN}"}, {"a": "project-1", "b": "${OPENCLAW_GATEWAY_TOKEN}"}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), NODES)
def test_json_loses_the_object_that_needs_what_is_not_there(tmp_path, content, expected):
    said = filled(tmp_path, "own.json", json.dumps(content), "hook_token", "inbox_id")
    assert json.loads(said) == expected


@pytest.mark.parametrize("name", ["own.txt", "own.json"])
def test_a_file_that_needs_as_a_whole_what_is_not_there_is_no_machines(tmp_path, name):
    with pytest.raises(TemplateError, match=f"/etc/{name}: it has no part that does without a value"):
        filled(tmp_path, name, '{"a": "{inbox_id}"}', "inbox_id")


def test_a_variable_that_is_set_to_nothing_is_as_one_that_is_not_there(tmp_path):
    text = WHOLE.replace('"{hook_token}"', '""')
    config = config_of(Templates.load(written(tmp_path, text)).of("pro"))
    assert config["env"]["AUTOMNA_HOOK_TOKEN"] == ""
    assert "hooks" not in openclaw_json(config)


# --- at Fly --------------------------------------------------------------------------------------


async def made_at_fly(client, template) -> tuple[dict, dict]:
    """A machine's configuration as wanted, and as Fly answers it."""
    app = await made_app(client)
    volume = await made_volume(client, app)
    wanted = template.config(VALUES, image=IMAGE, volume_id=volume["id"], metadata={"user": "u"})
    answer = await client.post(f"{app}/machines", json={"name": "gw", "region": "sjc", "config": wanted})
    assert answer.status_code == 200, answer.text
    return wanted, (await client.get(f"{app}/machines/{answer.json()['id']}")).json()["config"]


@pytest.mark.skipif(not DOCUMENT.exists(), reason=f"no document at {DOCUMENT}")
@pytest.mark.parametrize("plan", PLANS)
async def test_the_machine_of_every_plan_fits_the_vendors_document(plan):
    async with FlySimulator(openapi=DOCUMENT) as fly, fly_client(fly.url) as client:
        await made_at_fly(client, Templates.load().of(plan))
        assert fly.invalid == []


@pytest.mark.parametrize("plan", ["free", "pro"])
@pytest.mark.parametrize("tells_booleans", [True, False])
async def test_a_machine_just_made_differs_in_nothing(plan, tells_booleans):
    habits = Habits(tells_booleans=tells_booleans)
    async with FlySimulator(habits=habits) as fly, fly_client(fly.url) as client:
        wanted, actual = await made_at_fly(client, Templates.load().of(plan))
    assert differences(actual, wanted) == []


# --- what is said of it --------------------------------------------------------------------------

PAGE = (Path(__file__).parents[3] / "docs" / "machines.md").read_text(encoding="utf-8")


def test_every_placeholder_is_used_by_what_ships_and_described():
    assert set(re.findall(r"\{([a-z_]+)\}", WHOLE)) == PLACEHOLDERS == VALUES.keys()
    assert {name for name in PLACEHOLDERS if f"`{{{name}}}`" not in PAGE} == set()


def test_every_key_and_every_variable_is_described():
    assert {name for name in {*KEYS, *ENVIRONMENT} if f"`{name}`" not in PAGE} == set()
    assert {*KEYS, "env", "files"} == {field.name for field in fields(MachineTemplate)}
