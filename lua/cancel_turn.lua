#!lua
-- cancel_turn: ask the writer of the open turn to stop.
--
-- Why it is atomic: one step checks that the turn is open and limits its lease, so no renewal can happen in between.
-- Safe to run twice: the first run limits the lease. The second run finds the limit and writes nothing.
--
-- KEYS   1 session    the session's hash
--        2 turn       the session's latest turn (hash)
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 turn_id        the turn's id as JSON writes it, without quotes
-- Returns {`cancelled`, fields}   all fields of the turn's hash: name, value, name, value, in no fixed order
--         {`not_open`}            another turn is open, or none
--         {`missing`}
-- O(1).
local session, turn = KEYS[1], KEYS[2]
local id, now_ms, turn_id = ARGV[1], ARGV[2] + 0, ARGV[3]
-- How long the writer has to stop.
local STOP_MS = 10000

local document = by_name(redis.call('HGETALL', session))
if document.sessionId ~= id then return {'missing'} end
if now_ms >= (document.endedAt or document.expiresAt) + RETENTION_MS then return {'missing'} end
local latest = latest_turn(turn, document)
if document.turnId ~= turn_id then return {'not_open'} end
if latest.cancelUntil then return append_fields({'cancelled'}, latest) end
latest.cancelUntil = int(now_ms + STOP_MS)
latest.leaseUntil = lease_end(latest, document.turnUntil + 0)

-- From here on only writes.
redis.call('HSET', turn, 'cancelUntil', latest.cancelUntil, 'leaseUntil', latest.leaseUntil)
redis.call('HSET', session, 'turnUntil', latest.leaseUntil)
notify(session, document.businessId, ARGV[2], 't')
return append_fields({'cancelled'}, latest)
