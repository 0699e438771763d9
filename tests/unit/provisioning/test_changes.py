"""A running machine's configuration beside the wanted one: what differs, told without a value, and only that changed."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.changes import differences, merged
from simulators.fly import FlySimulator, Habits
from tests.support.fly import DOCUMENT, fly_client, made_app, made_machine

SECRET = "amp_a-secret"
OURS = "/etc/ours.json"


def wanted_config(**more):
    return {
        "image": "agent@sha256:1",
        "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 2048},
        "env": {"TOKEN": SECRET, "EMPTY": ""},
        "services": [
            {
                "protocol": "tcp",
                "internal_port": 18789,
                "ports": [
                    {"port": 443, "handlers": ["tls", "http"]},
                    {"port": 80, "handlers": ["http"], "force_https": True},
                ],
                "autostart": True,
                "autostop": "off",
                "min_machines_running": 0,
            }
        ],
        "mounts": [{"volume": "vol_1", "path": "/data"}],
        "files": [{"guest_path": OURS, "raw_value": "MQ==", "mode": 420}],
        "restart": {"policy": "on-failure", "max_retries": 10},
        "stop_config": {"signal": "SIGTERM", "timeout": "1m0s"},
        "metadata": {"user": "u"},
        **more,
    }


WANTED = wanted_config()


def but(config, *path, to=None):
    """The configuration with one thing set to something else, or taken away."""
    made = copy.deepcopy(config)
    node = made
    for key in path[:-1]:
        node = node[key]
    if to is None:
        del node[path[-1]]
    else:
        node[path[-1]] = to
    return made


SERVICE, PORTS = ("services", 0), ("services", 0, "ports")
DIFFERENT = [
    # where the actual configuration differs, what is there, and what is told
    (("image",), "agent@sha256:2", "image"),
    (("image",), None, "image"),
    (("guest", "memory_mb"), 1024, "guest.memory_mb"),
    (("guest",), None, "guest"),
    (("env", "TOKEN"), "another-secret", "env.TOKEN"),
    (("env", "TOKEN"), None, "env.TOKEN"),
    (("env", "EMPTY"), None, "env.EMPTY"),
    ((*SERVICE, "autostop"), True, "services.autostop"),
    ((*SERVICE, "autostop"), "stop", "services.autostop"),
    ((*SERVICE, "autostop"), "suspend", "services.autostop"),
    ((*SERVICE, "autostart"), False, "services.autostart"),
    ((*SERVICE, "autostart"), None, "services.autostart"),
    ((*SERVICE, "internal_port"), 8080, "services.internal_port"),
    ((*SERVICE, "min_machines_running"), 1, "services.min_machines_running"),
    ((*PORTS, 1), None, "services.ports"),
    ((*PORTS, 1, "force_https"), None, "services.ports.force_https"),
    ((*PORTS, 0, "handlers"), ["http"], "services.ports.handlers"),
    ((*PORTS, 0, "handlers"), ["http", "tls"], "services.ports.handlers"),
    (SERVICE, None, "services"),
    (("services",), None, "services"),
    (("files", 0, "raw_value"), "Mg==", f"files.{OURS}"),
    (("files", 0, "mode"), 384, f"files.{OURS}"),
    (("files", 0), None, f"files.{OURS}"),
    (("files",), None, f"files.{OURS}"),
    (("restart", "policy"), "always", "restart.policy"),
    (("restart", "max_retries"), None, "restart.max_retries"),
    (("stop_config", "timeout"), "5s", "stop_config.timeout"),
    (("metadata", "user"), "v", "metadata.user"),
    (("metadata",), None, "metadata.user"),
]


@pytest.mark.parametrize(("path", "there", "name"), DIFFERENT)
def test_what_differs_is_told_by_its_name_and_mended(path, there, name):
    actual = but(WANTED, *path, to=there)
    assert differences(actual, WANTED) == [name]
    assert differences(merged(actual, WANTED), WANTED) == []


SAME = [
    # what Fly may answer for what was wanted, or what others have added
    ((*SERVICE, "autostop"), False),
    ((*SERVICE, "autostop"), None),
    ((*SERVICE, "min_machines_running"), None),
    ((*SERVICE, "force_instance_key"), "x"),
    ((*SERVICE, "concurrency"), {"type": "connections", "soft_limit": 20}),
    ((*PORTS, 0, "force_https"), False),
    ((*PORTS, 0, "http_options"), {"compress": True}),
    (("guest", "kernel_args"), ["quiet"]),
    (("env", "BYOK_MODE"), "true"),
    (("metadata", "fly_flyctl_version"), "1"),
    (("init",), {"swap_size_mb": 512}),
    (("mounts", 0, "volume"), "vol_2"),
    (("mounts", 0, "size_gb"), 2),
    (("restart", "gpu_bid_price"), 1),
    (("files",), [{"guest_path": "/etc/other", "secret_name": "S"}, *WANTED["files"]]),
]


@pytest.mark.parametrize(("path", "there"), SAME)
def test_what_is_not_ours_does_not_differ_and_stays(path, there):
    actual = but(WANTED, *path, to=there)
    assert differences(actual, WANTED) == []
    stays = merged(actual, but(WANTED, "image", to="agent@sha256:3"))
    node = stays
    for key in path[:-1]:
        node = node[key]
    if there is not None and path[-1] not in {"autostop", "files"}:
        assert node[path[-1]] == there
    assert stays["image"] == "agent@sha256:3"


@pytest.mark.parametrize(("answered", "word"), [(True, "stop"), (False, "off"), ("suspend", "suspend")])
def test_autostop_is_the_same_in_its_older_form(answered, word):
    wanted = but(WANTED, *SERVICE, "autostop", to=word)
    assert differences(but(wanted, *SERVICE, "autostop", to=answered), wanted) == []


def test_another_file_stays_and_ours_is_replaced_whole_wherever_it_stands():
    other, old = {"guest_path": "/etc/other", "secret_name": "S"}, {"guest_path": OURS, "secret_name": "S"}
    actual = {**WANTED, "files": [old, other, old]}
    assert merged(actual, WANTED)["files"] == [other, *WANTED["files"]]


def test_a_volume_is_never_changed():
    for there in ([], [{"volume": "vol_2", "path": "/elsewhere"}]):
        actual = {**WANTED, "mounts": there}
        assert differences(actual, WANTED) == []
        assert merged(actual, WANTED)["mounts"] == there
    assert "mounts" not in merged({}, WANTED)


def test_neither_configuration_is_changed_by_being_looked_at():
    actual = {"env": {"A": "1"}, "files": [{"guest_path": OURS}], "services": [{"ports": [{}]}]}
    before, wanted = copy.deepcopy(actual), copy.deepcopy(WANTED)
    made = merged(actual, wanted)
    made["services"][0]["ports"][0]["port"] = 1
    made["files"][0]["mode"] = 1
    made["env"]["A"] = "2"
    assert (actual, wanted) == (before, WANTED)


# --- whatever there is ---------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "b", "TOKEN", "EMPTY", "user", OURS, "/etc/other"])
VALUES = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", SECRET, "off", "stop", "1m0s"])
TEXTS = st.dictionaries(WORDS, st.sampled_from(["", "x", SECRET]), max_size=3)
OBJECTS = st.dictionaries(
    st.sampled_from(["cpus", "policy", "max_retries", "signal", "timeout", "other"]), VALUES, max_size=3
)
FILES = st.lists(
    st.fixed_dictionaries(
        {"guest_path": WORDS}, optional={"raw_value": st.sampled_from(["MQ==", "Mg=="]), "mode": st.just(1)}
    ),
    max_size=4,
)
PORT_LISTS = st.lists(
    st.dictionaries(st.sampled_from(["port", "force_https", "other"]), VALUES, max_size=3), max_size=2
)
SERVICES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "autostop": st.sampled_from([True, False, "off", "stop", "suspend"]),
            "internal_port": st.integers(1, 3),
            "ports": PORT_LISTS,
            "other": VALUES,
        },
    ),
    max_size=2,
)
FIELDS = {
    "image": st.sampled_from(["agent@sha256:1", "agent@sha256:2"]),
    "guest": OBJECTS,
    "env": TEXTS,
    "services": SERVICES,
    "mounts": st.lists(st.fixed_dictionaries({"volume": st.text(max_size=2)}), max_size=1),
    "files": FILES,
    "restart": OBJECTS,
    "stop_config": OBJECTS,
    "metadata": TEXTS,
}


def unique(files):
    return list({one["guest_path"]: one for one in files}.values())


ACTUAL = st.fixed_dictionaries(
    {}, optional={**{name: st.none() | each for name, each in FIELDS.items()}, "init": OBJECTS}
)
ANY_WANTED = st.fixed_dictionaries({**FIELDS, "files": FILES.map(unique)})


def leaves(node, at=()):
    """Every value of a configuration by its place, but for those of files."""
    if isinstance(node, dict | list):
        for key, each in node.items() if isinstance(node, dict) else enumerate(node):
            if (*at, key) != ("files",):
                yield from leaves(each, (*at, key))
    else:
        yield at, node


def others_files(config, wanted):
    ours = {one["guest_path"] for one in wanted["files"]}
    return [one for one in config.get("files") or [] if one["guest_path"] not in ours]


def is_ours(place, actual, wanted):
    """Whether a place is one that the wanted configuration has a word in."""
    if place[0] == "mounts" or place[0] not in wanted:
        return False
    node, has = wanted, actual
    for key in place:
        if isinstance(node, list) and len(node) != len(has):
            return True
        if isinstance(node, dict) and key not in node:
            return False
        if not isinstance(node, dict | list):
            return True
        node, has = node[key], has[key]
    return True


@given(actual=ACTUAL, wanted=ANY_WANTED)
def test_a_merged_configuration_differs_in_nothing_and_nothing_of_others_is_changed(actual, wanted):
    made = merged(actual, wanted)
    assert differences(made, wanted) == []
    assert merged(made, wanted) == made
    after = dict(leaves(made))
    there = {key: each for key, each in actual.items() if each is not None}
    lost = {place for place, value in leaves(there) if after.get(place, SECRET) != value}
    assert {place for place in lost if not is_ours(place, actual, wanted)} == set()
    wanted_places = {place for place, _ in leaves(wanted)}
    assert after.keys() - {place for place, _ in leaves(actual)} <= wanted_places
    assert made.get("mounts") == actual.get("mounts")
    assert made["files"] == [*others_files(actual, wanted), *wanted["files"]]


@given(actual=ACTUAL, wanted=ANY_WANTED)
def test_what_is_told_are_names_of_what_is_wanted_and_never_a_value(actual, wanted):
    told = differences(actual, wanted)
    assert SECRET not in json.dumps(told)
    assert told == sorted(set(told))
    assert {name.partition(".")[0] for name in told} <= wanted.keys() - {"mounts"}


@pytest.mark.parametrize("tells_booleans", [True, False])
async def test_a_machine_at_fly_is_changed_by_posting_what_was_merged(tells_booleans):
    document = DOCUMENT if DOCUMENT.exists() else None
    habits = Habits(tells_booleans=tells_booleans, update_s=0.0, boot_s=0.0, rates=None)
    async with FlySimulator(habits=habits, openapi=document) as fly, fly_client(fly.url) as client:
        app = await made_app(client)
        more = {"init": {"swap_size_mb": 512}, "metadata": {"others": "1"}}
        machine = await made_machine(client, app, fields={}, **more)
        path = f"{app}/machines/{machine['id']}"
        await client.get(f"{path}/wait", params={"state": "started"})
        actual = (await client.get(path)).json()["config"]
        wanted = but(WANTED, *SERVICE, "autostop", to="stop")
        assert differences(actual, wanted) != []
        answer = await client.post(path, json={"config": merged(actual, wanted)})
        assert answer.status_code == 200, answer.text
        now = (await client.get(path)).json()["config"]
        assert fly.invalid == []
    assert differences(now, wanted) == []
    assert now["init"] == more["init"]
    assert now["metadata"] == {"others": "1", "user": "u"}
