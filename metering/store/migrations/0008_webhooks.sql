-- Webhooks that vendors send us, and where the agent of a user is told of what they say.
--
-- Why so: a vendor repeats what it has not heard us take, so each delivery is noted in the unit of what it does.

CREATE TABLE webhook_deliveries (
    vendor TEXT NOT NULL,
    delivery_id TEXT NOT NULL,             -- the same in every attempt
    received_at_ms INTEGER NOT NULL,
    PRIMARY KEY (vendor, delivery_id)
);
CREATE INDEX webhook_deliveries_by_age ON webhook_deliveries (received_at_ms);

CREATE TABLE agent_hooks (
    user_id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    set_at_ms INTEGER NOT NULL
);
