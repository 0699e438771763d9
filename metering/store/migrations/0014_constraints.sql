-- The reservations and entries with their constraints written as comparisons; nothing else of them changes.
--
-- Why so: SQLite looks for `x IN (three or more)` of a CHECK or a partial index in a temporary B-tree, which it makes and fills
-- at every write: four for each request, a third of what a request costs in the store. `=` and OR cost next to nothing.
-- A constraint cannot be altered, so both tables are copied, once; the views that stand on them are made again, word by
-- word. Who wants to find something by `entries_resolution` says its condition as it stands there (`IS_RESOLUTION` in
-- metering/ledger.py).

DROP VIEW llm_usage;
DROP VIEW usage_events;
DROP VIEW email_sends;
DROP VIEW call_usage;

CREATE TABLE reservations_new (
    id TEXT PRIMARY KEY,                   -- the request id, sorted by time
    state TEXT NOT NULL CHECK (state = 'HELD' OR state = 'SETTLED' OR state = 'VOIDED' OR state = 'EXPIRED'),
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
    adjusted_at_ms INTEGER,
    credit_nanousd INTEGER NOT NULL DEFAULT 0    -- charged on prepaid credit, for corrections
);
INSERT INTO reservations_new SELECT * FROM reservations;
DROP TABLE reservations;
ALTER TABLE reservations_new RENAME TO reservations;
CREATE INDEX reservations_held ON reservations (worker_id) WHERE state = 'HELD';
CREATE INDEX reservations_due ON reservations (due_at_ms) WHERE state = 'HELD' AND due_at_ms IS NOT NULL;

CREATE TABLE entries_new (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind = 'settle' OR kind = 'void' OR kind = 'expire' OR kind = 'overage' OR kind = 'grant' OR kind = 'adjust'),
    reservation_id TEXT,
    user_id TEXT NOT NULL,
    token_id TEXT,
    at_ms INTEGER NOT NULL,
    surface TEXT,
    operation TEXT,
    model TEXT,
    outcome TEXT,                          -- completed, upstream_failed, client_left, timed_out, ...
    basis TEXT NOT NULL CHECK (basis = 'reported' OR basis = 'estimated'),
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
INSERT INTO entries_new SELECT * FROM entries;
DROP TABLE entries;
ALTER TABLE entries_new RENAME TO entries;
CREATE UNIQUE INDEX entries_resolution ON entries (reservation_id)
WHERE kind = 'settle' OR kind = 'void' OR kind = 'expire';
CREATE INDEX entries_by_user ON entries (user_id, at_ms);
CREATE INDEX entries_corrections ON entries (reservation_id) WHERE kind IN ('overage', 'adjust');

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

CREATE VIEW email_sends AS
SELECT CAST(seq AS TEXT) AS id, user_id, at_ms / 1000 AS sent_at, NULL AS recipient, NULL AS subject,
    cost_nanousd / 1000 AS cost_microdollars, usage AS metadata, reservation_id AS request_id
FROM entries WHERE surface IN ('agentmail', 'email') AND kind IN ('settle', 'expire') AND cost_nanousd > 0;

CREATE VIEW call_usage AS
SELECT o.reservation_id AS id, o.user_id, o.upstream_id AS bland_call_id,
    CASE WHEN o.reservation_id LIKE 'in!_%' ESCAPE '!' THEN 'inbound' ELSE 'outbound' END AS direction,
    c.to_number, c.from_number,
    CASE WHEN c.status IS NULL AND (r.state = 'HELD' OR d.reservation_id IS NOT NULL) THEN 'initiated' ELSE c.status END AS status,
    c.duration_seconds, NULL AS session_key, NULL AS task, NULL AS transcript, c.summary, NULL AS recording_url,
    (COALESCE(r.booked_nanousd, 0) + 9999999) / 10000000 AS cost_cents, o.created_at_ms / 1000 AS created_at, c.completed_at
FROM owned_objects o
LEFT JOIN reservations r ON r.id = o.reservation_id
LEFT JOIN deferred_work d ON d.reservation_id = o.reservation_id
LEFT JOIN call_records c ON c.reservation_id = o.reservation_id
WHERE o.vendor = 'bland' AND o.kind = 'call';
