#!lua flags=allow-oom
-- redact_message: remove content and metadata of one message, which stays at its seq.
--
-- Why it is atomic: one step finds the message, checks its role and replaces it. So no append, patch or trim happens in
-- between, and the script cannot redact another message that has taken its place.
-- It leaves `updatedAt` as it is, because it also runs while the clocks of the service and Redis differ too much.
-- Safe to run twice: the second run finds the message redacted and writes nothing. The flag `allow-oom` lets a full
-- Redis redact.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, list, and hash of messageId -> seq
--        4 turn, 5 chunks    the session's latest turn (hash) and its chunks (list); absent if it has had no turn
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 now_text       the same as RFC 3339 with three decimals
--        4 message_id     the message's id as JSON writes it, without quotes
--        5 roles          roles whose messages the caller may redact: `` for all, or lines of roles, each between two
--                         line feeds
-- Returns {`redacted`}         also if it was redacted before
--         {`missing`}          the session does not exist
--         {`no_message`}       the session has no message with this id
--         {`forbidden`, role}  the caller may not redact messages with this role
--         {`has_turn`}         run again with the keys of the turn
--         {`damaged`}          the ids and the messages do not agree
-- O(n) in the number of newer messages.
local session, messages, message_ids = KEYS[1], KEYS[2], KEYS[3]
local turn, chunks = KEYS[4], KEYS[5]
local id, now_ms, now_text = ARGV[1], ARGV[2] + 0, ARGV[3]
local message_id, roles = ARGV[4], ARGV[5]
local REDACTED = ',"content":null,'

local session_id, business_id, expires_at, ended_at, version, message_count, message_bytes, largest_message,
  turn_number, changed_messages = unpack(redis.call('HMGET', session, 'sessionId', 'businessId', 'expiresAt', 'endedAt',
    'version', 'messageCount', 'messageBytes', 'largestMessage', 'turnNumber', 'changedMessages'))
if session_id ~= id then return {'missing'} end
if now_ms >= (ended_at or expires_at) + RETENTION_MS then return {'missing'} end
local seq = redis.call('HGET', message_ids, message_id)
if not seq then return {'no_message'} end
-- seq has no gaps, so the distance from the newest message is the index from the end of the list.
local index = int(seq - message_count - 1)
local stored = redis.call('LINDEX', messages, index)
local ids_at = stored and string.match(stored, '^{"seq":' .. seq .. ',"createdAt":"[^"]*"()')
if not ids_at then return {'damaged'} end
local ids = ',"sessionId":"' .. id .. '","messageId":"' .. message_id .. '","role":"'
if string.sub(stored, ids_at, ids_at + #ids - 1) ~= ids then return {'damaged'} end
local role, content_at = string.match(stored, '^(%l+)"()', ids_at + #ids)
if not role then return {'damaged'} end
if roles ~= '' and not string.find(roles, '\n' .. role .. '\n', 1, true) then return {'forbidden', role} end
-- Clients cannot append null as content.
if string.sub(stored, content_at, content_at + #REDACTED - 1) == REDACTED then return {'redacted'} end
-- Metadata is an object, so only the message's own last member matches at the end.
local finish_reason = string.match(stored, ',"finishReason":"%l+"}$')
local message = string.sub(stored, 1, content_at - 1) .. REDACTED .. '"metadata":{}'
  .. (finish_reason and string.sub(finish_reason, 1, -2) or '') .. ',"redactedAt":"' .. now_text .. '"}'
if turn_number and not turn then return {'has_turn'} end
-- A closed turn repeats the metadata and error of its message. An open turn has no message.
local is_of_turn = turn and redis.call('HGET', turn, 'turnId') == message_id

-- From here on only writes.
if is_of_turn then
  redis.call('HSET', turn, 'metadata', '{}')
  redis.call('HDEL', turn, 'error')
  redis.call('UNLINK', chunks)
end
redis.call('LSET', messages, index, message)
redis.call('HSET', session,
  'version', int(version + 1),
  'messageBytes', int(message_bytes + #message - #stored),
  'largestMessage', int(math.max(#message, largest_message + 0)),
  'changedMessages', changed_with(changed_messages, seq))
notify(session, business_id, ARGV[2], 'c' .. seq .. ' s')
return {'redacted'}
