"""Prepaid credit as it comes and goes outside of requests: grants and what is taken back, each once by its source.

The source says what a grant is for (an invoice, an event of a payment provider). It is the key under which a
grant happens once: whoever delivers it may repeat it until an answer comes, after a crash too. Grant, entry,
account and the word to running workers are one unit of work.
"""

from typing import Any, cast

from metering.admission import owner_of
from metering.clock import Clock, instant
from metering.credit import CREDIT
from metering.ledger import INSERT_ENTRY, NO_PERIOD, Balance, Line, balance_of, encode_lines
from metering.money import credits_left, credits_of, usd
from metering.store.readers import Readers
from metering.store.store import Store
from metering.store.writer import Declined, Row, Rows, Step, Unit, Value
from metering.users import INSERT_CHANGE, NotFoundError
from metering.values import immutable

GRANT_NANOUSD_MAX = 10**15
"""A million USD at once: more is a typing error."""
GRANTED_NANOUSD_MAX = 10**18
"""Of one user in all: it keeps every sum inside 64 bits."""
SOURCE_CHARS_MAX = 200
NOTE_CHARS_MAX = 500
GRANTS_MAX = 1_000
"""Grants, and balances, read at once."""

MISSING, GRANTED_ALREADY, SPENT, TOO_MUCH = "missing", "granted_already", "spent", "too_much"

SELECT_USER_ID = "SELECT id FROM users WHERE id = ?1"
SELECT_NO_SUCH_SOURCE = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM grants WHERE source = ?1)"
GIVE_CREDIT = f"""
INSERT INTO accounts (owner, meter, period, allowance, spent, held) VALUES (?1, ?2, ?3, ?4, 0, 0)
ON CONFLICT (owner, meter, period) DO UPDATE SET allowance = accounts.allowance + excluded.allowance
WHERE accounts.allowance + excluded.allowance <= {GRANTED_NANOUSD_MAX}"""
TAKE_CREDIT = """
UPDATE accounts SET allowance = allowance + ?4
WHERE owner = ?1 AND meter = ?2 AND period = ?3 AND spent + held <= allowance + ?4"""
INSERT_GRANT_ENTRY = f"{INSERT_ENTRY} RETURNING seq"
INSERT_GRANT = """
INSERT INTO grants (source, user_id, amount_nanousd, note, at_ms, entry_seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (source) DO NOTHING RETURNING source"""

_COLUMNS = "source, user_id, amount_nanousd, note, at_ms"
SELECT_GRANT = f"SELECT {_COLUMNS} FROM grants WHERE source = ?1"
SELECT_GRANTS = f"SELECT {_COLUMNS} FROM grants ORDER BY entry_seq DESC LIMIT ?1"
SELECT_GRANTS_OF = (
    f"SELECT {_COLUMNS} FROM grants WHERE user_id = ?2 ORDER BY at_ms DESC, entry_seq DESC LIMIT ?1"
)
SELECT_CREDITS = """
SELECT u.id, a.spent, a.held, a.allowance
FROM users u JOIN accounts a ON a.owner = 'user:' || u.id AND a.meter = 'credit' AND a.period = ''
ORDER BY u.id LIMIT ?1"""


class GrantError(Exception):
    """A grant cannot be made; the message says what was given and what is expected."""


@immutable
class Grant:
    """Credit given to a user, or, with a negative amount, taken back."""

    source: str
    user_id: str
    amount_nanousd: int
    note: str | None
    at_ms: int

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "user": self.user_id,
            "amount_nanousd": self.amount_nanousd,
            "amount_usd": usd(self.amount_nanousd),
            "note": self.note,
            "at": instant(self.at_ms),
        }


@immutable
class Granted:
    """What became of a grant. Not `is_new`: the source was granted before, the same amount to the same user."""

    grant: Grant
    is_new: bool


async def grant(
    store: Store, clock: Clock, user_id: str, amount_nanousd: int, *, source: str, note: str | None = None
) -> Granted:
    """Give credit, usable on every worker within a second; or take it back, as far as it is neither spent nor held.

    Raises GrantError, NotFoundError, Refused(STORE_UNAVAILABLE). After the last it may have been granted: repeat it.
    """
    _check(amount_nanousd, source, note)
    asked = Grant(source, user_id, amount_nanousd, note, clock.now_ms())
    answer = await store.writer.submit(_unit(asked))
    if not isinstance(answer, Declined):
        return Granted(asked, is_new=True)
    if answer.refusal == GRANTED_ALREADY:
        return await _repeated(store, asked)
    if answer.refusal == MISSING:
        raise NotFoundError(f"there is no user {user_id}")
    credit = await credit_of(store.readers, user_id)
    if answer.refusal == TOO_MUCH:
        raise GrantError(
            f"{user_id} has been granted USD {usd(credit.allowance)} already: with USD {usd(amount_nanousd)} "
            f"it would be more than USD {usd(GRANTED_NANOUSD_MAX)}"
        )
    left = credit.allowance - credit.spent - credit.held
    raise GrantError(
        f"USD {usd(-amount_nanousd)} cannot be taken back from {user_id}: USD {usd(left)} of the prepaid credit is "
        f"left ({usd(credit.spent)} is spent, {usd(credit.held)} held by requests)"
    )


async def credit_of(readers: Readers, user_id: str) -> Balance:
    """A user's prepaid credit: `allowance` is what was granted. Zeros when nothing ever was."""
    return await balance_of(readers, owner_of(user_id), CREDIT, NO_PERIOD)


async def credits_of_users(readers: Readers) -> dict[str, Balance]:
    """Of everybody who was ever granted any, in order of ids, GRANTS_MAX at most."""
    rows = await readers.rows(SELECT_CREDITS, (GRANTS_MAX,))
    return {str(row[0]): Balance(*cast("tuple[int, int, int]", row[1:])) for row in rows}


async def grants_of(
    readers: Readers, user_id: str | None = None, *, grants_max: int = GRANTS_MAX
) -> list[Grant]:
    """The newest grants (of a user), newest first."""
    assert 0 <= grants_max <= GRANTS_MAX
    if user_id is None:
        return [_grant(row) for row in await readers.rows(SELECT_GRANTS, (grants_max,))]
    return [_grant(row) for row in await readers.rows(SELECT_GRANTS_OF, (grants_max, user_id))]


def credit_as_json(credit: Balance) -> dict[str, int]:
    """Credits for people (granted and left rounded down, spent and held up) beside the exact nano-USD."""
    left_nanousd = credit.allowance - credit.spent - credit.held
    return {
        "granted": credits_left(credit.allowance),
        "spent": credits_of(credit.spent),
        "held": credits_of(credit.held),
        "left": credits_left(left_nanousd),
        "granted_nanousd": credit.allowance,
        "spent_nanousd": credit.spent,
        "held_nanousd": credit.held,
        "left_nanousd": left_nanousd,
    }


async def prepaid_credit(readers: Readers, user_id: str) -> dict[str, int]:
    """The user's meter of it."""
    return credit_as_json(await credit_of(readers, user_id))


# --- inside ------------------------------------------------------------------------------------------


def _check(amount_nanousd: int, source: str, note: str | None) -> None:
    if not amount_nanousd or abs(amount_nanousd) > GRANT_NANOUSD_MAX:
        raise GrantError(
            f"amount: given USD {usd(amount_nanousd)}, expected more than 0 and up to USD {usd(GRANT_NANOUSD_MAX)}"
        )
    if not source.isprintable() or source != source.strip() or not 0 < len(source) <= SOURCE_CHARS_MAX:
        raise GrantError(f"source: given {source!r}, expected 1 to {SOURCE_CHARS_MAX} printable characters")
    if note is not None and (not note.isprintable() or len(note) > NOTE_CHARS_MAX):
        raise GrantError(f"note: given {note!r}, expected up to {NOTE_CHARS_MAX} printable characters")


def _unit(grant: Grant) -> Unit:
    account = (owner_of(grant.user_id), CREDIT, NO_PERIOD)
    is_given = grant.amount_nanousd > 0

    def grant_params(rows: Rows) -> tuple[Value, ...]:
        (seq,) = cast("tuple[int]", rows[3])
        return (grant.source, grant.user_id, grant.amount_nanousd, grant.note, grant.at_ms, seq)

    return Unit(
        (
            Step(SELECT_USER_ID, (grant.user_id,), refusal=MISSING),
            # Before the account: a repetition is one, whatever is left by now.
            Step(SELECT_NO_SUCH_SOURCE, (grant.source,), refusal=GRANTED_ALREADY),
            Step(
                GIVE_CREDIT if is_given else TAKE_CREDIT,
                (*account, grant.amount_nanousd),
                refusal=TOO_MUCH if is_given else SPENT,
            ),
            Step(INSERT_GRANT_ENTRY, _entry_params(grant, Line(*account, grant.amount_nanousd))),
            Step(INSERT_GRANT, grant_params, refusal=GRANTED_ALREADY),
            Step(INSERT_CHANGE, ("user", grant.user_id, grant.at_ms)),
        )
    )


def _entry_params(grant: Grant, gained: Line) -> tuple[Value, ...]:
    """An entry that costs nothing. Its line is what the account was given, where those of others say what they spent."""
    return (
        *("grant", None, grant.user_id, None, grant.at_ms),
        *(None, None, None, None),  # surface, operation, model, outcome
        *("reported", 0),
        *(0, 0, 0, 0),  # tokens
        *(None, None),  # usage, notes
        encode_lines([gained]),
        *(None, None, None, None),
    )


async def _repeated(store: Store, asked: Grant) -> Granted:
    row = await store.readers.row(SELECT_GRANT, (asked.source,))
    assert row is not None, "a grant is never deleted"
    found = _grant(row)
    if (found.user_id, found.amount_nanousd) != (asked.user_id, asked.amount_nanousd):
        raise GrantError(
            f"source: {asked.source!r} was granted already, USD {usd(found.amount_nanousd)} to {found.user_id} at "
            f"{instant(found.at_ms)}: given USD {usd(asked.amount_nanousd)} to {asked.user_id}, expected the same or "
            "another source"
        )
    return Granted(found, is_new=False)


def _grant(row: Row) -> Grant:
    return Grant(*row)  # type: ignore[arg-type]  # the columns' types are the schema's
