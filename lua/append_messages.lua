#!lua
-- append_messages: append messages to an active session, all of them or none.
--
-- Why it is atomic: one step assigns the next seq, writes the entry and stores its messageId. So seq has no gaps and no
-- value is assigned twice, however many callers append.
-- Safe to run twice: every message has an id (the client's, or one that the service made for this call). If an id is
-- known with the same role and content, the script returns the stored message and does not append it again.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, stream, and hash of messageId -> seq
--        4 pointer, 5 history, 6 business        of its user, its user, its business in this partition
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 idle_ms        idle timeout
--        4 retention_ms   how long a session stays readable after its end
--        5 resolution_ms  an expiry that moves by less is not written
--        6 keep           number of newest messages to keep, at least as many as one call may append
--        7 trim_max       maximum messages to trim
--        8 conflict_bytes_max   bytes of conflicting contents beyond which no more conflicts are collected
--        9 ... messageId, role, content, metadata (the last two are JSON), four for each message
-- Returns {`appended`, six for each message: `new` or `known`, seq, createdAt, role, content, metadata}
--         {`replayed`, the same}    every message was known
--         {`conflict`, three for each: position from 1, stored role, stored content}; only the first conflicts if their
--                         contents have more bytes than conflict_bytes_max
--         {`missing`} {`not_active`}
-- O(messages in the call + trim_max), plus log n in the size of the business index.
local session, messages, message_ids = KEYS[1], KEYS[2], KEYS[3]
local pointer, history, business = KEYS[4], KEYS[5], KEYS[6]
local id, now_ms, idle_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local retention_ms, resolution_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local keep, trim_max, conflict_bytes_max = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST, WIDTH = 9, 4

local function int(ms)
  return string.format('%.0f', ms)
end

local session_id, status, expires_at, last_activity_at, active_until, message_count, ended_at, largest_message = unpack(
  redis.call('HMGET', session, 'sessionId', 'status', 'expiresAt', 'lastActivityAt', 'activeUntil', 'messageCount',
    'endedAt', 'largestMessage'))
if session_id ~= id then return {'missing'} end
if now_ms >= tonumber(ended_at or expires_at) + retention_ms then return {'missing'} end

local stored_largest = tonumber(largest_message or 0)
local known, conflicts, new_count = {}, {'conflict'}, 0
local conflict_bytes, largest = 0, stored_largest
for i = FIRST, #ARGV, WIDTH do
  local seq = redis.call('HGET', message_ids, ARGV[i])
  local entry = seq and redis.call('XRANGE', messages, seq .. '-0', seq .. '-0')[1]
  if entry then
    local _, fields = unpack(entry)
    local stored = {}
    for k = 1, #fields, 2 do stored[fields[k]] = fields[k + 1] end
    if stored.role == ARGV[i + 1] and stored.content == ARGV[i + 2] then
      known[i] = {'known', seq, stored.createdAt, stored.role, stored.content, stored.metadata}
    else
      table.insert(conflicts, int((i - FIRST) / WIDTH + 1))
      table.insert(conflicts, stored.role)
      table.insert(conflicts, stored.content)
      conflict_bytes = conflict_bytes + #stored.content
      if conflict_bytes > conflict_bytes_max then break end
    end
  else
    new_count = new_count + 1
    largest = math.max(largest, #ARGV[i] + #ARGV[i + 2] + #ARGV[i + 3])
  end
end
if #conflicts > 1 then return conflicts end
if new_count > 0 and not (status == 'active' and now_ms < tonumber(expires_at)) then return {'not_active'} end

local old_length = redis.call('XLEN', messages)
local length = old_length + new_count
local surplus = math.min(length - keep, trim_max)
local trimmed_ids = {}
if new_count > 0 and surplus > 0 then
  for _, entry in ipairs(redis.call('XRANGE', messages, '-', '+', 'COUNT', surplus)) do
    local _, fields = unpack(entry)
    for k = 1, #fields, 2 do
      if fields[k] == 'messageId' then table.insert(trimmed_ids, fields[k + 1]) end
    end
  end
end
local active_ms = math.max(now_ms, tonumber(last_activity_at))
local expires = math.min(active_ms + idle_ms, tonumber(active_until))
local lag = expires - tonumber(expires_at)
-- The last step, to the end of the maximum lifetime, is always written: the reason of the end follows from it.
local extends = math.abs(lag) >= resolution_ms or (lag > 0 and expires == tonumber(active_until))
-- New keys expire with their session.
local session_until = old_length == 0 and redis.call('PEXPIRETIME', session) or 0
local history_until, business_until
if extends then
  history_until, business_until = redis.call('PEXPIRETIME', history), redis.call('PEXPIRETIME', business)
end

-- From here on only writes.
local reply = {new_count > 0 and 'appended' or 'replayed'}
local seq = tonumber(message_count)
local at = int(active_ms)
for i = FIRST, #ARGV, WIDTH do
  local message = known[i]
  if not message then
    seq = seq + 1
    redis.call('XADD', messages, int(seq) .. '-0', 'messageId', ARGV[i], 'role', ARGV[i + 1], 'content', ARGV[i + 2],
      'metadata', ARGV[i + 3], 'createdAt', at)
    redis.call('HSET', message_ids, ARGV[i], int(seq))
    message = {'new', int(seq), at, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]}
  end
  for k = 1, 6 do table.insert(reply, message[k]) end
end
if new_count == 0 then return reply end

if #trimmed_ids > 0 then
  redis.call('XTRIM', messages, 'MAXLEN', '=', length - #trimmed_ids)
  redis.call('HDEL', message_ids, unpack(trimmed_ids))
end
local changes = {
  'messageCount', int(seq), 'lastActivityAt', at,
}
if largest > stored_largest then
  table.insert(changes, 'largestMessage')
  table.insert(changes, int(largest))
end
if not extends then
  redis.call('HSET', session, unpack(changes))
  if session_until > 0 then
    redis.call('PEXPIREAT', messages, int(session_until))
    redis.call('PEXPIREAT', message_ids, int(session_until))
  end
  return reply
end
local gone = int(expires + retention_ms)
redis.call('HSET', session, 'expiresAt', int(expires), unpack(changes))
redis.call('PEXPIREAT', session, gone)
redis.call('PEXPIREAT', messages, gone)
redis.call('PEXPIREAT', message_ids, gone)
redis.call('PEXPIREAT', pointer, gone)
redis.call('ZADD', business, int(expires), id)
if history_until < expires + retention_ms then redis.call('PEXPIREAT', history, gone) end
if business_until < expires + retention_ms then redis.call('PEXPIREAT', business, gone) end
return reply
