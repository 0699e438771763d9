-- Vendors that keep things and do things for users: what is gone, and what must not be done twice.
--
-- Why so: an object that its user deleted keeps its owner, because its id (an address) must never become somebody
-- else's here. A key of idempotency is claimed in the unit that reserves, so a crash cannot come between.

ALTER TABLE owned_objects ADD COLUMN gone_at_ms INTEGER;    -- when its user deleted it; NULL: it is there

CREATE TABLE idempotency_keys (
    user_id TEXT NOT NULL,
    surface TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,         -- the client's, or made from the request where it sent none
    fingerprint TEXT NOT NULL,             -- of the request that used it first
    upstream_key TEXT NOT NULL,            -- what stands for it at the vendor
    reservation_id TEXT NOT NULL,          -- the newest request that may have been done under it
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, surface, idempotency_key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at_ms);
