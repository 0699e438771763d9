"""Where a vendor tells of one request: known to every worker, guessed by nobody."""

from pathlib import Path

import pytest

from metering.return_addresses import ReturnAddresses
from tests.support.ledger import open_bench


async def test_a_piece_names_its_request_on_every_worker(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        one, other = (ReturnAddresses(bench.store, bench.clock) for _ in range(2))
        piece = await one.piece_of("req_1")
        assert await other.piece_of("req_1") == piece
        assert await other.request_of(piece) == "req_1"
        assert set(piece) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.")


@pytest.mark.parametrize(
    "change",
    [
        lambda piece: piece.replace("req_1", "req_2"),
        lambda piece: piece[:-1],
        lambda piece: piece[:-1] + ("0" if piece[-1] != "0" else "1"),
        lambda piece: piece.partition(".")[0],
        lambda piece: "." + piece.partition(".")[2],
        lambda piece: "x" * 10_000 + piece,
        lambda piece: "\u00e9." + piece.partition(".")[2],
        lambda _: "",
    ],
)
async def test_no_other_piece_names_one(tmp_path: Path, change) -> None:
    async with open_bench(tmp_path) as bench:
        addresses = ReturnAddresses(bench.store, bench.clock)
        assert await addresses.request_of(change(await addresses.piece_of("req_1"))) is None
