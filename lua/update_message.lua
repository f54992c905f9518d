#!lua
-- update_message: replace one message by the same message with other metadata.
--
-- Why it is atomic: one step compares the stored message with the one from which the new metadata was merged, and
-- replaces it. So concurrent patches are all kept, and a redaction is never undone.
-- Safe to run twice: the caller passes a mutation id, and the session stores its last few mutation ids. If the id is
-- among them, the script changes nothing and returns the message as it is now.
--
-- KEYS   1 session, 2 messages    the session's hash and list
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 mutation_id    11 characters, new for every call
--        4 seq            the message's seq
--        5 base           the stored JSON of the message from which the new one was made
--        6 message        the new JSON of the message
-- Returns {`updated`, the JSON of the message}
--         {`missing`}    the session does not exist
--         {`stale`}      the message is no longer stored, or has changed
--         {`too_large`}  the new message is larger, and the session's messages would have more than SESSION_BYTES_MAX
--                        bytes
-- O(n) in the number of newer messages.
local MUTATIONS_KEPT = 4
local session, messages = KEYS[1], KEYS[2]
local id, now_ms, mutation_id = ARGV[1], ARGV[2] + 0, ARGV[3]
local seq, base, message = ARGV[4], ARGV[5], ARGV[6]

local session_id, business_id, expires_at, ended_at, version, updated_at, mutations, message_count, message_bytes,
  largest_message, changed_messages = unpack(redis.call('HMGET', session, 'sessionId', 'businessId', 'expiresAt',
    'endedAt', 'version', 'updatedAt', 'mutations', 'messageCount', 'messageBytes', 'largestMessage',
    'changedMessages'))
if session_id ~= id then return {'missing'} end
if now_ms >= (ended_at or expires_at) + RETENTION_MS then return {'missing'} end
mutations = mutations or ''
-- seq has no gaps, so the distance from the newest message is the index from the end of the list.
local index = int(seq - message_count - 1)
local stored = redis.call('LINDEX', messages, index)
if not stored then return {'stale'} end
if string.find(mutations, mutation_id, 1, true) then return {'updated', stored} end
if stored ~= base then return {'stale'} end
local bytes = message_bytes + #message - #stored
if #message > #stored and bytes > SESSION_BYTES_MAX then return {'too_large'} end

-- From here on only writes.
redis.call('LSET', messages, index, message)
redis.call('HSET', session,
  'version', int(version + 1),
  'updatedAt', int(math.max(now_ms, updated_at + 0)),
  'mutations', string.sub(mutation_id .. ' ' .. mutations, 1, MUTATIONS_KEPT * (#mutation_id + 1)),
  'messageBytes', int(bytes),
  'largestMessage', int(math.max(#message, largest_message + 0)),
  'changedMessages', changed_with(changed_messages, seq))
notify(session, business_id, ARGV[2], 'c' .. seq .. ' s')
return {'updated', message}
