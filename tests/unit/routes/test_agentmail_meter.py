"""How many e-mails a request to AgentMail is: never fewer than it sends, whatever stands in its fields."""

import time

import pytest

from metering.errors import Refused
from metering.prices import PriceTable
from proxy.surface import Inbound, Pricing
from routes.agentmail_meter import SendMeter, number_in, of_draft, of_reply, of_reply_all, of_request

OWN = "Me@agentmail.to"


def inbound(fields=(), **looked_up):
    return Inbound("POST", {"inbox_id": OWN}, b"", [], b"", dict(fields), looked_up)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, 0),
        ("", 0),
        (" ", 0),
        ([], 0),
        (["", "a@b.c"], 1),
        ("a@b.c", 1),
        ("a@b.c,d@e.f;g@h.i", 3),
        ('"Doe, John" <a@b.c>', 1),
        ("undisclosed-recipients:;", 1),
        ("friends: a@b.c, d@e.f;", 2),
        (["a@b.c", "a@b.c"], 2),
    ],
)
def test_addresses_are_counted(value, number):
    assert number_in("to", value) == number


@pytest.mark.parametrize("value", [1, True, {}, {"email": "a@b.c"}, ["a@b.c", None], [["a@b.c"]]])
def test_what_is_no_address_is_refused(value):
    with pytest.raises(Refused, match="to"):
        number_in("to", value)


@pytest.mark.parametrize("text", ["(" * 1_000_000, "<" * 1_000_000, '"' * 1_000_000, "a@b.c," * 200_000])
def test_a_hostile_text_takes_no_time(text):
    began_s = time.process_time()
    assert number_in("to", text) >= 1
    assert time.process_time() - began_s < 1


@pytest.mark.parametrize(
    ("message", "fields", "reply", "reply_all"),
    [
        ({"from": "a@b.c", "to": [OWN]}, {}, 1, 1),
        ({"from": "a@b.c", "to": [f"I <{OWN.lower()}>", "d@e.f"], "cc": ["g@h.i"]}, {}, 1, 3),
        ({"from": "a@b.c", "to": ["list@e.f"]}, {}, 1, 2),
        ({"from": "a@b.c", "reply_to": ["d@e.f", "g@h.i"], "to": [OWN]}, {}, 2, 2),
        ({"from": f'"x@y" <{OWN}>', "to": ["a@b.c", "d@e.f"], "cc": ["g@h.i"]}, {}, 2, 3),
        ({"from": OWN, "to": [OWN]}, {}, 1, 1),
        ({"from": f"not{OWN}", "to": ["a@b.c", "d@e.f"]}, {}, 1, 3),
        ({"from": "a@b.c", "to": [f'"d@e.f" <{OWN}>']}, {}, 1, 3),
        ({"from": "a@b.c", "to": [OWN]}, {"to": ["d@e.f", "g@h.i"], "cc": "j@k.l"}, 3, 4),
        ({"from": "a@b.c", "to": [OWN, "d@e.f"]}, {"reply_all": True}, 2, 2),
    ],
)
def test_whom_an_answer_goes_to(message, fields, reply, reply_all):
    assert of_reply(inbound(fields, **message)) == reply
    assert of_reply_all(inbound(fields, **message)) == reply_all


@pytest.mark.parametrize("value", ["true", "false", 1, 0, [], {}])
def test_an_answer_to_all_is_asked_for_by_true_alone(value):
    """A vendor that takes something else for it would send to more than was paid for."""
    message = {"from": "a@b.c", "to": [OWN, "d@e.f"]}
    with pytest.raises(Refused, match="reply_all"):
        of_reply(inbound({"reply_all": value}, **message))
    for nothing in (None, False):
        assert of_reply(inbound({"reply_all": nothing}, **message)) == 1


@pytest.mark.parametrize("name", ["Bcc", "to", "RESENT-CC", " cc "])
def test_recipients_in_headers_are_refused(name):
    pricing = Pricing(PriceTable.load(), 0, 4)
    hidden = {"headers": {"X-Fine": "1", name: "x@y.z"}}
    for meter, request in (
        (SendMeter(of_request), inbound({"to": "a@b.c", **hidden})),
        (SendMeter(of_reply), inbound(hidden, **{"from": "a@b.c"})),
        (SendMeter(of_draft), inbound({}, to=["a@b.c"], **hidden)),
    ):
        with pytest.raises(Refused, match="headers"):
            meter.read(request, pricing)
    received = inbound({"headers": {"X-Fine": "1"}}, **{"from": "a@b.c", "headers": {"To": OWN}})
    assert SendMeter(of_reply).read(received, pricing).ceiling.total("recipients") == 1


def test_a_send_counts_its_own_fields_and_a_draft_its_own():
    named = {"to": ["a@b.c"], "cc": "d@e.f", "bcc": ["g@h.i"], "reply_to": ["j@k.l"]}
    assert of_request(inbound(named)) == 3
    assert of_draft(inbound({"to": "ignored@x.y"}, **named)) == 3
