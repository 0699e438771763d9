"""The vocabulary in which a vendor is declared. A file in `routes/` is written in these words alone.

When a vendor seems to need an `if` in the engine, a word is missing here: add the word.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from metering.errors import Refused
from metering.prices import PriceTable
from metering.rate_state import Standing
from metering.store.writer import Step
from metering.usage import NOTHING, Usage
from metering.values import immutable
from proxy.json_walk import Walk, value_at

_CHOICES = re.compile(r":[^{}]*\}")
"""The words that a piece of a path is limited to, as they stand in its template."""

Headers = list[tuple[bytes, bytes]]
"""Header names are lower case on both sides of the proxy (ASGI's rule); order and repetition are kept."""


# --- where things stand on the wire -------------------------------------------------------------------


@immutable
class HeaderKey:
    """A header that carries a key, after a scheme where there is one (BEARER below).

    As the place of a gateway token (downstream) or of the vendor's key (upstream). `scheme` is matched
    without regard to case (RFC 9110 section 11.1).
    """

    name: str
    scheme: str = ""


BEARER = HeaderKey("authorization", "Bearer ")


@immutable
class QueryKey:
    """A query parameter that carries a gateway token. It is taken out on the way up; the rest of the query
    stays byte for byte."""

    name: str


TokenPlace = HeaderKey | QueryKey


@immutable
class Upstream:
    """Where a vendor is reached and how we prove who we are.

    `url_env` overrides `base_url` (scheme, host and port only). `key_env` names the variable of the key.
    Times in seconds: `connect_timeout_s` per attempt; `first_byte_timeout_s` from the request's last byte
    to the answer's head; `idle_timeout_s` between two reads of the answer; `pool_idle_s` is how long an
    unused connection is kept, below what the vendor keeps it.
    """

    base_url: str
    url_env: str
    key_env: str
    credential: HeaderKey
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 600.0
    pool_idle_s: float = 30.0
    fixed_headers: Mapping[str, str] = field(default_factory=dict)
    """Sent when the client sent none of that name."""
    secret_headers: Mapping[str, str] = field(default_factory=dict)
    """Further keys of the platform's, by header: the option that has it. Sent where it is set, whatever the client sent."""


# --- what a request asks for, and what its answer used ------------------------------------------------


NOTHING_FOUND: Mapping[str, Any] = {}
LET_GO_BYTES_MAX = 512 * 1024
"""A body up to this length is parsed, looked through and let go of in one step of the event loop, which so takes no longer than
one that parses the longest which is read in one step (`BYTES_AT_ONCE` of reading.py). The fields of a longer body are freed in
the step that begins its answer."""


@dataclass(slots=True)
class Inbound:
    """One request as a meter sees it. `fields` is the decoded JSON object ({} for a GET)."""

    method: str
    path_params: Mapping[str, str]
    query: bytes
    headers: Headers
    body: bytes
    fields: Mapping[str, Any]
    looked_up: Mapping[str, Any] = field(default_factory=dict)
    """What the operation's LookUp found."""
    time_left_s: int | None = None
    """How long what the request starts may run by what is left of quota and budget; None where nobody looked."""
    looked_behind: Mapping[str, Any] = field(default_factory=dict)
    """What the one behind it found."""
    _walks: dict[tuple[str, ...], Walk] | None = field(default=None, repr=False)

    def below(self, *keys: str) -> Walk:
        """Every object in the value at a path of `fields`; all of the body without a path. Found once."""
        return self.at(keys)

    def at(self, keys: tuple[str, ...]) -> Walk:
        """As `below`."""
        if self._walks is None:
            self._walks = {}
        walk = self._walks.get(keys)
        if walk is None:
            walk = self._walks[keys] = Walk(value_at(self.fields, keys), self.body)
        return walk

    def let_go(self, names: Collection[str]) -> None:
        """Give up these of the `fields`, and what was found in the body; the body stays. What the next request is parsed into is
        then memory that has just been used, where a tree kept until its answer lies in memory that no cache holds any more."""
        if len(self.body) <= LET_GO_BYTES_MAX:
            self.fields = {name: value for name, value in self.fields.items() if name not in names}
            self._walks = None

    def forget_body(self) -> bytes:
        """Give up the body and what was found in it; `fields` stay."""
        body, self.body = self.body, b""
        self._walks = None
        return body


@immutable
class Pricing:
    """What a meter may ask while it reads a request."""

    table: PriceTable
    now_ms: int
    bytes_per_token: int
    """The input estimate: one token for so many bytes of body (a setting; low on purpose)."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The surface's own settings, by environment variable."""


@immutable
class AddedEvent:
    """The one event of a stream that is there only because we asked for it: it does not go down.

    `is_it` decides by an event's data; only events in whose bytes `marker` stands are asked about. The first
    that is it is taken out, with its framing; a second is the vendor's own doing and passes.
    """

    marker: bytes
    is_it: Callable[[bytes], bool]


@immutable
class Slicing:
    """How the output of a stream can be held in slices, granted ahead of what it shows.

    Told without reading events: `text` finds the output in whole lines of the stream, as group 1; `call` what begins
    a call of a tool, whose frame (the vendor's own tokens around names and arguments) is shown nowhere. Where both
    find nothing, there is a token for every `stream_bytes_per_token` bytes all the same. `unseen_tokens`: output that
    may run before any of it is seen (reasoning); it is held from the start, and not counted again where it shows.
    """

    text: re.Pattern[bytes]
    call: re.Pattern[bytes]
    stream_bytes_per_token: int
    unseen_tokens: int = 0


@immutable
class Demand:
    """What a request may cause. `ceiling` is the most it can use (held); `floor` is what it uses as soon as
    the vendor has it (booked when nothing better is ever learnt). `models` are all models it may run on."""

    models: tuple[str, ...] = ()
    is_streaming: bool = False
    ceiling: Usage = NOTHING
    floor: Usage = NOTHING
    slicing: Slicing | None = None
    """None where all output is held from the start: an answer that cannot be cut, reasoning without a bound."""
    costs_less: str = ""
    """What its caller could ask for instead, in words that go before "costs less"; empty where nothing helps."""
    body: bytes | None = None
    """What goes up instead of the client's body, where a stream tells its usage only when asked to."""
    fields: Mapping[str, Any] | None = None
    """What the body says instead of what the client's does, where the request must be bounded."""
    sought: Mapping[str, str] = field(default_factory=dict)
    """What narrows the list in which its trace is looked for: pieces of its path (see Deferred.by_tag)."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """The object that it makes, as far as the request says what that is (see Deferred.records)."""
    added_event: AddedEvent | None = None
    """What such a stream then has too much."""
    is_deferred: bool = False
    """The work may go on after its answer (see Deferred)."""
    scheduled_ms: int | None = None
    """When the work will be done, by the vendor alone (see Scheduled); None where this request does it."""


NO_DEMAND = Demand()
"""What a request asks for before it has been read."""


@dataclass(slots=True)
class AnswerHead:
    """Status and headers of a vendor's answer."""

    status: int
    headers: Headers
    _first: dict[bytes, bytes] = field(init=False, compare=False, repr=False)
    """The first value of each header."""

    def __post_init__(self) -> None:
        self._first = dict(reversed(self.headers))

    def header(self, name: bytes) -> bytes:
        """The first value of a header, b"" when absent."""
        return self._first.get(name, b"")


PASS_ALL = -1


class Observer(Protocol):
    """Reads a copy of one answer's decoded bytes. Sans-I/O: never waits, never raises, delays nothing."""

    def feed(self, chunk: bytes) -> int:
        """Take the next bytes. Returns PASS_ALL, or the offset in `chunk` from which bytes must wait for
        the settle: where the event that ends the stream begins (0 if it began in an earlier chunk)."""

    def end(self) -> None:
        """The vendor closed the answer properly at the HTTP level; nothing more will be fed."""

    @property
    def is_complete(self) -> bool:
        """The answer is whole by its own rules (a stream saw its terminator, a body parsed)."""

    @property
    def at_boundary(self) -> bool:
        """No event is half passed on: an event of our own may be appended."""

    @property
    def error(self) -> str | None:
        """The error the vendor reported inside the answer, if any (its type: `overloaded_error`)."""

    def usage(self) -> Usage:
        """The best knowledge so far, at any time; exact only when the vendor has reported it finally."""


class Meter(Protocol):
    """How an operation counts."""

    @property
    def is_free(self) -> bool:
        """Rate limited, books a zero entry, holds no money."""

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """What the request may cause. Raises Refused(BAD_REQUEST | MODEL_UNAVAILABLE)."""

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:
        """An observer for a successful answer (2xx)."""


@immutable
class ForbiddenField:
    """A body field that would reach an object another user may own, or somebody else's money.

    `path`: keys joined by dots from the top; `**` stands for any depth below what is before it
    (`"messages.**.file_id"`). With `value`, only that value is refused. A null is allowed: it reaches nothing.
    """

    path: str
    why: str
    value: str | None = None


@immutable
class HandsOut:
    """Where an answer carries the id of an object that the vendor keeps for the user who asked.

    It is bound to that user, durably, before the client sees the bytes that carry it: the whole body, or in a
    stream the first event with it. `path`: keys joined by dots from the top of the body or of an event's
    data; a list on the way stands for each of its items. `when` tells requests whose answer hands out nothing
    that lasts.
    """

    kind: str
    path: str
    when: Callable[[Inbound], bool] | None = None
    is_caseless: bool = False
    """The id is the same in any case, as an address is: bound and looked up in lower case."""


@immutable
class Names:
    """Where a request names an object: in its path, its query, or its body (one of the three).

    Checked on the decoded value. Another user's is 404, in `words` ({id} is replaced); so is one that nobody
    owns, unless `may_be_unknown` (clients invent ids of their own for some kinds, which reach nothing).
    `body_field` is as HandsOut.path; `when` narrows it to objects, those that hold the id, of which it is true.
    `facts` go to the dialect: how the vendor tells which parameter was wrong.
    """

    kind: str
    words: str
    path_param: str = ""
    query_param: str = ""
    body_field: str = ""
    may_be_unknown: bool = False
    is_required: bool = False
    """Without it the request would be about what all users have: it is refused (400)."""
    is_caseless: bool = False
    """As HandsOut."""
    when: Callable[[Mapping[str, Any]], bool] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@immutable
class Fills:
    """A field at the top of a body that stands for an object of the user's: their oldest of `kind` where the request names none;
    named, it must be theirs (404 in `others`). Who has none is refused in `words`.
    """

    kind: str
    field: str
    words: str
    others: str


@immutable
class Chooses:
    """The id that a request chooses for what it makes, in lower case: None where the vendor chooses. One that is another
    user's, or was before it was deleted, is refused in `words`: an id never changes hands.
    """

    kind: str
    id_of: Callable[[Mapping[str, Any]], str | None]
    words: str


@immutable
class Tag:
    """A field of a request's body that tells of what it makes by which request that was: whose it is can be found out
    although the answer is lost (see Swept).

    `field`: keys joined by dots from the top; objects on the way are made where there are none. What goes up there is made of
    the request's id, and does not come down. `is_optional`: a caller's own value goes up instead; otherwise it is refused.
    `makes_once`: the vendor makes one thing for each value, so that an answer that was lost is asked for again.
    """

    field: str
    is_optional: bool = False
    makes_once: bool = False

    @property
    def key(self) -> str:
        """The last of its keys: under which it stands in answers, too."""
        return self.field.rpartition(".")[2]


@immutable
class Keeps:
    """A list in an answer that has what all users of the account own: only what is the caller's own goes down.

    `items`: keys joined by dots from the top of the body; empty where the body is the list. `counts`: fields at the top that
    say how many there are.
    """

    kind: str
    id_field: str
    items: str = ""
    counts: tuple[str, ...] = ()


@immutable
class Timed:
    """What a request starts costs by the second, and goes on by itself until somebody ends it.

    `product` and `unit`: a second in the price table. It is held in slices of `slice_s`, never fewer than the vendor bills at
    least, of the operation's quotas and of money; on `gauge` instead of the requests in flight. `waited_s`: how many seconds it
    has waited before it began to cost, by what a poll's observer was told; None while it waits. Longer than `waits_at_most_s`
    nothing is believed to have waited.
    """

    product: str
    unit: str
    gauge: str
    slice_s: int
    waited_s: Callable[[Observer], float | None] = lambda _: 0.0
    waits_at_most_s: int = 0


@immutable
class Home:
    """What a user has at a vendor from their first request on, as `{name}` in upstream paths: a POST of `body` (of the
    user's tag) to `path`, answered with its id in `id_field`. `within`: the homes that stand in `path`. The vendor must take a second
    POST of the same for the same thing.
    """

    name: str
    kind: str
    path: str
    body: Callable[[str], Mapping[str, Any]]
    id_field: str
    within: tuple[str, ...] = ()
    is_caseless: bool = False
    may_end: bool = False
    """The user may delete it; the next request that needs one takes another, or makes it."""


@immutable
class Swept:
    """A list of all that the account has of a kind, looked through now and then for what has no owner here: made for a user
    whose request died before its answer, or whose answer was lost.

    `path`: of a GET at the vendor. `items`: the field of the answer with the list; empty where the answer is the list.
    Fields of an item, keys joined by dots: `id_field` has its id; `tag` a tag of ours (see Tag); `within` the id of an object
    of the vendor's that it lies in, with the kind of that: it belongs to whom that does. `page`: the field of the answer with the
    token of the next page, and the query parameter that takes it. `details`: of a GET that shows the item with its id for {id}
    whole, where the list does not show its tag.
    """

    kind: str
    path: str
    id_field: str
    items: str = ""
    tag: str = ""
    within: tuple[str, str] | None = None
    page: tuple[str, str] | None = None
    is_caseless: bool = False
    """As HandsOut."""
    details: str = ""


@immutable
class LookUp:
    """An object of the vendor's that must be read before a request can be priced; `path` with the request's own pieces.

    Its meter finds it in `Inbound.looked_up`. Where the vendor knows none, the request is refused in `words`. `when`
    narrows it to requests that need it.
    """

    path: str
    words: str
    when: Callable[[Inbound], bool] | None = None
    pieces: Callable[[Inbound], Mapping[str, str]] | None = None
    """Of `path`, that do not stand in the request's own: ids, each of which becomes one piece of it."""
    behind: "LookUp | None" = None
    """What else must be read, by what this one found; its meter finds it in `Inbound.looked_behind`."""


@immutable
class Ending:
    """How a vendor is told to end work: a request whose `path` has its id for {id}, and of scheduled work what it belongs to
    for {about}. Told twice, it must be as told once."""

    method: str
    path: str
    body: bytes = b""
    """JSON."""


@immutable
class Scheduled:
    """Work that a request only schedules (`Demand.scheduled_ms`): the vendor does it later, with no request of ours.

    Its hold stays until a poll finds it done, or certainly not to be done any more. It is written down before the vendor
    hears of it, by the request's id, which `marked` puts into the body as a tag that the vendor keeps with the work and
    with what comes of it: so it can be found after a crash or a lost answer, and one schedule told from the next.

    `kind`: of the id that the vendor gives it, which stands in the path as `id_piece` where a request changes it.
    `about`: the kind and the piece of the object that it belongs to; it ends with that, and webhooks tell of that.
    Paths, with {about}, {id} and {tag}: `path` shows it, `listed` lists it by its tag, `done` lists what came of it.
    `ended_by`: names of operations after whose success it is no more; `ending`: how we end it ourselves. Work that the vendor
    knows no more of after its time, and that none of these may have ended, counts as done.
    Times in seconds: asked about every `poll_s`, more often around its time; a hold of which nothing was heard for
    `due_s` after its time expires, and is given up when nothing is heard until `given_up_after_s` after it.
    """

    kind: str
    id_piece: str
    about: tuple[str, str]
    path: str
    listed: str
    done: str
    marked: Callable[[Inbound, str], Mapping[str, Any]]
    """Fields that go up in place of the client's, with the request's id in them."""
    id_of: Callable[[Observer, str], str | None]
    """Its id, by an answer to the request of this id; None where that has scheduled nothing."""
    found: Callable[[Mapping[str, Any], str], tuple[str, Mapping[str, Any]] | None]
    """Its id and itself, in a list, by its request's id."""
    stands: Callable[[Mapping[str, Any], str], bool]
    """Whether it will be done as the request of this id has scheduled it."""
    used: Callable[[Mapping[str, Any], str], Usage | None]
    """What was done by the request of this id, in a list of what was done; None where nothing was."""
    ended_by: tuple[str, ...]
    ending: Ending | None = None
    name_field: str = ""
    """A field of the body, one of `Operation.namespaced`, by whose value the vendor makes it only once: ours, which no
    answer shows, where the client gave none."""
    poll_s: float = 900.0
    due_s: float = 86_400.0
    given_up_after_s: float = 604_800.0


@immutable
class Deferred:
    """Work that goes on after the request that started it; its hold stays until a poll finds it ended.

    `kind`: of the object under which it goes on (handed out by the same operation). `path`: where the vendor
    is asked about it, {id} is replaced. `is_running` reads the observer of the first answer, and of every
    poll's: whether the work goes on. Times in seconds: a poll every `poll_s`; a hold of which nothing was heard
    for `due_s` expires (a report that comes later adjusts it); given up when it is `given_up_after_s` old, and
    was asked about as often as that has room for. `ending`: how it is ended for a user who may do nothing any more; None where it
    cannot be. `by_tag`: where it is looked for when its answer was lost, by the tag of its request ({tag} in the path, and what its
    demand has `sought`).
    """

    kind: str
    path: str
    is_running: Callable[[Observer], bool]
    ending: Ending | None = None
    poll_s: float = 10.0
    due_s: float = 900.0
    given_up_after_s: float = 86_400.0
    by_tag: Swept | None = None
    tells: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]] | None] | None = None
    """Of the object that a poll found ended, what its user's agent is told, once: the kind of the message, and its document."""
    records: Callable[[str, Mapping[str, Any]], Step] | None = None
    """What is written of the object beside its reservation (of this id) and its entry, by what is known of it: as it was asked for
    (`Demand.made`), as a list has it, as a poll found it ended."""


@immutable
class Arrives:
    """Work that begins at the vendor with no request of ours, at something that an operator has assigned to a user: theirs, and
    billed to them, if they had that when it began.

    `name`: as what it stands in the ledger. `operation`: the name of the one as whose work it is asked about, ended and booked.
    `listed`: where such work is listed, newest first; what it is `within` is what it arrives at. `began`: the field of an item
    that says when (ISO 8601). `is_one`: whether an item is such. `demand`: what one may use, by the surface's options.
    """

    name: str
    operation: str
    listed: Swept
    began: str
    is_one: Callable[[Mapping[str, Any]], bool]
    demand: Callable[[Mapping[str, str]], Demand]


@immutable
class MessageIds:
    """Where the messages of a websocket name objects of a kind: an id in the field `one`, a list of them in `many`."""

    kind: str
    one: str
    many: str
    is_caseless: bool = False
    """As HandsOut."""


@immutable
class EventSocket:
    """A websocket on which a vendor tells of events: JSON objects with a `type`, as texts.

    A client says one thing, what it asks to hear (`asks`): of the objects it names at the top of its message, all of them
    the user's; without any, of the user's home. What a vendor says goes down where it names objects, at any depth, and all
    are the user's. Of the types in `answers` it may name none; its errors (`errors`) are shown as `shown_error` makes them.
    Everything else is dropped.
    """

    base_url: str
    url_env: str
    """As Upstream; unset, the surface's own override holds here too."""
    asks: str
    choices: tuple[str, ...]
    """Fields beside ids that a client may narrow its wish by: lists of texts."""
    ids: tuple[MessageIds, ...]
    home: str
    """The name of that home; its kind is one of those in `ids`."""
    answers: tuple[str, ...]
    errors: str
    says_error: Callable[[Refused], bytes]
    """A refusal of ours as a message of the vendor's."""
    shown_error: Callable[[Mapping[str, Any]], bytes | None]
    """The vendor's error without what it says of our account; None where our account is what it is about."""
    more_token_places: tuple[TokenPlace, ...] = ()
    """Beside the surface's: where clients put it that cannot set headers."""
    contents: tuple[str, ...] = ()
    """Fields that hold what anybody wrote: no id in them counts."""
    conceals: Mapping[str, str] = field(default_factory=dict)
    """Fields of our account, at any depth, and the word that stands for their value."""


@immutable
class Links:
    """Addresses in an answer that lead past us to what a vendor runs for its user, and keys to that: ours stand in their place.

    In any object of the answer with one of these fields; its `id_field` says what they lead to. `sockets` become the address
    of our own websocket, `path` with a ticket that is good for the seconds of the option `valid_env`; `keys` become the ticket
    itself; `others` are emptied. What still holds a key of the platform's after that does not go down.
    """

    kind: str
    id_field: str
    path: str
    valid_env: str
    sockets: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@immutable
class Question:
    """What clients ask with a GET below a websocket's own path before they connect: answered here, with its address."""

    path: str
    says: Callable[[str], bytes]
    """The answer, of that address."""


@immutable
class SplicedSocket:
    """A websocket into what a vendor runs for its user (see Timed): behind the handshake bytes pass as they come.

    What it leads to, an object of `kind`, is named by a ticket in the path, as `{ticket_piece}`; or by `id_param` of the query
    beside a gateway token. Where neither is there, the operation named `makes` makes one, as if its user had asked for that: kept for
    the user's next connection for so long after this one as the option `linger_env` says, then ended.
    `path`: of a GET at the vendor that shows the object; `url_field` of that is the address of its websocket: at the vendor's
    own host, or under one of `hosts`. `words` are for an object that is none, or goes on no more. The option `once_env` says whether a
    ticket is good for one connection only.
    """

    kind: str
    path: str
    url_field: str
    hosts: tuple[str, ...]
    words: str
    ticket_piece: str = ""
    id_param: str = ""
    makes: str = ""
    linger_env: str = ""
    once_env: str = ""
    question: Question | None = None


@immutable
class Example:
    """One exchange of an operation: the conformance suite tests every operation from it."""

    path: str
    body: bytes = b""
    answer: bytes = b"{}"
    answer_content_type: str = "application/json"
    usage: Usage = NOTHING
    while_running: bytes = b""
    """The answer as long as what it tells of goes on, where websockets lead into that (SplicedSocket)."""


@dataclass(frozen=True)
class Operation:
    """One metered method and path. `path` may hold `{name}` pieces, which match anything but a slash,
    `{name:this|that}`, which match these words, and one `{name:*}`, which matches anything, slashes too (ids that
    clients write as they are, or encoded); what is not declared is 404. Of several that match, the first declared.

    `query`: the parameters that may stand in the query, others are 400; None where no parameter of the vendor
    can reach anything. `may_lack_body`: a POST that is understood without one.
    """

    method: str
    path: str
    meter: Meter
    example: Example
    forbidden: tuple[ForbiddenField, ...] = ()
    query: tuple[str, ...] | None = None
    may_lack_body: bool = False
    names: tuple[Names, ...] = ()
    hands_out: tuple[HandsOut, ...] = ()
    deferred: Deferred | None = None
    scheduled: Scheduled | None = None
    touches: tuple[str, str] | None = None
    """What it may change or end of scheduled work: a kind, and the piece of the path that names it."""
    quotas: tuple[str, ...] = ()
    """The plan's counts that it draws on, by meter (metering/quotas.py): as much as its usage has of their units."""
    upstream_path: str = ""
    """Where the request goes at the vendor, if not to its own path: with pieces of `path`, as they came, and homes of
    the surface."""
    homes: tuple[str, ...] = ()
    """Those that `upstream_path` needs."""
    looks_up: LookUp | None = None
    is_idempotent: bool = False
    """Must not be done twice: the vendor does it once for each value of the header `idempotency-key`, which is ours
    there (see metering/repeats.py)."""
    at_most: tuple[str, str] | None = None
    """How many objects a user may have before this: their kind, and the option that says so."""
    chooses: Chooses | None = None
    not_during: tuple[str, ...] = ()
    """Names of operations that must not be under way for the same user: they change what this one looks up, or it changes
    what they have. What is looked up is then read again behind the reservation."""
    ends: tuple[str, str] | None = None
    """After a success an object is no more: its kind, and the piece of the path that names it."""
    namespaced: tuple[str, ...] = ()
    """Fields at the top of the body whose value is a name within the whole account: the user's own there, by a prefix
    that no answer shows. Nor does one show a tag of ours there."""
    tag: Tag | None = None
    """By which what it makes is known again."""
    forces: tuple[tuple[str, str], ...] = ()
    """Fields at the top of the body that the operator decides: the option whose value stands there whatever the caller says;
    without a value, nothing does."""
    fills: tuple[Fills, ...] = ()
    told_at: tuple[str, str] | None = None
    """A field at the top of the body that is ours alone: the address, below PUBLIC_URL, at which the vendor shall tell of this
    one request; the path ends with what names it. Without PUBLIC_URL, the vendor is told none."""
    takes_any_body: bool = False
    """The body goes up as it came, whatever it is: nothing in it is looked at."""
    keeps: Keeps | None = None
    timed: Timed | None = None
    hides: tuple[str, ...] = ()
    """Further keys under which its answers have tags of ours, which are taken out."""
    renders: Callable[[bytes, Standing], bytes] | None = None
    """The body of a success as its caller is shown it, where that is not the vendor's own."""
    replies: Callable[[bytes, Standing, Mapping[str, Any]], bytes] | None = None
    """The same, by what its own body said beside what it is filled with."""
    in_path: tuple[str, ...] = ()
    """Parameters of the query that are pieces of `upstream_path`, and stand in no query there. Each is one that it `names`."""
    key_env: str = ""
    """The variable of the vendor's key for this operation, where the vendor sells keys by product; unset, the
    surface's own is used."""
    socket: EventSocket | None = None
    """The request asks for a websocket, and what passes on it."""
    spliced: SplicedSocket | None = None
    """The request asks for a websocket, and where that leads."""
    long_fields: tuple[str, ...] = ()
    """Fields at the top of the body that may be long, and that nobody asks for once the request is priced and is known to name
    nothing that is anybody's: they are let go of then."""
    links: Links | None = None
    at_most_in_query: tuple[tuple[str, str], ...] = ()
    """Parameters of the query that are whole numbers, each with the option that says how much it may be, and is where it is not
    given."""

    @cached_property
    def is_websocket(self) -> bool:
        return self.socket is not None or self.spliced is not None

    @cached_property
    def is_about_objects(self) -> bool:
        """What it names, stands on or chooses must be its user's."""
        return bool(self.names or self.homes or self.fills or self.chooses is not None)

    @cached_property
    def is_prepared(self) -> bool:
        """Something must be looked up before it is priced."""
        return bool(
            self.is_idempotent
            or self.links is not None
            or self.looks_up
            or self.at_most
            or self.not_during
            or self.keeps is not None
            or self.timed is not None
            or self.told_at is not None
        )

    @cached_property
    def is_about_scheduled(self) -> bool:
        """It may schedule work, or change or end what is scheduled."""
        return self.scheduled is not None or self.touches is not None

    @cached_property
    def edits_answer(self) -> bool:
        """A success does not go down as the vendor wrote it."""
        return bool(
            self.namespaced
            or self.tag
            or self.hides
            or self.renders
            or self.replies
            or self.keeps
            or self.links is not None
        )

    @cached_property
    def edits_body(self) -> bool:
        """What goes up is not what the client sent."""
        return bool(self.namespaced or self.tag or self.forces or self.fills or self.told_at)

    @cached_property
    def ending(self) -> Ending | None:
        """How what goes on after its request, or is only scheduled by it, is ended; None where it cannot be."""
        later = self.deferred or self.scheduled
        return None if later is None else later.ending

    @cached_property
    def is_repeatable(self) -> bool:
        """The vendor does it once, however often it is asked."""
        return self.is_idempotent or (self.tag is not None and self.tag.makes_once)

    @cached_property
    def name(self) -> str:
        """The label in metrics and entries: `POST /v1/messages`."""
        return f"{self.method} {_CHOICES.sub('}', self.path)}"


# --- how a surface speaks -----------------------------------------------------------------------------


@immutable
class Rendered:
    """An answer of our own."""

    status: int
    headers: Headers
    body: bytes


class Dialect(Protocol):
    """A vendor's error shapes, so that its SDK raises its own class and obeys our retry advice."""

    @property
    def stream_comment(self) -> bytes | None:
        """What may be written into a silent stream to keep it alive; None where clients choke on it."""

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        """A refusal before any byte of an answer."""

    def stream_error(self, refused: Refused, request_id: str) -> bytes:
        """The same, after the 200 of a stream is out."""

    def stream_error_from(self, status: int, body: bytes, request_id: str) -> bytes:
        """A vendor's error answer, told inside a stream whose 200 we had to send before it came."""

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        """The refusal to send instead, when the vendor's error is about our own account and not the request; or, as
        UPSTREAM_UNREACHABLE, when the vendor failed, and callers know another status for that."""

    def shown_error(self, body: bytes) -> bytes | None:
        """A vendor's error without what it says of our account (its plan, its quotas, its other objects); None where
        it goes down as it came."""

    def limit_headers(self, standing: Standing, now_ms: int) -> Headers:
        """The caller's own limits under the names that the vendor has for its own, where it has any."""


class Option(NamedTuple):
    """A setting of one surface, by environment variable. With a `unit` it is a whole number. What is given must match `pattern`
    (a regular expression) as a whole, or `expected` says why the service does not start; a secret is not shown then.
    """

    variable: str
    default: str
    meaning: str
    unit: str = ""
    pattern: str = ""
    expected: str = ""
    is_secret: bool = False


@immutable
class Surface:
    """A vendor as we expose it. `mounts`: the first is canonical, the rest are aliases.

    `dropped_request_headers` and `dropped_answer_headers` come on top of hop-by-hop and credential headers;
    a name that ends in `*` is a prefix. `options`: this surface's own settings.
    """

    name: str
    provider: str
    """The vendor: in the price table, and as whose its objects are known, for all surfaces that it has."""
    mounts: tuple[str, ...]
    upstream: Upstream
    token_places: tuple[TokenPlace, ...]
    operations: Sequence[Operation]
    dialect: Dialect
    dropped_request_headers: tuple[str, ...] = ()
    dropped_answer_headers: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    homes: tuple[Home, ...] = ()
    swept: tuple[Swept, ...] = ()
    arrivals: tuple[Arrives, ...] = ()

    @property
    def works(self) -> list[tuple[str, Operation]]:
        """What may go on without a request: its name in the ledger, and the operation that says how it is asked about."""
        own = [(one.name, one) for one in self.operations if one.deferred or one.scheduled]
        by_name = dict(own)
        return [*own, *((one.name, by_name[one.operation]) for one in self.arrivals)]
