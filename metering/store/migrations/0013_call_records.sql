-- What is kept of a phone call beside its entry: with whom it was, how it ended, and what it was about in a few words.
--
-- Why so: the vendor forgets calls, and is not asked whenever somebody looks at a list of them. A row is written with the call's
-- id, and again in the unit of its entry. Calls from before have none. What was said, word by word, is nowhere here.

CREATE TABLE call_records (
    reservation_id TEXT PRIMARY KEY,
    to_number TEXT,
    from_number TEXT,
    status TEXT,                           -- completed, failed, no_answer, voicemail; NULL: nobody has told of its end
    duration_seconds INTEGER,
    summary TEXT,
    completed_at INTEGER
);

-- A record kind of the replaced service; timestamps in Unix seconds. Of a call from before, how it ended is not known.
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
