"""Users and gateway tokens: what is kept, what is shown, what running workers hear of."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metering.store.writer import Step, Unit
from metering.terms import TO_BE_NAMED, Cap, CapMeter, CapPeriod, Scope, TokenLimits, Whose
from metering.users import (
    CHILDREN_MAX,
    SELECT_LIVING_DESCENDANTS,
    TOKEN_DEPTH_MAX,
    TOKEN_PREFIX,
    Credential,
    Directory,
    DirectoryError,
    GatewayToken,
    NotFoundError,
    NotLiveError,
    User,
    hash_of,
)
from tests.support.ledger import NOW_MS, Bench, open_bench


@dataclass
class House:
    bench: Bench
    directory: Directory

    async def changes(self) -> list[tuple[str, str]]:
        return [change[1:] for change in await self.directory.changes_since(0)]

    async def token(self, parent: GatewayToken | None = None, **more: Any) -> GatewayToken:
        """A token of ada's, below `parent`."""
        parent_id = parent.id if parent else None
        return (await self.directory.create_token("ada", parent_id=parent_id, **more))[1]

    async def credential(self, secret: str) -> Credential:
        credential = await self.directory.credential(hash_of(secret))
        assert credential is not None
        return credential

    async def states(self, *tokens: GatewayToken) -> list[str]:
        now_ms = self.bench.clock.now_ms()
        return [(await self.directory.token(token.id)).state(now_ms) for token in tokens]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_bench(tmp_path) as bench:
        yield House(bench, Directory(bench.store, bench.clock))


async def test_a_user_is_added_once_and_found(house: House) -> None:
    ada = await house.directory.add_user("ada", plan="pro", email="ada@example.com")
    assert ada == User("ada", "ada@example.com", None, "pro", "active", NOW_MS // 1_000)
    with pytest.raises(DirectoryError, match="exists already"):
        await house.directory.add_user("ada", plan="free")
    bob = await house.directory.add_user("bob", plan="free")
    assert await house.directory.users() == [ada, bob]
    assert await house.changes() == []


@pytest.mark.parametrize("user_id", ["user_2abC", "a", "0", "a.b@c-d+e", "x" * 128])
async def test_ids_as_vendors_of_identity_write_them_are_accepted(house: House, user_id: str) -> None:
    assert (await house.directory.add_user(user_id, plan="free")).id == user_id


@pytest.mark.parametrize(
    "user_id", ["", " ", "a b", "-a", "a/b", "a\n", "é", "a\0b", "\ud800", "x" * 129, "a:b", "../x"]
)
async def test_ids_that_would_confuse_are_refused(house: House, user_id: str) -> None:
    with pytest.raises(DirectoryError, match="user id"):
        await house.directory.add_user(user_id, plan="free")


async def test_a_change_of_plan_or_status_is_heard_of_by_running_workers(house: House) -> None:
    await house.directory.add_user("ada", plan="free")
    start = await house.directory.last_change()
    assert (await house.directory.set_plan("ada", "pro")).plan == "pro"
    assert (await house.directory.disable("ada")).status == "disabled"
    assert (await house.directory.enable("ada")).status == "active"
    assert await house.changes() == [("user", "ada")] * 3
    changes = await house.directory.changes_since(start, changes_max=2)
    assert [change[1:] for change in changes] == [("user", "ada")] * 2
    assert [change[0] for change in await house.directory.changes_since(changes[-1][0])] == [
        await house.directory.last_change()
    ]


async def test_a_plan_ends_at_its_time_without_anybody_writing(house: House) -> None:
    await house.directory.add_user("ada", plan="free")
    secret, _ = await house.directory.create_token("ada")
    until_ms = NOW_MS + 60_000
    ada = await house.directory.set_plan("ada", "pro", until_ms=until_ms, next_plan="lite")
    credential = await house.directory.credential(hash_of(secret))
    assert credential is not None
    for who in (ada, credential):
        assert [who.plan_at(until_ms + late_ms) for late_ms in (-1, 0, 1)] == ["pro", "lite", "lite"]
    assert (ada.coming_plan(NOW_MS), ada.coming_plan(until_ms)) == ((until_ms, "lite"), None)
    assert await house.changes() == [("user", "ada")]


async def test_the_plan_in_force_stays_until_the_next_one_begins(house: House) -> None:
    await house.directory.add_user("ada", plan="pro")
    ada = await house.directory.set_next_plan("ada", "free", from_ms=NOW_MS + 60_000)
    assert (ada.plan_at(NOW_MS), ada.coming_plan(NOW_MS)) == ("pro", (NOW_MS + 60_000, "free"))
    ada = await house.directory.set_next_plan("ada", "lite", from_ms=NOW_MS + 90_000)
    assert (ada.plan_at(NOW_MS), ada.coming_plan(NOW_MS)) == ("pro", (NOW_MS + 90_000, "lite"))
    house.bench.clock.advance(90)
    ada = await house.directory.set_next_plan("ada", "free", from_ms=NOW_MS + 120_000)
    assert (ada.plan_at(NOW_MS + 90_000), ada.plan_at(NOW_MS + 120_000)) == ("lite", "free")
    ada = await house.directory.set_plan("ada", "power")
    assert (ada.plan_at(NOW_MS + 120_000), ada.coming_plan(NOW_MS)) == ("power", None)


async def test_what_is_not_there_cannot_be_changed_and_nobody_hears_of_it(house: House) -> None:
    directory = house.directory
    for attempt in (
        directory.user("nobody"),
        directory.set_plan("nobody", "pro"),
        directory.set_next_plan("nobody", "pro", from_ms=NOW_MS),
        directory.set_caps("nobody", ()),
        directory.disable("nobody"),
        directory.create_token("nobody"),
        directory.tokens("nobody"),
        directory.token("tok_none"),
        directory.revoke("tok_none"),
        directory.rotate("tok_none", overlap_s=0),
    ):
        with pytest.raises(NotFoundError):
            await attempt
    assert await house.changes() == []


async def test_a_gateway_token_is_shown_once_and_kept_as_its_hash(house: House) -> None:
    await house.directory.add_user("ada", plan="pro")
    secret, token = await house.directory.create_token("ada", label="laptop")
    assert secret.startswith(TOKEN_PREFIX)
    assert len(secret) > 40
    assert (token.user_id, token.label, token.created_at_ms) == ("ada", "laptop", NOW_MS)
    assert secret.startswith(token.prefix)
    credential = await house.directory.credential(hashlib.sha256(secret.encode()).hexdigest())
    assert credential == Credential(token.id, "ada", "pro", "active", None, None)
    files = Path(house.bench.store.database.path).parent.glob("ledger.db*")
    assert not any(secret.encode() in file.read_bytes() for file in files)


async def test_an_unknown_token_has_no_credential(house: House) -> None:
    assert await house.directory.credential(hash_of("amp_unknown")) is None
    assert hash_of("x\udcff") != hash_of("x\ufffd")


async def test_revoking_is_heard_of_once(house: House) -> None:
    await house.directory.add_user("ada", plan="pro")
    secret, token = await house.directory.create_token("ada")
    assert token.is_live(NOW_MS)
    revoked = await house.directory.revoke(token.id)
    assert revoked.revoked_at_ms == NOW_MS
    assert not revoked.is_live(NOW_MS)
    house.bench.clock.advance(5)
    assert await house.directory.revoke(token.id) == revoked
    assert await house.changes() == [("token", token.id)]
    credential = await house.directory.credential(hash_of(secret))
    assert credential is not None
    assert credential.revoked_at_ms == NOW_MS


async def test_a_token_is_found_by_its_prefix_unless_that_is_ambiguous(house: House) -> None:
    await house.directory.add_user("ada", plan="pro")
    _, one = await house.directory.create_token("ada")
    assert await house.directory.token(one.prefix) == one
    await house.bench.store.writer.submit(_duplicate_prefix(one.prefix))
    with pytest.raises(NotFoundError, match="ambiguous"):
        await house.directory.token(one.prefix)
    assert len(await house.directory.tokens("ada")) == 2


def _duplicate_prefix(prefix: str):
    sql = """INSERT INTO gateway_tokens (id, user_id, token_hash, token_prefix, created_at_ms)
        VALUES ('tok_z', 'ada', 'other', ?1, 0)"""
    return Unit((Step(sql, (prefix,)),))


@pytest.mark.parametrize(
    ("expires_in_ms", "overlap_s", "ends_in_ms"),
    [(None, 60, 60_000), (None, 0, 0), (30_000, 60, 30_000), (90_000, 60, 60_000)],
)
async def test_rotating_gives_a_successor_and_ends_the_old_token_after_the_overlap(
    house: House, expires_in_ms: int | None, overlap_s: float, ends_in_ms: int
) -> None:
    await house.directory.add_user("ada", plan="pro")
    expires_at_ms = None if expires_in_ms is None else NOW_MS + expires_in_ms
    secret, old = await house.directory.create_token("ada", label="x", expires_at_ms=expires_at_ms)
    fresh, new = await house.directory.rotate(old.id, overlap_s=overlap_s)
    assert fresh != secret
    assert (new.label, new.expires_at_ms) == ("x", expires_at_ms)
    old = await house.directory.token(old.id)
    assert old.expires_at_ms == NOW_MS + ends_in_ms
    assert old.is_live(NOW_MS) is (ends_in_ms > 0)
    assert await house.changes() == [("token", old.id)]


async def test_a_dead_token_cannot_be_rotated(house: House) -> None:
    await house.directory.add_user("ada", plan="pro")
    _, token = await house.directory.create_token("ada")
    await house.directory.revoke(token.id)
    with pytest.raises(DirectoryError, match="revoked or expired"):
        await house.directory.rotate(token.id, overlap_s=60)


async def test_a_user_added_by_many_at_once_is_added_once(house: House) -> None:
    results = await asyncio.gather(
        *(house.directory.add_user("ada", plan="free") for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, User) for result in results) == 1
    assert sum(isinstance(result, DirectoryError) for result in results) == 19


# --- caps of users --------------------------------------------------------------------------------------

DAILY = Cap(CapMeter.CREDITS, CapPeriod.DAY, 50)
MONTHLY = Cap(CapMeter.REQUESTS, CapPeriod.MONTH, 7)


async def test_a_users_caps_are_those_that_were_set_last_and_running_workers_hear_of_them(
    house: House,
) -> None:
    await house.directory.add_user("ada", plan="pro")
    secret, _ = await house.directory.create_token("ada")
    assert (await house.credential(secret)).terms is None
    assert (await house.directory.set_caps("ada", (DAILY, MONTHLY))).caps == (DAILY, MONTHLY)
    terms = (await house.credential(secret)).terms
    assert terms is not None
    assert [(cap.whose, cap.owner, cap.cap) for cap in terms.caps] == [
        (Whose.USER, "user:ada", DAILY),
        (Whose.USER, "user:ada", MONTHLY),
    ]
    assert (await house.directory.set_caps("ada", ())).caps == ()
    assert (await house.credential(secret)).terms is None
    assert await house.changes() == [("user", "ada")] * 2


# --- children -------------------------------------------------------------------------------------------


@pytest.fixture
async def family(house: House) -> House:
    await house.directory.add_user("ada", plan="pro")
    await house.directory.add_user("bob", plan="pro")
    return house


async def test_a_child_has_what_it_was_given_and_knows_its_chain(family: House) -> None:
    first = await family.token(caps=(MONTHLY,))
    scope, limits = Scope(surfaces=("anthropic",)), TokenLimits(requests_per_minute=3)
    parent = await family.token(first, scope=scope, limits=limits)
    secret, child = await family.directory.create_token("ada", parent_id=parent.id, caps=(DAILY,))
    assert (parent.scope, parent.limits, parent.parent_id) == (scope, limits, first.id)
    assert (child.caps, child.parent_id, child.family) == ((DAILY,), parent.id, child.id)
    credential = await family.credential(secret)
    assert credential.ancestors == (parent.id, first.id)
    terms = credential.terms
    assert terms is not None
    assert terms.scopes == ((Whose.PARENT, scope),)
    assert [(cap.owner, cap.cap) for cap in terms.caps] == [
        (f"token:{child.id}", DAILY),
        (f"token:{first.id}", MONTHLY),
    ]
    assert terms.limits == ((Whose.PARENT, f"token:{parent.id}", limits),)
    assert terms.withheld == TO_BE_NAMED


@pytest.mark.parametrize(
    ("parents_s", "childs_s", "ends_s"),
    [
        (None, None, None),
        (None, 60, 60),
        (90, None, 90),
        (90, 60, 60),
        (90, 90, 90),
        (90, 91, "later"),
    ],
)
async def test_a_child_never_lives_longer_than_its_parent(
    family: House, parents_s: int | None, childs_s: int | None, ends_s: int | str | None
) -> None:
    def at(seconds: int | None) -> int | None:
        return None if seconds is None else NOW_MS + seconds * 1000

    parent = await family.token(expires_at_ms=at(parents_s))
    making = family.token(parent, expires_at_ms=at(childs_s))
    if isinstance(ends_s, str):
        with pytest.raises(DirectoryError, match="no later than the parent's, 2026-11-20T12:01:30Z"):
            await making
    else:
        assert (await making).expires_at_ms == at(ends_s)


async def test_a_dead_token_can_have_no_child(family: House) -> None:
    revoked = await family.token()
    await family.directory.revoke(revoked.id)
    expired = await family.token(expires_at_ms=NOW_MS + 1)
    family.bench.clock.advance(1)
    for parent in (revoked, expired):
        with pytest.raises(NotLiveError, match="revoked or expired"):
            await family.token(parent)


async def test_a_child_is_of_its_parents_user(family: House) -> None:
    parent = await family.token()
    with pytest.raises(DirectoryError, match="is not of user bob"):
        await family.directory.create_token("bob", parent_id=parent.id)
    with pytest.raises(NotFoundError):
        await family.directory.create_token("ada", parent_id="tok_none")
    assert await family.directory.tokens("bob") == []


async def test_children_of_children_end_at_a_depth(family: House) -> None:
    tokens = [await family.token()]
    for _ in range(TOKEN_DEPTH_MAX):
        tokens.append(await family.token(tokens[-1]))
    with pytest.raises(DirectoryError, match="4 levels below the first of its chain"):
        await family.token(tokens[-1])
    await family.directory.rotate(tokens[0].id, overlap_s=0)
    with pytest.raises(DirectoryError, match="4 levels"):
        await family.token(tokens[-1])


async def test_a_chain_longer_than_is_ever_made_opens_nothing(family: House) -> None:
    """As a later version might make, whose first token's scope this one would not read."""
    secret, token = await family.directory.create_token("ada")
    for _ in range(TOKEN_DEPTH_MAX + 1):
        above = await family.token()
        set_parent = Step(
            "UPDATE gateway_tokens SET parent_id = ?2 WHERE id = ?1", (token.id, above.id), refusal="none"
        )
        assert await family.directory.credential(hash_of(secret)) is not None
        await family.bench.store.writer.submit(Unit((set_parent,)))
        token = above
    assert await family.directory.credential(hash_of(secret)) is None


async def test_so_many_living_children_of_one_token_and_no_more_however_many_ask_at_once(
    family: House,
) -> None:
    parent = await family.token()
    made = await asyncio.gather(
        *(family.token(parent) for _ in range(CHILDREN_MAX + 20)), return_exceptions=True
    )
    children = [child for child in made if isinstance(child, GatewayToken)]
    assert len(children) == CHILDREN_MAX
    assert all("living children" in str(error) for error in made if isinstance(error, Exception))
    with pytest.raises(DirectoryError, match="living children"):
        await family.directory.rotate(children[0].id, overlap_s=60)
    await family.directory.rotate(children[0].id, overlap_s=0)
    await family.directory.revoke(children[1].id)
    await family.token(parent)
    with pytest.raises(DirectoryError, match="living children"):
        await family.token(parent)


async def test_revoking_a_token_revokes_all_that_come_from_it_and_nothing_else(family: House) -> None:
    first = await family.token()
    parent, sibling = await family.token(first), await family.token(first)
    secret, child = await family.directory.create_token("ada", parent_id=parent.id)
    grandchild = await family.token(child)
    family.bench.clock.advance(1)
    await family.directory.revoke(child.id)
    family.bench.clock.advance(1)
    await family.directory.revoke(parent.id)
    assert await family.states(first, sibling) == ["live"] * 2
    assert await family.states(parent, child, grandchild) == ["revoked"] * 3
    assert (await family.directory.token(grandchild.id)).revoked_at_ms == NOW_MS + 1_000, "by its own parent"
    assert (await family.credential(secret)).revoked_at_ms == NOW_MS + 1_000
    assert await family.changes() == [("token", child.id), ("token", parent.id)]


async def test_of_minting_and_revoking_at_once_no_child_survives(family: House) -> None:
    """The unit that makes a child asks whether its parent lives; the one that revokes finds all children."""
    for _ in range(10):
        parent = await family.token()
        await asyncio.gather(
            *(family.token(parent) for _ in range(5)),
            family.directory.revoke(parent.id),
            *(family.token(parent) for _ in range(5)),
            return_exceptions=True,
        )
        assert await family.directory.living_descendants(parent.id) == []
        living = [token for token in await family.directory.tokens("ada") if token.is_live(NOW_MS)]
        assert living == []


async def test_a_child_of_a_dead_chain_is_dead_though_its_own_row_does_not_say_so(family: House) -> None:
    parent = await family.token(expires_at_ms=NOW_MS + 60_000)
    secret, child = await family.directory.create_token("ada", parent_id=parent.id)
    stray = Step("UPDATE gateway_tokens SET expires_at_ms = NULL WHERE id = ?1", (child.id,), refusal="none")
    await family.bench.store.writer.submit(Unit((stray,)))
    assert (await family.credential(secret)).expires_at_ms == NOW_MS + 60_000
    stray = Step("UPDATE gateway_tokens SET revoked_at_ms = 5 WHERE id = ?1", (parent.id,), refusal="none")
    await family.bench.store.writer.submit(Unit((stray,)))
    assert (await family.credential(secret)).revoked_at_ms == 5


async def test_a_rotated_token_keeps_what_it_may_and_its_children_go_on(family: House) -> None:
    first = await family.token()
    scope, limits = Scope(models=("a*",)), TokenLimits(tokens_per_minute=5)
    old = await family.token(first, scope=scope, limits=limits, caps=(DAILY,))
    secret, child = await family.directory.create_token("ada", parent_id=old.id)
    fresh, new = await family.directory.rotate(old.id, overlap_s=0)
    assert (new.scope, new.limits, new.caps, new.parent_id) == (scope, limits, (DAILY,), first.id)
    assert new.family == old.family == old.id
    assert (await family.directory.token(old.id)).successor_id == new.id
    assert (await family.credential(fresh)).terms.caps[0].owner == f"token:{old.id}"  # type: ignore[union-attr]  # its cap is one
    credential = await family.credential(secret)
    assert credential.ancestors == (new.id, first.id)
    assert credential.expires_at_ms is None
    await family.directory.revoke(new.id)
    assert await family.states(child) == ["revoked"]


async def test_what_a_rotated_token_makes_in_its_overlap_ends_with_it(family: House) -> None:
    old = await family.token()
    before = await family.token(old)
    _, new = await family.directory.rotate(old.id, overlap_s=60)
    late = await family.token(old)
    assert late.expires_at_ms == NOW_MS + 60_000
    for token in (old, new):
        living = await family.directory.living_descendants(token.id)
        assert {found.id for found in living} == {before.id, late.id}, "of the family"
    await family.directory.revoke(old.id)
    assert await family.states(before, late, new) == ["live", "revoked", "live"]


async def test_revoking_a_rotated_token_ends_what_it_replaced_and_what_that_made(family: House) -> None:
    old = await family.token()
    _, new = await family.directory.rotate(old.id, overlap_s=60)
    _, newest = await family.directory.rotate(new.id, overlap_s=60)
    late = await family.token(old)
    seen = await family.directory.last_change()
    await family.directory.revoke(new.id)
    assert await family.states(old, late, new, newest) == ["revoked", "revoked", "revoked", "live"]
    changes = await family.directory.changes_since(seen)
    assert changes is not None
    assert {subject for _, _, subject in changes} == {old.id, new.id}, "every cache forgets them"


async def test_a_token_is_rotated_once(family: House) -> None:
    old = await family.token(expires_at_ms=NOW_MS + 90_000)
    results = await asyncio.gather(
        *(family.directory.rotate(old.id, overlap_s=60) for _ in range(5)), return_exceptions=True
    )
    ((_, new),) = [result for result in results if isinstance(result, tuple)]
    assert new.expires_at_ms == NOW_MS + 90_000
    errors = [str(result) for result in results if isinstance(result, Exception)]
    assert errors == [f"gateway token {old.id} was rotated already: rotate {new.id}"] * 4
    _, third = await family.directory.rotate(new.id, overlap_s=60)
    assert (third.family, third.expires_at_ms) == (old.id, NOW_MS + 90_000)


async def test_only_what_comes_from_a_token_is_found_below_it(family: House) -> None:
    first = await family.token()
    parent, sibling = await family.token(first), await family.token(first)
    child = await family.token(parent)
    grandchild = await family.token(child)
    _, strange = await family.directory.create_token("bob")
    below = await family.directory.living_descendants(parent.id)
    assert {token.id for token in below} == {grandchild.id, child.id}
    await family.directory.revoke(child.id)
    assert await family.directory.living_descendants(parent.id) == []
    assert (await family.directory.descendant(grandchild.id, parent.id)).state(NOW_MS) == "revoked"
    for other in (first.id, parent.id, sibling.id, strange.id, "tok_none", "", first.prefix):
        with pytest.raises(NotFoundError, match="that comes from this one"):
            await family.directory.descendant(other, parent.id)


async def test_the_living_are_found_among_any_number_of_dead_by_the_index(family: House) -> None:
    """Short-lived children are made and forgotten all day: the dead must cost nothing."""
    rows = await family.bench.store.readers.rows(
        f"EXPLAIN QUERY PLAN {SELECT_LIVING_DESCENDANTS}", ("f", NOW_MS, 1)
    )
    plan = [str(row[3]) for row in rows if "gateway_tokens_by_parent" in str(row[3])]
    assert len(plan) == 2
    assert all("(parent_id=? AND <expr>>?)" in step for step in plan)
