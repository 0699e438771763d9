-- Agents' machines: what is wished for each user, how far it has come, and every thing that was made for it elsewhere.
--
-- Why so: a machine is made of things at three vendors, and whoever makes them may die between any two. So the wish stands
-- in a row of its own and workers converge on it; who works on a row holds a claim with an end and a fence that only rises,
-- so that one who was taken for dead can write nothing any more. Each thing has a row before the call that makes it.
-- No gateway token stands here: a machine is the only place that has its own.

CREATE TABLE instances (
    user_id TEXT PRIMARY KEY REFERENCES users (id),
    generation INTEGER NOT NULL,           -- counts a user's machines: what is gone is never taken up again
    app_name TEXT NOT NULL UNIQUE,
    desired TEXT NOT NULL CHECK (desired IN ('running', 'stopped', 'suspended', 'gone')),
    is_over_budget INTEGER NOT NULL DEFAULT 0, -- suspended for that alone, whatever is desired
    wished INTEGER NOT NULL,               -- counts wishes
    done INTEGER NOT NULL,                 -- the newest wish that has come true, or was given up
    rotates INTEGER NOT NULL DEFAULT 0,    -- a new gateway token is wished
    is_undone INTEGER NOT NULL DEFAULT 0,  -- given up before anybody used it: all of it is being taken away again
    status TEXT NOT NULL,
    region TEXT,
    placements INTEGER NOT NULL DEFAULT 0, -- places that had no room, of this run
    rebuilds INTEGER NOT NULL DEFAULT 0,   -- machines that ended failed, of this run
    token_id TEXT REFERENCES gateway_tokens (id),
    answered_version TEXT,                 -- of the machine's configuration: the newest whose gateway was seen answering
    ready_at_ms INTEGER,                   -- first; from then on there is data of the user's
    attempts INTEGER NOT NULL DEFAULT 0,   -- that failed in a row
    given_up INTEGER NOT NULL DEFAULT 0,   -- wishes in a row that came to nothing
    due_at_ms INTEGER,                     -- when somebody shall look at it next; NULL: nothing is to be done
    patience_ms INTEGER,                   -- until when what is waited for now may take
    error_code TEXT,
    is_retryable INTEGER NOT NULL DEFAULT 0,
    worker_id TEXT,
    claimed_until_ms INTEGER,
    fence INTEGER NOT NULL DEFAULT 0,
    created_at_ms INTEGER NOT NULL,
    started_at_ms INTEGER NOT NULL,        -- this run
    updated_at_ms INTEGER NOT NULL
);
CREATE INDEX instances_due ON instances (due_at_ms) WHERE due_at_ms IS NOT NULL;

CREATE TABLE resources (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    generation INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('app', 'ip', 'volume', 'context', 'pod', 'inbox', 'machine')),
    name TEXT NOT NULL,                    -- what we call it there
    upstream_id TEXT,                      -- what it is called there; NULL: not known (yet)
    state TEXT NOT NULL CHECK (state IN ('intent', 'live', 'lost', 'gone')),
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
);
-- One of each, said to the database too. `lost`: made perhaps, and nothing at the vendor can tell.
CREATE UNIQUE INDEX resources_one ON resources (user_id, generation, kind, name) WHERE state IN ('intent', 'live');
CREATE INDEX resources_by_upstream ON resources (kind, upstream_id) WHERE state = 'live';
CREATE INDEX resources_open ON resources (state) WHERE state <> 'gone';

-- What one worker of all does now and then, and when it was done last.
CREATE TABLE machine_turns (
    name TEXT PRIMARY KEY,
    taken_at_ms INTEGER NOT NULL
);

-- Record kinds of the replaced service.
CREATE TABLE machine_events (
    id INTEGER PRIMARY KEY,
    machine_id TEXT NOT NULL,              -- the app's name before there is a machine
    event_type TEXT NOT NULL,
    details TEXT NOT NULL,                 -- JSON
    created_at INTEGER NOT NULL,           -- Unix seconds
    user_id TEXT NOT NULL
);
CREATE INDEX machine_events_by_user ON machine_events (user_id, id);

CREATE VIEW provision_status AS
SELECT user_id, status, error_code AS error, started_at_ms / 1000 AS started_at, updated_at_ms / 1000 AS updated_at
FROM instances;

CREATE VIEW machines AS
SELECT COALESCE(m.upstream_id, i.app_name) AS id, i.user_id, i.app_name, i.region, v.upstream_id AS volume_id, i.status,
    p.upstream_id AS ip_address, NULL AS gateway_token, c.upstream_id AS browserbase_context_id,
    b.upstream_id AS agentmail_inbox_id, u.plan, NULL AS byok_provider, 0 AS byok_enabled, u.next_plan AS effective_plan,
    u.plan_until_ms / 1000 AS effective_plan_until, NULL AS last_session_key, i.created_at_ms / 1000 AS created_at,
    i.updated_at_ms / 1000 AS updated_at, NULL AS last_active_at
FROM instances i JOIN users u ON u.id = i.user_id
LEFT JOIN resources m ON m.user_id = i.user_id AND m.generation = i.generation AND m.kind = 'machine' AND m.state = 'live'
LEFT JOIN resources v ON v.user_id = i.user_id AND v.generation = i.generation AND v.kind = 'volume' AND v.state = 'live'
LEFT JOIN resources p ON p.user_id = i.user_id AND p.generation = i.generation AND p.kind = 'ip' AND p.name = 'shared_v4'
    AND p.state = 'live'
LEFT JOIN resources c ON c.user_id = i.user_id AND c.generation = i.generation AND c.kind = 'context' AND c.state = 'live'
LEFT JOIN resources b ON b.user_id = i.user_id AND b.generation = i.generation AND b.kind = 'inbox' AND b.state = 'live'
WHERE i.status <> 'gone';
