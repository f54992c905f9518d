#!lua
-- append_messages: append messages to an active session, all of them or none.
--
-- Why it is atomic: one step assigns the next seq, writes the message and stores its id. So seq has no gaps and no
-- value is assigned twice, however many callers append.
-- Safe to run twice: every message has an id (the client's, or one that the service made for this call). If an id is
-- known, the script appends nothing and returns the stored message. The service compares it with the new one. If they
-- are the same, it runs the script again with the stored message in place of the new one.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, list, and hash of messageId -> seq
--        4 pointer, 5 history, 6 business        of its user, its user, its business in this partition; absent in the
--                          first run, because only the session says whose it is
-- ARGV   1 scope           whose sessions the caller may use: `` for all, or lines of `business` or
--                          `business<tab>user`, each between two line feeds
--        2 now_ms          Unix time
--        3 ... message_id, message (for each message: its id as JSON writes it, without quotes; and the JSON to
--                          store after `{"seq":N`, with now as createdAt; or the whole JSON that is stored)
-- Returns {`appended`, sessionId, number of messages trimmed, seq of the newest message, createdAt of the new messages
--                         as Unix time in milliseconds}
--         {`replayed`}    every message was given as it is stored
--         {`known`, two for each message whose id is stored with another JSON: position from 1, the stored JSON}; not
--                         all of them if they have more bytes than KNOWN_BYTES_MAX
--         {`changed`}     a message that was given as stored is not stored any more
--         {`turn_open`, position from 1}    the message has the id of the open turn
--         {`turn_lost`}   the lease of the open turn is over: end that turn, then run again
--         {`expiry_due`, businessId, userId}    the expiry has to move: run again with all keys
--         {`missing`} {`not_active`}
-- O(messages in the call + TRIM_MAX), plus log n in the size of the business index.
local session, messages, message_ids = KEYS[1], KEYS[2], KEYS[3]
local pointer, history, business = KEYS[4], KEYS[5], KEYS[6]
local scope, now_ms = ARGV[1], ARGV[2] + 0
local FIRST, WIDTH = 3, 2
local KNOWN_BYTES_MAX = 1048576
-- The first byte of the JSON of a new message. That of a stored one is a brace.
local COMMA = 44

-- Looking up a field costs Redis more the later it is in the hash, so what is rarely needed is read only then.
local session_id, status, expires_at, last_activity_at, active_until, message_count, message_bytes, largest_message,
  turn_until, business_id = unpack(redis.call('HMGET', session, 'sessionId', 'status', 'expiresAt', 'lastActivityAt',
    'activeUntil', 'messageCount', 'messageBytes', 'largestMessage', 'turnUntil', 'businessId'))
if session_id ~= string.sub(session, -36) then return {'missing'} end
if not is_in_scope(session, scope) then return {'missing'} end
local ended_at = status ~= 'active' and redis.call('HGET', session, 'endedAt')
local expires_ms, active_until_ms = expires_at + 0, active_until + 0
if now_ms >= (ended_at or expires_ms) + RETENTION_MS then return {'missing'} end

-- createdAt never decreases, even if another service with a fast clock wrote the latest activity.
local active_ms, active_at, later_created_at
if last_activity_at + 0 > now_ms then
  active_ms, active_at = last_activity_at + 0, last_activity_at
  later_created_at = ',"createdAt":"' .. rfc3339(active_ms) .. '"'
else
  active_ms, active_at = now_ms, ARGV[2]
end
local old_count, old_bytes, old_largest = message_count + 0, (message_bytes or 0) + 0, (largest_message or 0) + 0
local count, bytes, largest = old_count, old_bytes, old_largest
local turn_id = turn_until and redis.call('HGET', session, 'turnId')
local known, known_bytes = nil, 0
local new_messages, new_ids, newest_seq = {}, {}, nil
for i = FIRST, #ARGV, WIDTH do
  local message_id, message = ARGV[i], ARGV[i + 1]
  local seq = redis.call('HGET', message_ids, message_id)
  -- seq has no gaps, so the distance from the newest message is the index from the end of the list.
  local stored = seq and redis.call('LINDEX', messages, int(seq - old_count - 1))
  if stored then
    if stored ~= message then
      known = known or {'known'}
      known[#known + 1] = int((i - FIRST) / WIDTH + 1)
      known[#known + 1] = stored
      known_bytes = known_bytes + #stored
      if known_bytes > KNOWN_BYTES_MAX then break end
    end
  elseif message_id == turn_id then
    return {'turn_open', int((i - FIRST) / WIDTH + 1)}
  elseif string.byte(message) ~= COMMA then
    return {'changed'}
  else
    count = count + 1
    newest_seq = int(count)
    -- All times have the same number of characters.
    if later_created_at then message = later_created_at .. string.sub(message, #later_created_at + 1) end
    message = '{"seq":' .. newest_seq .. message
    bytes = bytes + #message
    if #message > largest then largest = #message end
    new_messages[#new_messages + 1] = message
    new_ids[#new_ids + 1] = message_id
    new_ids[#new_ids + 1] = newest_seq
  end
end
if known then return known end
if not newest_seq then return {'replayed'} end
if not (status == 'active' and now_ms < expires_ms) then return {'not_active'} end
if turn_until and now_ms >= turn_until + LOST_AFTER_MS then return {'turn_lost'} end

local expires = math.min(active_ms + IDLE_MS, active_until_ms)
local lag = expires - expires_ms
-- The last step, to the end of the maximum lifetime, is always written: the reason of the end follows from it.
local extends = lag >= RESOLUTION_MS or lag <= -RESOLUTION_MS or (lag > 0 and expires == active_until_ms)
local history_until, business_until
if extends then
  if not pointer then return {'expiry_due', business_id, redis.call('HGET', session, 'userId')} end
  history_until, business_until = redis.call('PEXPIRETIME', history), redis.call('PEXPIRETIME', business)
end
-- New keys expire with their session.
local is_first = old_count == 0
local session_until = is_first and redis.call('PEXPIRETIME', session)
local trimmed_ids, oldest = {}, nil
if count >= MESSAGES_KEPT or bytes > SESSION_BYTES_MAX then
  oldest = (redis.call('HGET', session, 'oldestSeq') or 1) + 0
  for index = 0, TRIM_MAX - 1 do
    if count - oldest < MESSAGES_KEPT and bytes <= SESSION_BYTES_MAX then break end
    local message = redis.call('LINDEX', messages, index)
    if not message then break end
    oldest, bytes = oldest + 1, bytes - #message
    trimmed_ids[#trimmed_ids + 1] = message_id_of(message)
  end
end

-- From here on only writes.
redis.call('RPUSH', messages, unpack(new_messages))
redis.call('HSET', message_ids, unpack(new_ids))
redis.call('HSET', session, 'messageCount', newest_seq, 'messageBytes', int(bytes), 'lastActivityAt', active_at)
if largest > old_largest then redis.call('HSET', session, 'largestMessage', int(largest)) end
if #trimmed_ids > 0 then
  redis.call('LTRIM', messages, #trimmed_ids, -1)
  redis.call('HDEL', message_ids, unpack(trimmed_ids))
  redis.call('HSET', session, 'oldestSeq', int(oldest))
end
if extends then
  redis.call('HSET', session, 'expiresAt', int(expires))
  local keys_expire_at = int(expires + RETENTION_MS)
  local index_expires_at = int(expires + RETENTION_MS + RESOLUTION_MS)
  redis.call('PEXPIREAT', session, keys_expire_at)
  redis.call('PEXPIREAT', messages, keys_expire_at)
  redis.call('PEXPIREAT', message_ids, keys_expire_at)
  redis.call('PEXPIREAT', pointer, keys_expire_at)
  redis.call('ZADD', business, int(expires), session_id)
  if history_until < expires + RETENTION_MS then redis.call('PEXPIREAT', history, keys_expire_at) end
  -- Further than it must, so few calls move it.
  if business_until < expires + RETENTION_MS then redis.call('PEXPIREAT', business, index_expires_at) end
elseif is_first and session_until > 0 then
  redis.call('PEXPIREAT', messages, int(session_until))
  redis.call('PEXPIREAT', message_ids, int(session_until))
end
notify(session, business_id, ARGV[2], 'm' .. new_ids[2] .. '-' .. newest_seq)
return {'appended', session_id, #trimmed_ids, newest_seq, active_at}
