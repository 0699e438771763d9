-- Users, gateway tokens, and the ledger.
--
-- Why so: money and counts are accounts keyed by (owner, meter, period), so that nothing is ever reset;
-- holds are rows, so that they cannot leak; entries are appended and never edited. The lines of a
-- reservation or an entry (which accounts, how much) are JSON in its row: one row per request and side,
-- never queried by line; `ledger verify` reads them all. INTEGER is 64 bits wide.
-- Columns `created_at`/`updated_at` are Unix seconds (the replaced service's records); `*_ms` milliseconds.

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    email TEXT,
    name TEXT,
    plan TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
);

CREATE TABLE gateway_tokens (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    token_hash TEXT NOT NULL UNIQUE,       -- SHA-256, hex; the token itself is shown once and not kept
    token_prefix TEXT NOT NULL,            -- enough for a person to tell tokens apart
    label TEXT,
    parent_id TEXT REFERENCES gateway_tokens (id),
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER,
    revoked_at_ms INTEGER
);
CREATE INDEX gateway_tokens_by_user ON gateway_tokens (user_id);

CREATE TABLE accounts (
    owner TEXT NOT NULL,                   -- user:ID or token:ID
    meter TEXT NOT NULL,                   -- money (nano-USD), open_requests, searches, ...
    period TEXT NOT NULL,                  -- 2026-11, 2026-11-20, or '' for what has no period
    allowance INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    held INTEGER NOT NULL,
    PRIMARY KEY (owner, meter, period)
);

CREATE TABLE reservations (
    id TEXT PRIMARY KEY,                   -- the request id, sorted by time
    state TEXT NOT NULL CHECK (state IN ('HELD', 'SETTLED', 'VOIDED', 'EXPIRED')),
    worker_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    surface TEXT NOT NULL,
    operation TEXT NOT NULL,
    model TEXT,
    lines TEXT NOT NULL,                   -- JSON [[owner, meter, period, amount], ...]
    hold_nanousd INTEGER NOT NULL,
    checkpoint_nanousd INTEGER NOT NULL,   -- booked if the worker dies: first the input estimate
    checkpoint_usage TEXT,                 -- JSON, as entries.usage
    booked_nanousd INTEGER,
    created_at_ms INTEGER NOT NULL,
    due_at_ms INTEGER,                     -- work that ends later: alive until then, whoever started it
    resolved_at_ms INTEGER,
    adjusted_at_ms INTEGER
);
CREATE INDEX reservations_held ON reservations (worker_id) WHERE state = 'HELD';

CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('settle', 'void', 'expire', 'overage', 'grant', 'adjust')),
    reservation_id TEXT,
    user_id TEXT NOT NULL,
    token_id TEXT,
    at_ms INTEGER NOT NULL,
    surface TEXT,
    operation TEXT,
    model TEXT,
    outcome TEXT,                          -- completed, upstream_failed, client_left, timed_out, ...
    basis TEXT NOT NULL CHECK (basis IN ('reported', 'estimated')),
    cost_nanousd INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,         -- uncached
    cache_read_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    usage TEXT,                            -- JSON: lines with model, counts, modifiers, unit prices (pico-USD)
    notes TEXT,                            -- JSON list: what was odd about it
    lines TEXT NOT NULL,                   -- JSON [[owner, meter, period, amount], ...]: what accounts spent
    price_version TEXT,
    upstream_status INTEGER,
    upstream_request_id TEXT,
    duration_ms INTEGER
);
-- Exactly once, said to the database too.
CREATE UNIQUE INDEX entries_resolution ON entries (reservation_id) WHERE kind IN ('settle', 'void', 'expire');
CREATE INDEX entries_by_user ON entries (user_id, at_ms);

CREATE TABLE workers (
    id TEXT PRIMARY KEY,
    beat INTEGER NOT NULL,                 -- counts up while the worker lives; clocks are not compared
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at_ms INTEGER NOT NULL
);

CREATE TABLE changes (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,                    -- token, user
    subject TEXT NOT NULL,
    at_ms INTEGER NOT NULL
);

-- The record kinds of the replaced service, by name and column; timestamps in Unix seconds.
CREATE VIEW llm_usage AS
SELECT CAST(seq AS TEXT) AS id, user_id, at_ms / 1000 AS timestamp, surface AS provider, model,
    operation AS endpoint, input_tokens, output_tokens, cache_write_tokens AS cache_creation_tokens,
    cache_read_tokens, cost_nanousd / 1000 AS cost_microdollars, NULL AS session_key,
    reservation_id AS request_id, duration_ms,
    CASE WHEN outcome = 'completed' THEN NULL ELSE outcome END AS error
FROM entries WHERE surface IN ('anthropic', 'openai', 'gemini') AND kind <> 'void';

CREATE VIEW usage_events AS
SELECT CAST(seq AS TEXT) AS id, user_id, at_ms / 1000 AS timestamp, 'llm' AS event_type,
    (cost_nanousd + 99999) / 100000 AS automna_tokens, cost_nanousd / 1000 AS cost_microdollars,
    usage AS metadata, CASE WHEN outcome = 'completed' THEN NULL ELSE outcome END AS error
FROM entries WHERE surface IN ('anthropic', 'openai', 'gemini') AND kind <> 'void';
