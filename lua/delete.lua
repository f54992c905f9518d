#!lua flags=allow-oom
-- delete: remove a session with its messages and every entry that names it.
--
-- Why it is atomic: one step removes hash, messages, pointer and index entries, so no reader finds a pointer to a
-- missing session. A later change or append cannot restore the session, because those scripts require the hash.
-- Safe to run twice: the second run finds no session. The flag `allow-oom` lets a full Redis delete.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, list, and hash of messageId -> seq
--        4 pointer, 5 history, 6 business        of its user, its user, its business in this partition
--        7 turn, 8 chunks    the session's latest turn (hash) and its chunks (list); absent if it has had no turn
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 if_version     the version that the client requires, or ``
-- Returns {`deleted`} {`missing`} {`version_mismatch`}
--         {`has_turn`}    run again with the keys of the turn
-- O(log n) in the size of the indexes; Redis frees the memory in the background.
local session, messages, message_ids = KEYS[1], KEYS[2], KEYS[3]
local pointer, history, business = KEYS[4], KEYS[5], KEYS[6]
local turn, chunks = KEYS[7], KEYS[8]
local id, now_ms, if_version = ARGV[1], ARGV[2] + 0, ARGV[3]

local session_id, business_id, version, expires_at, ended_at, turn_number = unpack(
  redis.call('HMGET', session, 'sessionId', 'businessId', 'version', 'expiresAt', 'endedAt', 'turnNumber'))
if session_id ~= id then return {'missing'} end
if now_ms >= (ended_at or expires_at) + RETENTION_MS then return {'missing'} end
if if_version ~= '' and if_version ~= version then return {'version_mismatch'} end
if turn_number and not turn then return {'has_turn'} end
local pointed_id = redis.call('GET', pointer)

-- From here on only writes.
redis.call('UNLINK', session, messages, message_ids)
if turn then redis.call('UNLINK', turn, chunks) end
redis.call('ZREM', history, id)
redis.call('ZREM', business, id)
if pointed_id == id then redis.call('DEL', pointer) end
notify(session, business_id, ARGV[2], 'd')
return {'deleted'}
