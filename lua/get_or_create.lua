#!lua
-- get_or_create: the user's active session, or a new one.
--
-- Why it cannot race: Redis runs a script to its end before it looks at any other command. Reading the pointer, deciding
-- that nobody is active and setting the pointer are therefore one step: of ten thousand callers the first one creates, and
-- each later one finds its pointer. Nothing outside of this step decides who is active.
-- Safe to run twice: the caller brings the new id. If a session with that id exists, an earlier run made it, and it is
-- answered as it is now, whatever has happened since. An id that follows from an idempotency key comes again: it names one
-- session until that is gone, then a new one. The stored owner is compared, because such an id proves nothing.
--
-- KEYS   1 pointer    the user's active pointer            (string)
--        2 history    the user's sessions by createdAt     (sorted set)
--        3 business   the active sessions of the business in this partition, by expiresAt (sorted set)
--        4 created    the session to create                (hash)
--        derived: the session that the pointer names, its messages and its message ids, under `partition`; the messages
--        and message ids of new_id
-- ARGV   1 partition          key prefix of the partition, such as `sd:{03f2}:`
--        2 new_id             id of the session to create
--        3 now_ms             Unix time
--        4 idle_ms            idle timeout
--        5 max_lifetime_ms    maximum lifetime
--        6 retention_ms       how long a session stays readable after its end
--        7 resolution_ms      activity younger than this is not written again
--        8 if_active          `return` or `replace`
--        9 trim_max           stale index entries to remove at the most, per index
--       10 business_id        the user's business
--       11 user_id            the user
--       12 id_comes_again     `1` if an earlier session may have had new_id, else ``
--       13 ... field, value   the fields of the new document that the caller chose
-- Returns {`created`, createdAt, what the old session ended of or ``}
--         {`replayed`, fields}    an earlier run of this call created it; one with id_comes_again, and it is not active
--         {`resumed`, fields}     the active session, touched if that was due
--         {`foreign`}             another user's session has new_id
-- O(log n) in the size of the indexes, plus trim_max.
local FIELDS = {
  'sessionId', 'businessId', 'userId', 'locationId', 'sessionType', 'status', 'title', 'metadata', 'messageCount',
  'version', 'createdAt', 'updatedAt', 'lastActivityAt', 'expiresAt', 'activeUntil', 'endedAt', 'endReason',
  'largestMessage',
}
local pointer, history, business, created = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local partition, new_id = ARGV[1], ARGV[2]
local now_ms, idle_ms, max_lifetime_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local retention_ms, resolution_ms = tonumber(ARGV[6]), tonumber(ARGV[7])
local if_active, trim_max = ARGV[8], tonumber(ARGV[9])
local business_id, user_id, id_comes_again = ARGV[10], ARGV[11], ARGV[12] == '1'

local function int(ms)
  return string.format('%.0f', ms)
end

local function fields_of(key)
  return redis.call('HMGET', key, unpack(FIELDS))
end

-- Who is active?
local old_id = redis.call('GET', pointer)
local old, old_key = nil, nil
if old_id then
  old_key = partition .. 's:' .. old_id
  old = redis.call('HMGET', old_key, 'status', 'expiresAt', 'lastActivityAt', 'activeUntil', 'version', 'updatedAt')
end
local marked_active = old and old[1] == 'active'
local is_active = marked_active and now_ms < tonumber(old[2])
local history_until, business_until = redis.call('PEXPIRETIME', history), redis.call('PEXPIRETIME', business)

local earlier = redis.call('HMGET', created, 'businessId', 'userId', 'expiresAt', 'endedAt')
if earlier[1] and (earlier[1] ~= business_id or earlier[2] ~= user_id) then return {'foreign'} end
local is_replay = earlier[1] and now_ms < tonumber(earlier[4] or earlier[3]) + retention_ms
local is_active_replay = id_comes_again and is_replay and is_active and old_id == new_id
if is_replay and not is_active_replay then return {'replayed', unpack(fields_of(created), 1, #FIELDS)} end

if is_active_replay or (is_active and if_active == 'return') then
  local document = fields_of(old_key)
  if now_ms - tonumber(old[3]) >= resolution_ms and now_ms > tonumber(old[3]) then
    local expires = math.min(now_ms + idle_ms, tonumber(old[4]))
    local gone = int(expires + retention_ms)
    document[13], document[14] = int(now_ms), int(expires)
    redis.call('HSET', old_key, 'lastActivityAt', document[13], 'expiresAt', document[14])
    redis.call('PEXPIREAT', old_key, gone)
    redis.call('PEXPIREAT', partition .. 'm:' .. old_id, gone)
    redis.call('PEXPIREAT', partition .. 'd:' .. old_id, gone)
    redis.call('PEXPIREAT', pointer, gone)
    redis.call('ZADD', business, document[14], old_id)
    if history_until < expires + retention_ms then redis.call('PEXPIREAT', history, gone) end
    if business_until < expires + retention_ms then redis.call('PEXPIREAT', business, gone) end
  end
  return {'resumed', unpack(document, 1, #FIELDS)}
end

-- Nobody is, or is to be replaced. The user's createdAt values strictly increase, whatever the clocks say.
local newest = redis.call('ZRANGE', history, 0, 0, 'REV', 'WITHSCORES')
local start_ms = now_ms
if newest[2] then start_ms = math.max(now_ms, tonumber(newest[2]) + 1) end
local stale_history = {}
for _, id in ipairs(redis.call('ZRANGE', history, 0, trim_max - 1)) do
  if redis.call('EXISTS', partition .. 's:' .. id) == 0 then table.insert(stale_history, id) end
end
local stale_business = redis.call('ZRANGE', business, '-inf', int(now_ms), 'BYSCORE', 'LIMIT', 0, trim_max)

-- From here on only writes.
-- What is left of an earlier session: Redis removes it at a time of its own.
if id_comes_again then redis.call('UNLINK', created, partition .. 'm:' .. new_id, partition .. 'd:' .. new_id) end
if #stale_history > 0 then redis.call('ZREM', history, unpack(stale_history)) end
if #stale_business > 0 then redis.call('ZREM', business, unpack(stale_business)) end

local ended = ''
if is_active then
  ended = 'replaced'
  -- Not before its last change or activity, whatever the clocks say.
  local end_ms = math.max(now_ms, tonumber(old[3]), tonumber(old[6]))
  local gone = int(end_ms + retention_ms)
  redis.call('HSET', old_key, 'status', 'ended', 'endReason', ended, 'endedAt', int(end_ms),
    'updatedAt', int(end_ms), 'version', int(tonumber(old[5]) + 1))
  redis.call('PEXPIREAT', old_key, gone)
  redis.call('PEXPIREAT', partition .. 'm:' .. old_id, gone)
  redis.call('PEXPIREAT', partition .. 'd:' .. old_id, gone)
  redis.call('ZREM', business, old_id)
elseif marked_active and old_id ~= new_id then
  ended = old[2] == old[4] and 'max_lifetime' or 'idle'
  redis.call('HSET', old_key, 'status', 'expired', 'endReason', ended, 'endedAt', old[2])
  redis.call('ZREM', business, old_id)
end

-- Only the order of creation needs start_ms. A clock that once was ahead must not keep later sessions alive.
local active_until = now_ms + max_lifetime_ms
local expires = math.min(now_ms + idle_ms, active_until)
local gone = int(expires + retention_ms)
redis.call('HSET', created, 'sessionId', new_id, 'status', 'active', 'messageCount', '0', 'version', '1',
  'createdAt', int(start_ms), 'updatedAt', int(start_ms), 'lastActivityAt', int(now_ms),
  'expiresAt', int(expires), 'activeUntil', int(active_until), 'businessId', business_id, 'userId', user_id,
  unpack(ARGV, 13))
redis.call('PEXPIREAT', created, gone)
redis.call('SET', pointer, new_id, 'PXAT', gone)
redis.call('ZADD', history, int(start_ms), new_id)
redis.call('ZADD', business, int(expires), new_id)
-- What was removed above may have been all that an index held: then it is a new one, and has no expiry yet.
redis.call('PEXPIREAT', history, int(math.max(history_until, expires + retention_ms)))
redis.call('PEXPIREAT', business, int(math.max(business_until, expires + retention_ms)))
return {'created', int(start_ms), ended}
