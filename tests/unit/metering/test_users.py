"""Users and gateway tokens: what is kept, what is shown, what running workers hear of."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from metering.store.writer import Step, Unit
from metering.users import TOKEN_PREFIX, Credential, Directory, DirectoryError, NotFoundError, User, hash_of
from tests.support.ledger import NOW_MS, Bench, open_bench


@dataclass
class House:
    bench: Bench
    directory: Directory

    async def changes(self) -> list[tuple[str, str]]:
        return [change[1:] for change in await self.directory.changes_since(0)]


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
