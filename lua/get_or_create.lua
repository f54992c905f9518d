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
--        7 id_comes_again     `1` if an earlier session may have had new_id (idempotency key), else ``
--        8 ... field, value   the fields of the new session that the caller chose
-- Returns {`created`, createdAt, the endReason of the session that this call ended or ``, sessions removed}
--         {`replayed`, fields}    an earlier run created it; with id_comes_again only if it is not active any more
--         {`resumed`, fields}     the active session, with its activity written if that was due
--         {`foreign`}             another user's session has new_id
-- where fields are all fields of the session's hash: name, value, name, value, in no fixed order.
-- O(log n) in the size of the indexes, plus TRIM_MAX.
local pointer, history, business, created = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local partition, new_id, now_ms, if_active = ARGV[1], ARGV[2], ARGV[3] + 0, ARGV[4]
local business_id, user_id, id_comes_again = ARGV[5], ARGV[6], ARGV[7] == '1'
-- Most stale entries that one call removes from each index, and most sessions that it removes.
local TRIM_MAX = 4
-- How long an entry of the business index is kept after it has expired. The event streams of the business look for
-- expired sessions every few seconds.
local STALE_AFTER_MS = 60000
-- What PEXPIRETIME replies of a key that does not exist.
local NO_KEY = -2

local function set(fields, name, value)
  for i = 1, #fields, 2 do
    if fields[i] == name then fields[i + 1] = value end
  end
end

-- Who is active?
local old_id = redis.call('GET', pointer)
local old_key = old_id and partition .. 's:' .. old_id
local old_status, old_expires_at, old_active_at, old_active_until, old_version, old_updated_at, old_business, old_user
if old_id then
  old_status, old_expires_at, old_active_at, old_active_until, old_version, old_updated_at, old_business, old_user =
    unpack(redis.call('HMGET', old_key, 'status', 'expiresAt', 'lastActivityAt', 'activeUntil', 'version', 'updatedAt',
      'businessId', 'userId'))
end
-- A damaged pointer may name another user's session. It counts as no pointer, and the create replaces it.
local marked_active = old_status == 'active' and old_business == business_id and old_user == user_id
local is_active = marked_active and now_ms < old_expires_at + 0
local history_until, business_until = redis.call('PEXPIRETIME', history), redis.call('PEXPIRETIME', business)

local earlier_business, is_replay = redis.call('HGET', created, 'businessId'), false
if earlier_business then
  local earlier_user, earlier_expires_at, earlier_ended_at =
    unpack(redis.call('HMGET', created, 'userId', 'expiresAt', 'endedAt'))
  if earlier_business ~= business_id or earlier_user ~= user_id then return {'foreign'} end
  is_replay = now_ms < (earlier_ended_at or earlier_expires_at) + RETENTION_MS
end
local is_active_replay = id_comes_again and is_replay and is_active and old_id == new_id
if is_replay and not is_active_replay then return {'replayed', unpack(redis.call('HGETALL', created))} end

-- In a moving slot the pointer's session may only seem missing. Then this fails. Without id_comes_again `created` is
-- missing here, so Redis has rejected the call.
if id_comes_again then redis.call('EXISTS', pointer, partition .. 'none') end

if is_active_replay or (is_active and if_active == 'return') then
  local fields = redis.call('HGETALL', old_key)
  local expires = math.min(now_ms + IDLE_MS, old_active_until + 0)
  local idle_for, lag = now_ms - old_active_at, expires - old_expires_at
  local is_last_step = lag > 0 and expires == old_active_until + 0
  if idle_for > 0 and (idle_for >= RESOLUTION_MS or lag >= RESOLUTION_MS or is_last_step) then
    local gone, later = int(expires + RETENTION_MS), int(expires + RETENTION_MS + RESOLUTION_MS)
    local expires_at = int(expires)
    set(fields, 'lastActivityAt', ARGV[3])
    set(fields, 'expiresAt', expires_at)
    redis.call('HSET', old_key, 'lastActivityAt', ARGV[3], 'expiresAt', expires_at)
    redis.call('PEXPIREAT', old_key, gone)
    redis.call('PEXPIREAT', partition .. 'm:' .. old_id, gone)
    redis.call('PEXPIREAT', partition .. 'd:' .. old_id, gone)
    redis.call('PEXPIREAT', pointer, gone)
    redis.call('ZADD', business, expires_at, old_id)
    if history_until < expires + RETENTION_MS then redis.call('PEXPIREAT', history, gone) end
    if business_until < expires + RETENTION_MS then redis.call('PEXPIREAT', business, later) end
  end
  return {'resumed', unpack(fields)}
end

-- Create a session. Its createdAt is later than every score of the history, and so than every createdAt of the user,
-- even if the clocks of the services differ.
local start_ms, stale_history, trimmed, stale_business = now_ms, {}, {}, {}
if history_until ~= NO_KEY then
  local _, newest_score = unpack(redis.call('ZRANGE', history, 0, 0, 'REV', 'WITHSCORES'))
  start_ms = math.max(now_ms, newest_score + 1)
  -- Which of the oldest sessions go: those that Redis has removed, and those beyond SESSIONS_MAX.
  local excess, oldest = redis.call('ZCARD', history) + 1 - SESSIONS_MAX, {}
  if excess > 0 and redis.call('ZSCORE', history, new_id) then excess = excess - 1 end
  for _, id in ipairs(redis.call('ZRANGE', history, 0, TRIM_MAX - 1)) do
    local entries = redis.call('EXISTS', partition .. 's:' .. id) == 0 and stale_history or oldest
    if id ~= new_id then table.insert(entries, id) end
  end
  for index = 1, math.min(#oldest, excess - #stale_history) do table.insert(trimmed, oldest[index]) end
end
if business_until ~= NO_KEY then
  stale_business = redis.call('ZRANGE', business, '-inf', int(now_ms - STALE_AFTER_MS), 'BYSCORE', 'LIMIT', 0,
    TRIM_MAX)
end

-- From here on only writes.
-- Removes what an earlier session with this id left: Redis may not have expired all of its keys yet.
if id_comes_again then
  redis.call('UNLINK', created, partition .. 'm:' .. new_id, partition .. 'd:' .. new_id, partition .. 't:' .. new_id,
    partition .. 'r:' .. new_id)
end
if #stale_history > 0 then redis.call('ZREM', history, unpack(stale_history)) end
if #stale_business > 0 then redis.call('ZREM', business, unpack(stale_business)) end

local ended = ''
if is_active then
  ended = 'replaced'
  -- Not before its last change or activity, even if another service with a fast clock wrote those.
  local end_ms = math.max(now_ms, old_active_at + 0, old_updated_at + 0)
  local gone = int(end_ms + RETENTION_MS)
  redis.call('HSET', old_key, 'status', 'ended', 'endReason', ended, 'endedAt', int(end_ms),
    'updatedAt', int(end_ms), 'version', int(old_version + 1))
  redis.call('PEXPIREAT', old_key, gone)
  redis.call('PEXPIREAT', partition .. 'm:' .. old_id, gone)
  redis.call('PEXPIREAT', partition .. 'd:' .. old_id, gone)
  redis.call('ZREM', business, old_id)
elseif marked_active and old_id ~= new_id then
  ended = old_expires_at == old_active_until and 'max_lifetime' or 'idle'
  redis.call('HSET', old_key, 'status', 'expired', 'endReason', ended, 'endedAt', old_expires_at)
  redis.call('ZREM', business, old_id)
end

-- Only createdAt, updatedAt and the history use start_ms: a clock that was ahead must not prolong later sessions.
local active_until = now_ms + MAX_LIFETIME_MS
local expires = math.min(now_ms + IDLE_MS, active_until)
local start, expires_at, gone = int(start_ms), int(expires), int(expires + RETENTION_MS)
redis.call('HSET', created, 'sessionId', new_id, 'status', 'active', 'messageCount', '0', 'version', '1',
  'createdAt', start, 'updatedAt', start, 'lastActivityAt', ARGV[3],
  'expiresAt', expires_at, 'activeUntil', int(active_until), 'businessId', business_id, 'userId', user_id,
  unpack(ARGV, 8))
redis.call('PEXPIREAT', created, gone)
redis.call('SET', pointer, new_id, 'PXAT', gone)
redis.call('ZADD', history, start, new_id)
redis.call('ZADD', business, expires_at, new_id)
-- What was removed above may have been all that an index held: then it is a new one, and has no expiry yet. That of the
-- business moves further than it must, so few calls move it.
redis.call('PEXPIREAT', history, history_until > expires + RETENTION_MS and int(history_until) or gone)
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
if ended ~= '' then notify(old_key, business_id, ARGV[3], 's') end
-- No stream can listen to a session that is new.
notify_business(created, business_id, ARGV[3], 's')
return {'created', start, ended, tostring(#trimmed)}
