-- Prepaid credit beside the month's allowance, and plans that change at a time.
--
-- Why so: credit is one account of a user (meter `credit`, no period) whose allowance is the sum of all grants; a
-- grant is an entry like any other, and its source key stands in a table of its own, whose primary key is what
-- makes it happen once, however often it is delivered. What a request was charged on credit stands in its
-- reservation, so that a correction can give back to credit first. A plan that ends at a time carries its
-- successor with it: nobody has to write anything at that time.

CREATE TABLE grants (
    source TEXT PRIMARY KEY,               -- what it was granted for: an invoice, an event of a payment provider
    user_id TEXT NOT NULL REFERENCES users (id),
    amount_nanousd INTEGER NOT NULL,       -- negative: taken back
    note TEXT,
    at_ms INTEGER NOT NULL,
    entry_seq INTEGER NOT NULL UNIQUE      -- its entry: kind `grant`, whose line is what the account gained
);
CREATE INDEX grants_by_user ON grants (user_id, at_ms);

ALTER TABLE reservations ADD COLUMN credit_nanousd INTEGER NOT NULL DEFAULT 0;

ALTER TABLE users ADD COLUMN plan_until_ms INTEGER;
ALTER TABLE users ADD COLUMN next_plan TEXT;
