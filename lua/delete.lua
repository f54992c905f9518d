#!lua flags=allow-oom
-- delete: remove a session with its messages and every entry that points at it.
--
-- Why it is atomic: hash, messages, pointer and index entries go in one step, so nobody finds a pointer to nothing, and no
-- change or message that comes later can bring the session back: those scripts require that the hash exists.
-- Safe to run twice: the second run finds nothing and says so. `allow-oom`, because a full Redis must be able to shrink.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, stream, and hash of messageId -> seq
--        4 pointer, 5 history, 6 business        of its user, its user, its business in this partition
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 retention_ms   how long a session stays readable after its end
--        4 if_version     the version that the client insists on, or ``
-- Returns {`deleted`} {`missing`} {`version_mismatch`}
-- O(log n) in the size of the indexes; memory is given back in the background.
local session, messages, message_ids = KEYS[1], KEYS[2], KEYS[3]
local pointer, history, business = KEYS[4], KEYS[5], KEYS[6]
local id, now_ms, retention_ms, if_version = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local document = redis.call('HMGET', session, 'sessionId', 'version', 'expiresAt', 'endedAt')
if document[1] ~= id then return {'missing'} end
if now_ms >= tonumber(document[4] or document[3]) + retention_ms then return {'missing'} end
if if_version ~= '' and if_version ~= document[2] then return {'version_mismatch'} end
local pointed_id = redis.call('GET', pointer)

-- From here on only writes.
redis.call('UNLINK', session, messages, message_ids)
redis.call('ZREM', history, id)
redis.call('ZREM', business, id)
if pointed_id == id then redis.call('DEL', pointer) end
return {'deleted'}
