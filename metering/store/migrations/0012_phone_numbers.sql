-- Phone numbers: assigned to users by an operator, and who had one when.
--
-- Why so: a number passes from one user to the next, but a call belongs for ever to who had its number when it began. So the
-- terms are kept; of `owned_objects`, where the number is looked up on the way of a request, the row is deleted as ever.

CREATE TABLE object_terms (
    seq INTEGER PRIMARY KEY,
    vendor TEXT NOT NULL,
    kind TEXT NOT NULL,
    upstream_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    from_ms INTEGER NOT NULL,
    until_ms INTEGER                       -- the first instant at which it was not theirs; NULL: it is
);
CREATE UNIQUE INDEX object_terms_now ON object_terms (vendor, kind, upstream_id) WHERE until_ms IS NULL;
CREATE INDEX object_terms_by_time ON object_terms (vendor, kind, upstream_id, from_ms);

-- A record kind of the replaced service. What only the vendors know of a number is nowhere here.
CREATE VIEW phone_numbers AS
SELECT CAST(seq AS TEXT) AS id, user_id, upstream_id AS phone_number, NULL AS twilio_sid, NULL AS bland_imported,
    NULL AS agent_name, NULL AS agent_role, NULL AS voice_id, NULL AS inbound_prompt, NULL AS inbound_first_sentence,
    from_ms / 1000 AS created_at, from_ms / 1000 AS updated_at
FROM object_terms WHERE vendor = 'bland' AND kind = 'number' AND until_ms IS NULL;
