"""`automna-proxy demo`, run as a person or CI runs it: in a process of its own, in whatever environment."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from automna_proxy.demo_ledger import table_of
from metering.reports import Entry

ROOT = Path(__file__).parents[2]
DEMO_TIMEOUT_S = 180
ONE_SCENE = """
import sys
from automna_proxy import demo
demo.SCENES = demo.SCENES[2:3]
"""
"""The demo with a single request: for what does not depend on the scenes."""


SEARCHED = """
    brave    Teal (https://colours.example/teal): dark, and named after a duck.
             Cyan (https://colours.example/cyan): bright, and half of each.
"""
MAILED = r"""
    ada      Lunch on Friday\?
    mail     sent as <\S+>
    vendor   sent it to ann@example.com, carl@example.com: Noon, by the pond.
    curl     200, \S+
    ledger   2 e-mails = \$0.004000000, 40 credits
    limits   2 of 50 e-mails
"""
LOST = r"""
    ada      Friday it is
    mail     sent as <\S+>
    vendor   sent it to ann@example.com: See you there.
    vendor   answered 2 times, and only the last answer came through
    curl     200, \S+
    ledger   1 e-mail = \$0.002000000, 20 credits
    limits   3 of 50 e-mails
"""
BROWSED = r"""
    browser  Simulated page at https://ponds.example/, [\d,]+ bytes of screenshot
    over     ws://127.0.0.1:\d+/api/browserbase/connect/...
    limits   while it runs: 120 seconds held, 0 used
    ledger   60 browser seconds = \$0.002000000, 20 credits
    limits   when it has ended: 0 seconds held, 60 used
"""
CALLED = r"""
    ada      Ask whether the pond is open on Friday.
    call     initiated: from \+14155550111 to \+12025550100
    limits   while it runs: 120 seconds held, 0 used
    call     completed after 42 seconds: A call of 42 seconds.
    ledger   42 call seconds = \$0.098000000, 980 credits
    limits   when it has ended: 0 seconds held, 42 used
"""
ALL_MAILS = (
    "ok 3 mails at USD 0.002000000 a recipient, each sent exactly once: "
    "plan, ledger and vendor count the same 4 recipients"
)


def only(word):
    """The scenes whose title begins so."""
    return f"""
from automna_proxy import demo_scenes
demo.SCENES = [scene for scene in demo_scenes.SCENES if scene.title.startswith({word!r})]
"""


def environment(folder, **more):
    """As bare as a fresh machine's; the demo's own folder is made below `folder`."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **more}


def run_demo(folder, *arguments, **more):
    """Run it to its end, in an empty folder."""
    home = folder / "home"
    temporary = folder / "tmp"
    for made in (home, temporary):
        made.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(temporary, **more),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )


@contextmanager
def trap():
    """A port that nobody may connect to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_it_runs_once_and_takes_nothing_from_its_environment(tmp_path):
    with trap() as elsewhere:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".curlrc").write_text(f'proxy = "{elsewhere}"\n')
        names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
        proxies = dict.fromkeys(names, elsewhere)
        secrets = {
            "ANTHROPIC_API_KEY": "sk-ant-somebodys-own-key",
            "ANTHROPIC_AUTH_TOKEN": "somebodys-own-token",
            "ANTHROPIC_CUSTOM_HEADERS": "x-api-key: somebodys-header",
            "OPENAI_API_KEY": "sk-somebodys-other-key",
            "GEMINI_API_KEY": "AIza-somebodys-third-key",
            "BRAVE_API_KEY": "BSA-somebodys-fourth-key",
            "AGENTMAIL_API_KEY": "am_somebodys_fifth_key",
            "BROWSERBASE_API_KEY": "bb_somebodys_sixth_key",
            "BLAND_API_KEY": "sk-somebodys-seventh-key",
        }
        settings = {
            "HOME": str(tmp_path / "home"),
            "ANTHROPIC_BASE_URL": elsewhere,
            "ANTHROPIC_UPSTREAM_URL": elsewhere,
            "OPENAI_UPSTREAM_URL": elsewhere,
            "GEMINI_UPSTREAM_URL": elsewhere,
            "BRAVE_UPSTREAM_URL": elsewhere,
            "AGENTMAIL_UPSTREAM_URL": elsewhere,
            "BROWSERBASE_UPSTREAM_URL": elsewhere,
            "BLAND_UPSTREAM_URL": elsewhere,
            "PUBLIC_URL": elsewhere,
            "DATABASE_URL": "sqlite:////nowhere/at/all.db",
            "PLANS_FILE": "/nowhere/plans.toml",
            "LOG_LEVEL": "shouting",
            "BODY_BYTES_MAX": "1",
        }
        done = run_demo(tmp_path, "-m", "automna_proxy", "demo", "--once", **proxies, **secrets, **settings)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "FAILED" not in done.stdout
    assert "16 answers of the vendors (and 1 lost), 16 entries in the ledger" in done.stdout
    assert "clean: 12 accounts, 21 reservations, 21 entries" in done.stdout
    assert re.search(r"ada +haiku-4-5 .* client left +reported", done.stdout)
    assert "402 billing_error: Monthly usage limit reached" in done.stdout
    assert re.search(r"bob +\(reads it too\)\n +curl +404 ", done.stdout)
    assert "ok       who did not ask OpenAI for the usage saw none of it" in done.stdout
    assert re.search(r"38 input, 8 read from cache, 20 output = ", done.stdout)
    assert SEARCHED in done.stdout
    assert "402 QUOTA_LIMITED: Monthly usage limit reached (1 of 1 searches). Resets on " in done.stdout
    assert "ok       2 searches at USD 0.005000000, counted alike by plan and ledger" in done.stdout
    assert "ok       5 refusals: the vendor was not asked, nothing is booked" in done.stdout
    assert re.search(MAILED, done.stdout)
    assert re.search(LOST, done.stdout)
    assert re.search(BROWSED, done.stdout)
    assert re.search(CALLED, done.stdout)
    assert (
        "429 Daily email limit reached: Daily usage limit reached (1 of 1 emails). Resets on " in done.stdout
    )
    assert ALL_MAILS in re.sub(r"\s+", " ", done.stdout)
    assert re.findall(r"(ada|bob) +email [ .]+ (\d) (0\.00\d{7}) ", done.stdout) == [
        ("ada", "2", "0.004000000"),
        ("ada", "1", "0.002000000"),
        ("bob", "1", "0.002000000"),
    ]
    assert len(re.findall(r"(?:ada|bob) +search [ .]+ 1 0\.005000000 ", done.stdout)) == 2
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert not [secret for secret in secrets.values() if secret in done.stdout]
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".curlrc"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_without_curl_and_without_the_sdk_it_says_so_and_goes_on(tmp_path):
    script = "import sys; sys.modules['anthropic'] = None\nfrom automna_proxy import demo\nsys.exit(demo.run(once=True))"
    done = run_demo(tmp_path, "-c", script, PATH="/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert "curl is not installed" in done.stdout
    assert "pip install 'automna-proxy[demo]'" in done.stdout
    assert SEARCHED in done.stdout
    assert ALL_MAILS in re.sub(r"\s+", " ", done.stdout)
    assert "16 answers of the vendors (and 1 lost), 16 entries in the ledger" in done.stdout


BROKEN = {
    "the client sees something else than promised": (
        "demo.SCENES = (replace(scene, asks=(replace(ask, status=418),)),)",
        "expected status 418, the client saw 200",
    ),
    "the ledger counts something else than the vendor reported": (
        "demo.counts_of = lambda entry: {'input_tokens': 1}",
        "expected the counts {'input_tokens': 28, 'output_tokens': 2}, found {'input_tokens': 1}",
    ),
    "the vendor is asked what was to be refused": (
        "demo.SCENES = (replace(scene, asks=(replace(ask, behaviour=None),)),)",
        "refused, and yet forwarded or booked",
    ),
    "the plan counts something else than the scene says": (
        "demo.SCENES = (replace(scene, asks=(replace(ask, used={'searches_per_month': 1}),)),)",
        "expected searches_per_month {'limit': 5000, 'used': 1, 'held': 0, 'left': 4999}, found {'limit': 5000, 'used': 0,",
    ),
    "a browser sees another page than promised": (
        f"{only('A browser')}demo.SCENES = [replace(demo.SCENES[0], visits=(replace(demo.SCENES[0].visits[0], title='No'),))]",
        "https://ponds.example/: it was there, and the vendor's 60 seconds are booked once (found",
    ),
    "a browser's seconds are booked under another name": (
        f"{only('A browser')}demo.BROWSER_SECONDS = 'seconds'",
        "https://ponds.example/: it was there, and the vendor's 60 seconds are booked once (found",
    ),
    "a call has another price": (
        f"{only('A phone call')}demo.CALL_SECONDS = 'seconds'",
        "+12025550100: called, and the vendor's 42 seconds and price are booked once (found",
    ),
    "the limits tell nothing of what the scene has a word on": (
        "demo.SCENES = (replace(scene, asks=(replace(ask, used={'pigeons_per_month': 1}),)),)",
        "/api/user/limits answers 200 and tells nothing of pigeons_per_month",
    ),
    "a search has another price": (
        f"{only('Brave')}demo.SEARCH_NANOUSD = 7",
        "1 search at USD 0.000000007, counted alike by plan and ledger (found [5000000])",
    ),
    "the ledger counts other searches than the plan": (
        f"{only('Brave')}demo.SEARCHES = 'web_searches'",
        "1 search at USD 0.005000000, counted alike by plan and ledger (found",
    ),
    "a mail goes out twice": (
        f"""{only("E-mail")}
from simulators.agentmail_mail import Mail
Mail.once = lambda mail, key, request, send: (send(), True)
""",
        "the vendor sent [(('ann@example.com',), 'Friday it is', 'See you there.'), (('ann@example.com',),",
    ),
    "an e-mail has another price": (
        f"{only('E-mail')}demo.EMAIL_NANOUSD = 7",
        "count the same 3 recipients (found ({'ada': (3, 3, 3)}, [4000000, 2000000]))",
    ),
    "the ledger counts other e-mails than the plan": (
        f"{only('E-mail')}demo.RECIPIENTS = 'messages'",
        "count the same 3 recipients (found ({'ada': (3, 2, 3)}, [4000000, 2000000]))",
    ),
    "the client is told of another mail than the vendor sent": (
        f"""{only("E-mail, ")}
(scene,) = demo.SCENES
(ask,) = scene.asks
api = replace(ask.api, told_of=lambda answered: "sent as <another>")
demo.SCENES = (replace(scene, asks=(replace(ask, api=api),)),)
""",
        "expected the text 'sent as <another>', found 'sent as <",
    ),
    "no answer is lost where the scene loses one": (
        "demo.SCENES = (replace(scene, asks=(replace(ask, lost=1),)),)",
        "expected one entry for 2 answers, found 1 entries for 1 answers",
    ),
    "the price is another than the list's": (
        "demo.cost_of = lambda *_, **__: 7",
        "expected the cost 7, found 38000",
    ),
    "a command fails": (
        "demo.PLAN_OF = {'ada': 'imaginary'}",
        "automna-proxy user add ada --plan imaginary: ",
    ),
    "the server does not start": (
        "demo_stage.PLAN_TINY = 'neither TOML'",
        "the server ended before it was ready",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_it_fails_and_shows_the_log_when(broken, tmp_path):
    change, complaint = BROKEN[broken]
    script = f"""{ONE_SCENE}
from dataclasses import replace
from automna_proxy import demo_stage
(scene,) = demo.SCENES
(ask,) = scene.asks
{change}
sys.exit(demo.run(once=True))
"""
    done = run_demo(tmp_path, "-c", script)
    assert (done.returncode, done.stderr) == (1, "")
    assert complaint in re.sub(r"\s+", " ", done.stdout)
    (kept,) = (tmp_path / "tmp").iterdir()
    assert f"The server's log is {kept}/server.log." in done.stdout


@contextmanager
def staying(folder):
    """The demo up and waiting, with all that it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{ONE_SCENE}\nsys.exit(demo.run(once=False))"],
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "usage ada" in line:
                break
        yield process, "".join(said)
    finally:
        process.terminate()  # it stops its server, which a kill would leave behind
        process.communicate(timeout=DEMO_TIMEOUT_S)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_it_stays_up_until_ctrl_c_and_what_it_says_to_paste_works(tmp_path):
    with staying(tmp_path) as (process, said):
        lines = said[said.index("export URL") :]
        pasted = subprocess.run(
            ["bash", "-e", "-c", lines],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HTTP_PROXY": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            timeout=DEMO_TIMEOUT_S,
            check=False,
        )
        url = re.search(r"URL=(\S+)", lines)[1]
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate(timeout=DEMO_TIMEOUT_S)
    assert pasted.returncode == 0, pasted.stderr
    assert '"text":"said: "' in pasted.stdout
    assert "event: message_stop" in pasted.stdout
    assert '"content":"You said: Say something."' in pasted.stdout
    assert '"finishReason":"STOP"' in pasted.stdout
    assert '"description":"You said: something"' in pasted.stdout
    assert '"success":true' in pasted.stdout
    assert '"id":"claude-sonnet-5"' in pasted.stdout
    assert "automna_requests_total" in pasted.stdout
    assert "claude-sonnet-4-5" in pasted.stdout
    assert (process.returncode, complaint) == (0, "")
    assert "Stopping." in rest
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_terminated_it_leaves_no_server_behind(tmp_path):
    with staying(tmp_path) as (process, said):
        url = re.search(r"URL=(\S+)", said)[1]
        process.send_signal(signal.SIGTERM)
        _, complaint = process.communicate(timeout=DEMO_TIMEOUT_S)
    assert (process.returncode, complaint) == (0, "")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_interrupted_in_the_middle_it_ends_without_a_traceback(tmp_path):
    script = f"""{ONE_SCENE}
import os, signal
demo.table_of = lambda *_: os.kill(os.getpid(), signal.SIGINT)
sys.exit(demo.run(once=True))
"""
    done = run_demo(tmp_path, "-c", script)
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.rstrip().endswith("Interrupted.")
    assert list((tmp_path / "tmp").iterdir()) == []


ENTRY = Entry(
    seq=1,
    kind="settle",
    request_id="req_1",
    user_id="ada",
    token_id="tok_1",
    at_ms=1_795_000_000_000,
    surface="anthropic",
    operation="POST /v1/messages",
    model="claude-sonnet-4-5-20250929",
    outcome="client_left",
    basis="estimated",
    cost_nanousd=1_044_822_000,
    input_tokens=8_214,
    cache_read_tokens=0,
    cache_write_tokens=4_222,
    output_tokens=446,
    usage=[{"counts": {"input_tokens": 8_214, "web_searches": 2}}],
    notes=[],
    price_version="1",
    upstream_status=200,
    upstream_request_id="req_2",
    duration_ms=1,
)


@pytest.mark.parametrize("width", [80, 90, 100, 110, 120, 130])
def test_the_table_fits_the_page_with_every_figure_whole(width):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table_of([ENTRY, ENTRY], console))
    printed = capture.get()
    assert max(map(len, printed.splitlines())) <= width
    for whole in ("ada", "sonnet-4-5", "8,214", "4,222", "446", "1.044822000", "client left", "estimated"):
        assert printed.count(whole) == 2, printed
    assert "2.089644000" in printed
    assert ("10,449" in printed) is (width > 80)
    assert ("11:06:40" in printed) is (width >= 100)
    assert len(re.findall(r" 446 +2 +1\.044822000", printed)) == 2
    assert ("POST /v1/messages" in printed) is (width >= 120)
