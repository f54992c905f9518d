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
--        3 retention_ms   how long a session stays readable after its end
--        4 mutation_id    11 characters, new for every call
--        5 seq            the message's seq
--        6 base           the stored JSON of the message from which the new one was made
--        7 message        the new JSON of the message
--        8 bytes_max      bytes of messages to keep
-- Returns {`updated`, the JSON of the message}
--         {`missing`}    the session does not exist
--         {`stale`}      the message is no longer stored, or has changed
--         {`too_large`}  the new message is larger, and the session's messages would have more than bytes_max bytes
-- O(n) in the number of newer messages.
local MUTATIONS_KEPT = 4
local session, messages = KEYS[1], KEYS[2]
local id, now_ms, retention_ms, mutation_id = ARGV[1], ARGV[2] + 0, ARGV[3] + 0, ARGV[4]
local seq, base, message, bytes_max = ARGV[5], ARGV[6], ARGV[7], ARGV[8] + 0

local session_id, business_id, expires_at, ended_at, version, updated_at, mutations, message_count, message_bytes,
  largest_message, changed_messages = unpack(redis.call('HMGET', session, 'sessionId', 'businessId', 'expiresAt',
    'endedAt', 'version', 'updatedAt', 'mutations', 'messageCount', 'messageBytes', 'largestMessage',
    'changedMessages'))
if session_id ~= id then return {'missing'} end
if now_ms >= (ended_at or expires_at) + retention_ms then return {'missing'} end
mutations = mutations or ''
-- seq has no gaps, so the distance from the newest message is the index from the end of the list.
local index = int(seq - message_count - 1)
local stored = redis.call('LINDEX', messages, index)
if not stored then return {'stale'} end
if string.find(mutations, mutation_id, 1, true) then return {'updated', stored} end
if stored ~= base then return {'stale'} end
local bytes = message_bytes + #message - #stored
if #message > #stored and bytes > bytes_max then return {'too_large'} end

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
