-- Gateway tokens that can be handed on, and caps.
--
-- Why so: a token's scope, caps and limits are few, read together with it and never asked for by themselves: JSON and
-- columns of its row. A rotated token is another row of the same family; what its caps have spent belongs to the
-- family (the owner `token:FAMILY` in accounts), so that rotating resets nothing. Children hang on a row, and move to
-- its successor.

ALTER TABLE users ADD COLUMN caps TEXT;                       -- JSON [{"meter", "period", "limit"}, ...]; NULL: none

ALTER TABLE gateway_tokens ADD COLUMN family TEXT;            -- the id of the first of a line of rotated tokens
ALTER TABLE gateway_tokens ADD COLUMN successor_id TEXT REFERENCES gateway_tokens (id);    -- set once, by rotating
ALTER TABLE gateway_tokens ADD COLUMN scope TEXT;             -- JSON {"surfaces", "operations", "models"}; NULL: all
ALTER TABLE gateway_tokens ADD COLUMN caps TEXT;              -- JSON as users.caps
ALTER TABLE gateway_tokens ADD COLUMN requests_per_minute INTEGER;    -- of its own, beside the plan's; NULL: none
ALTER TABLE gateway_tokens ADD COLUMN tokens_per_minute INTEGER;
ALTER TABLE gateway_tokens ADD COLUMN concurrent_requests INTEGER;
UPDATE gateway_tokens SET family = id;

CREATE INDEX gateway_tokens_by_family ON gateway_tokens (family);
-- The living children of a token, however many have been before them.
CREATE INDEX gateway_tokens_by_parent
ON gateway_tokens (parent_id, COALESCE(expires_at_ms, 9223372036854775807)) WHERE revoked_at_ms IS NULL;
