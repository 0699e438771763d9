"""The connection of a store's writer."""

from contextlib import closing
from pathlib import Path

from metering.store.database import LOG_BYTES_KEPT
from tests.support.ledger import new_database

INSERT = "INSERT INTO changes (kind, subject, at_ms) VALUES ('x', zeroblob(?1), 0)"


def test_a_log_that_grew_behind_a_long_read_is_cut_back_when_it_starts_over(tmp_path: Path) -> None:
    database = new_database(tmp_path)
    log = database.path.with_name("ledger.db-wal")
    with closing(database.connect()) as writer:
        with closing(database.connect_read_only()) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT COUNT(*) FROM changes").fetchone()
            writer.execute(INSERT, (LOG_BYTES_KEPT,))
            writer.execute(INSERT, (LOG_BYTES_KEPT // 2,))
            assert log.stat().st_size > LOG_BYTES_KEPT * 1.5
        for _ in range(3):  # moves all to the store; starts the log over; and goes on
            writer.execute(INSERT, (1,))
        assert log.stat().st_size <= LOG_BYTES_KEPT
        assert writer.execute("SELECT COUNT(*) FROM changes").fetchone() == (5,)
