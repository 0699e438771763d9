-- Notices of budgets, and an outbox for what other systems are told.
--
-- Why so: the primary key of `notices` is what makes a notice happen once, whoever finds the threshold passed; its
-- message is written in the same unit. A message's body is fixed then, so that every attempt sends the same bytes
-- under the same id. Attempts are claimed by moving `due_at_ms`, as polls of deferred work are.

CREATE TABLE outbox (
    id TEXT PRIMARY KEY,                   -- the webhook-id, by which its receiver knows it again
    kind TEXT NOT NULL,                    -- budget.threshold_reached, ...
    endpoint TEXT NOT NULL,                -- the name of who is told; the settings say where that is
    body TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    due_at_ms INTEGER NOT NULL,            -- the next attempt
    attempts INTEGER NOT NULL,             -- begun so far
    delivered_at_ms INTEGER,
    gave_up_at_ms INTEGER,
    last_error TEXT
);
CREATE INDEX outbox_waiting ON outbox (endpoint, due_at_ms) WHERE delivered_at_ms IS NULL AND gave_up_at_ms IS NULL;

CREATE TABLE notices (
    user_id TEXT NOT NULL,
    period TEXT NOT NULL,
    threshold_percent INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    used_nanousd INTEGER NOT NULL,         -- as it stood when it was noticed
    limit_nanousd INTEGER NOT NULL,
    plan TEXT NOT NULL,
    outbox_id TEXT,                        -- NULL: nobody was to be told
    PRIMARY KEY (user_id, period, threshold_percent)
);
