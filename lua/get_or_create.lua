#!lua
-- get_or_create: return the user's active session, or create one.
--
-- Why it cannot race: Redis completes a script before it runs any other command. So one step reads the pointer, decides
-- that no session is active and sets the pointer: of ten thousand concurrent callers, the first one creates a session,
-- and every other one finds its pointer. Nothing outside of this step decides which session is active.
-- Safe to run twice: the caller passes the new id. If a session with that id exists, an earlier run created it, and the
-- script returns it as it is now. An id that is derived from an idempotency key can occur again: it names one session
-- until that session is removed, then a new one. The script compares the stored owner, because a derived id does not
-- prove who created the session.
-- A create also removes the user's oldest sessions beyond SESSIONS_MAX, at most TRIM_MAX a call. The created session is
-- then the newest and the only active one, so no active session is removed.
--
-- KEYS   1 pointer    the user's active pointer            (string)
--        2 history    the user's sessions by creation or last resume (sorted set)
--        3 business   the active sessions of the business in this partition, by expiresAt (sorted set)
--        4 created    the session to create                (hash)
--        derived: the sessions that the pointer and the oldest entries of the history name, their messages, message
--        ids and turns, under `partition`; those of new_id; they are written only in a slot that is not moving, see
--        lua/README.md
-- ARGV   1 partition          key prefix of the partition, such as `sd:{03f2}:`
--        2 new_id             id of the session to create
--        3 now_ms             Unix time
--        4 if_active          `return` or `replace`
--        5 business_id        the user's business
--        6 user_id            the user
--        7 is_derived_id      `1` if an earlier session may have had new_id (idempotency key), else ``
--        8 ... field, value   the fields of the new session that the caller chose
-- Returns {`created`, createdAt, the endReason of the session that this call ended or ``, sessions removed}
--         {`replayed`, fields}    an earlier run created it; with is_derived_id only if it is not active any more
--         {`resumed`, fields}     the active session, with its activity written if that was due
--         {`foreign`}             another user's session has new_id
-- where fields are all fields of the session's hash: name, value, name, value, in no fixed order.
-- O(log n) in the size of the indexes, plus TRIM_MAX.
local pointer, history, business, created = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local partition, new_id, now_ms, if_active = ARGV[1], ARGV[2], ARGV[3] + 0, ARGV[4]
local business_id, user_id, is_derived_id = ARGV[5], ARGV[6], ARGV[7] == '1'
-- Maximum number of stale entries that one call removes from each index, and of sessions that it removes.
local TRIM_MAX = 4
-- How long an entry of the business index is kept after it has expired. The event streams of the business look for
-- expired sessions every few seconds. The clocks of two services differ by at most half of the idle timeout.
local STALE_AFTER_MS = 60000 + IDLE_MS / 2
-- What PEXPIRETIME replies of a key that does not exist.
local NO_KEY = -2

local function set(fields, name, value)
  for i = 1, #fields, 2 do
    if fields[i] == name then fields[i + 1] = value end
  end
end

-- Who is active?
local pointed_id = redis.call('GET', pointer)
local pointed_key = pointed_id and partition .. 's:' .. pointed_id
local pointed_status, pointed_expires_at, pointed_active_at, pointed_active_until, pointed_version, pointed_updated_at
local pointed_business_id, pointed_user_id
if pointed_id then
  pointed_status, pointed_expires_at, pointed_active_at, pointed_active_until, pointed_version, pointed_updated_at,
    pointed_business_id, pointed_user_id = unpack(redis.call('HMGET', pointed_key, 'status', 'expiresAt',
      'lastActivityAt', 'activeUntil', 'version', 'updatedAt', 'businessId', 'userId'))
end
-- A damaged pointer may name another user's session. It counts as no pointer, and the create replaces it.
local is_own = pointed_business_id == business_id and pointed_user_id == user_id
local marked_active = is_own and pointed_status == 'active'
local is_active = marked_active and now_ms < pointed_expires_at + 0
local history_until, business_until = redis.call('PEXPIRETIME', history), redis.call('PEXPIRETIME', business)

local earlier_business, is_replay = redis.call('HGET', created, 'businessId'), false
if earlier_business then
  local earlier_user, earlier_expires_at, earlier_ended_at =
    unpack(redis.call('HMGET', created, 'userId', 'expiresAt', 'endedAt'))
  if earlier_business ~= business_id or earlier_user ~= user_id then return {'foreign'} end
  is_replay = now_ms < (earlier_ended_at or earlier_expires_at) + RETENTION_MS
end
local is_active_replay = is_derived_id and is_replay and is_active and pointed_id == new_id
if is_replay and not is_active_replay then return {'replayed', unpack(redis.call('HGETALL', created))} end

-- In a moving slot this EXISTS fails, so a session that is on the other master is never mistaken for a deleted one.
-- Without is_derived_id `created` is missing here, so Redis has rejected the call.
if is_derived_id then redis.call('EXISTS', pointer, partition .. 'none') end

if is_active_replay or (is_active and if_active == 'return') then
  local fields = redis.call('HGETALL', pointed_key)
  local expires = math.min(now_ms + IDLE_MS, pointed_active_until + 0)
  local idle_for, lag = now_ms - pointed_active_at, expires - pointed_expires_at
  local is_last_step = lag > 0 and expires == pointed_active_until + 0
  if idle_for > 0 and (idle_for >= RESOLUTION_MS or lag >= RESOLUTION_MS or is_last_step) then
    local keys_expire_at = int(expires + RETENTION_MS)
    local index_expires_at = int(expires + RETENTION_MS + RESOLUTION_MS)
    local expires_at = int(expires)
    set(fields, 'lastActivityAt', ARGV[3])
    set(fields, 'expiresAt', expires_at)
    redis.call('HSET', pointed_key, 'lastActivityAt', ARGV[3], 'expiresAt', expires_at)
    redis.call('PEXPIREAT', pointed_key, keys_expire_at)
    redis.call('PEXPIREAT', partition .. 'm:' .. pointed_id, keys_expire_at)
    redis.call('PEXPIREAT', partition .. 'd:' .. pointed_id, keys_expire_at)
    redis.call('PEXPIREAT', pointer, keys_expire_at)
    redis.call('ZADD', business, expires_at, pointed_id)
    if history_until < expires + RETENTION_MS then redis.call('PEXPIREAT', history, keys_expire_at) end
    if business_until < expires + RETENTION_MS then redis.call('PEXPIREAT', business, index_expires_at) end
  end
  return {'resumed', unpack(fields)}
end

-- Create a session. Its createdAt is later than every score of the history, and so than every createdAt of the user,
-- even if the clocks of the services differ.
local start_ms, stale_history, trimmed, stale_business = now_ms, {}, {}, {}
if history_until ~= NO_KEY then
  local _, newest_score = unpack(redis.call('ZRANGE', history, 0, 0, 'REV', 'WITHSCORES'))
  start_ms = math.max(now_ms, newest_score + 1)
  -- Which of the oldest entries go: those whose session Redis has removed or is another user's (damage), and the
  -- sessions beyond SESSIONS_MAX.
  local excess, oldest = redis.call('ZCARD', history) + 1 - SESSIONS_MAX, {}
  if excess > 0 and redis.call('ZSCORE', history, new_id) then excess = excess - 1 end
  for _, id in ipairs(redis.call('ZRANGE', history, 0, TRIM_MAX - 1)) do
    local its_business_id, its_user_id = unpack(redis.call('HMGET', partition .. 's:' .. id, 'businessId', 'userId'))
    local is_its_own = its_business_id == business_id and its_user_id == user_id
    local destination = is_its_own and oldest or stale_history
    if id ~= new_id then table.insert(destination, id) end
  end
  for index = 1, math.min(#oldest, excess - #stale_history) do table.insert(trimmed, oldest[index]) end
end
if business_until ~= NO_KEY then
  stale_business = redis.call('ZRANGE', business, '-inf', int(now_ms - STALE_AFTER_MS), 'BYSCORE', 'LIMIT', 0,
    TRIM_MAX)
end

-- From here on only writes.
-- Removes what an earlier session with this id left: Redis may not have expired all of its keys yet.
if is_derived_id then
  redis.call('UNLINK', created, partition .. 'm:' .. new_id, partition .. 'd:' .. new_id, partition .. 't:' .. new_id,
    partition .. 'r:' .. new_id)
end
if #stale_history > 0 then redis.call('ZREM', history, unpack(stale_history)) end
if #stale_business > 0 then redis.call('ZREM', business, unpack(stale_business)) end

local ended = ''
if is_active then
  ended = 'replaced'
  -- Not before its last change or activity, even if another service with a fast clock wrote those.
  local end_ms = math.max(now_ms, pointed_active_at + 0, pointed_updated_at + 0)
  local keys_expire_at = int(end_ms + RETENTION_MS)
  redis.call('HSET', pointed_key, 'status', 'ended', 'endReason', ended, 'endedAt', int(end_ms),
    'updatedAt', int(end_ms), 'version', int(pointed_version + 1))
  redis.call('PEXPIREAT', pointed_key, keys_expire_at)
  redis.call('PEXPIREAT', partition .. 'm:' .. pointed_id, keys_expire_at)
  redis.call('PEXPIREAT', partition .. 'd:' .. pointed_id, keys_expire_at)
  redis.call('ZREM', business, pointed_id)
elseif marked_active and pointed_id ~= new_id then
  ended = pointed_expires_at == pointed_active_until and 'max_lifetime' or 'idle'
  redis.call('HSET', pointed_key, 'status', 'expired', 'endReason', ended, 'endedAt', pointed_expires_at)
  redis.call('ZREM', business, pointed_id)
end

-- Only createdAt, updatedAt and the history use start_ms: a clock that was ahead must not prolong later sessions.
local active_until = now_ms + MAX_LIFETIME_MS
local expires = math.min(now_ms + IDLE_MS, active_until)
local start, expires_at, keys_expire_at = int(start_ms), int(expires), int(expires + RETENTION_MS)
redis.call('HSET', created, 'sessionId', new_id, 'status', 'active', 'messageCount', '0', 'version', '1',
  'createdAt', start, 'updatedAt', start, 'lastActivityAt', ARGV[3],
  'expiresAt', expires_at, 'activeUntil', int(active_until), 'businessId', business_id, 'userId', user_id,
  unpack(ARGV, 8))
redis.call('PEXPIREAT', created, keys_expire_at)
redis.call('SET', pointer, new_id, 'PXAT', keys_expire_at)
redis.call('ZADD', history, start, new_id)
redis.call('ZADD', business, expires_at, new_id)
-- What was removed above may have been all that an index held: then it is a new one, and has no expiry yet. That of the
-- business moves further than it must, so few calls move it.
redis.call('PEXPIREAT', history, history_until > expires + RETENTION_MS and int(history_until) or keys_expire_at)
if business_until < expires + RETENTION_MS or #stale_business > 0 or ended ~= '' then
  redis.call('PEXPIREAT', business, int(math.max(business_until, expires + RETENTION_MS + RESOLUTION_MS)))
end
-- After all other writes, because one of them may have ended a session that is removed here.
for _, id in ipairs(trimmed) do
  redis.call('UNLINK', partition .. 's:' .. id, partition .. 'm:' .. id, partition .. 'd:' .. id,
    partition .. 't:' .. id, partition .. 'r:' .. id)
  redis.call('ZREM', history, id)
  redis.call('ZREM', business, id)
  notify(partition .. 's:' .. id, business_id, ARGV[3], 'd')
end
if ended ~= '' then notify(pointed_key, business_id, ARGV[3], 's') end
-- No stream can listen to a session that is new.
notify_business(created, business_id, ARGV[3], 's')
return {'created', start, ended, tostring(#trimmed)}
