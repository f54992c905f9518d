#!lua
-- update: change fields of a session, end it, or resume it as the user's active session.
--
-- Why it is atomic: one step checks the version and whether another session is active, and applies the change. So of
-- two concurrent resumes only one succeeds, and fields that a caller does not name keep what a concurrent caller wrote.
-- Safe to run twice: the caller passes a mutation id, and the session stores its last few mutation ids. If the id is
-- among them, the script changes nothing and returns the session as it is now. A call that changed nothing stores no id
-- and may run again.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, list, and hash of messageId -> seq
--        4 pointer, 5 history, 6 business        of its user, its user, its business in this partition
--        7 turn, 8 chunks    the session's latest turn (hash), absent if it has had none; its chunks (list), absent
--                          unless it is open
--        derived: the session that the pointer names, its messages and its message ids, under `partition`; only in a
--        slot that is not moving, see lua/README.md
-- ARGV   1 partition          key prefix of the partition
--        2 id                 the session's id
--        3 now_ms             Unix time
--        4 mutation_id        11 characters, new for every call
--        5 if_version         the version that the client requires, or ``
--        6 base_metadata      `=` and the stored metadata from which the new metadata was merged, or ``
--        7 status             `active`, `ended` or ``
--        8 if_active          `replace`, or `return` to reject a resume if another session is active
--        9 ... field, value   `=` and the new value, or `` to remove the field
-- Returns {`updated`, status change or ``, the endReason of another session that this call ended or ``, the status of
--          the turn that this call closed or ``, fields}
--         {`missing`} {`version_mismatch`} {`stale`} {`another_active`, its id}
--         {`has_turn`}    run again with the keys of the turn
-- where fields are all fields of the session's hash: name, value, name, value, in no fixed order.
-- An end closes the open turn in the same step.
-- O(log n) in the size of the indexes, and the chunks of a turn that it closes.
local MUTATIONS_KEPT = 4
local session, messages, message_ids = KEYS[1], KEYS[2], KEYS[3]
local pointer, history, business = KEYS[4], KEYS[5], KEYS[6]
local turn, chunks = KEYS[7], KEYS[8]
local partition, id, now_ms = ARGV[1], ARGV[2], ARGV[3] + 0
local mutation_id, if_version, base_metadata = ARGV[4], ARGV[5], ARGV[6]
local status, if_active = ARGV[7], ARGV[8]

local document = by_name(redis.call('HGETALL', session))
if document.sessionId ~= id then return {'missing'} end

local function updated(change, pointed_ended, closed)
  local reply = {'updated', change, pointed_ended, closed}
  for field, value in pairs(document) do
    table.insert(reply, field)
    table.insert(reply, value)
  end
  return reply
end

local ended_ms = (document.endedAt or document.expiresAt) + 0
if now_ms >= ended_ms + RETENTION_MS then return {'missing'} end
local mutations = document.mutations or ''
if string.find(mutations, mutation_id, 1, true) then return updated('', '', '') end
if if_version ~= '' and if_version ~= document.version then return {'version_mismatch'} end
if base_metadata ~= '' and base_metadata ~= '=' .. document.metadata then return {'stale'} end

local was_active = document.status == 'active' and now_ms < document.expiresAt + 0
local expired_now = document.status == 'active' and not was_active
local resumes = status == 'active' and not was_active
local ends = status == 'ended' and was_active
local pointed_id = redis.call('GET', pointer)
local active_ms = math.max(now_ms, document.lastActivityAt + 0)
local active_until = resumes and active_ms + MAX_LIFETIME_MS or document.activeUntil + 0
local expires = math.min(active_ms + IDLE_MS, active_until)
local lag = expires - document.expiresAt
-- The last step, to the end of the maximum lifetime, is always written: the reason of the end follows from it.
local is_due = math.abs(lag) >= RESOLUTION_MS or (lag > 0 and expires == active_until)
local extends = resumes or (was_active and not ends and is_due)
-- A resume moves the session to the front of the history, even if the clocks of the services differ.
local history_ms
if resumes then
  local _, newest_score = unpack(redis.call('ZRANGE', history, 0, 0, 'REV', 'WITHSCORES'))
  history_ms = math.max(now_ms, (newest_score or 0) + 1)
end
local history_until, business_until
if extends or ends or expired_now then
  history_until, business_until = redis.call('PEXPIRETIME', history), redis.call('PEXPIRETIME', business)
end

local pointed_key, pointed_active = nil, false
local pointed_status, pointed_expires_at, pointed_active_until, pointed_version, pointed_updated_at, pointed_active_at
local pointed_business_id, pointed_user_id
if resumes and pointed_id and pointed_id ~= id then
  pointed_key = partition .. 's:' .. pointed_id
  pointed_status, pointed_expires_at, pointed_active_until, pointed_version, pointed_updated_at, pointed_active_at,
    pointed_business_id, pointed_user_id = unpack(redis.call('HMGET', pointed_key, 'status', 'expiresAt',
      'activeUntil', 'version', 'updatedAt', 'lastActivityAt', 'businessId', 'userId'))
  -- A damaged pointer may name another user's session. It counts as no pointer, and the resume replaces it.
  local is_own = pointed_business_id == document.businessId and pointed_user_id == document.userId
  pointed_active = is_own and pointed_status == 'active' and now_ms < pointed_expires_at + 0
  if not is_own then pointed_status = nil end
  if pointed_active and if_active ~= 'replace' then return {'another_active', pointed_id} end
  -- In a moving slot, the other session may seem missing. Then this command fails.
  redis.call('EXISTS', pointer, partition .. 'none')
end

if (document.turnNumber and not turn) or (document.turnId and not chunks) then return {'has_turn'} end
local latest, plan
if ends and document.turnId then
  local how = lost_or({status = 'interrupted', at_ms = now_ms, created_ms = active_ms}, document, now_ms)
  latest = latest_turn(turn, document)
  local keys = {session = session, messages = messages, message_ids = message_ids, turn = turn, chunks = chunks}
  plan = document.turnId and plan_close(keys, document, latest, how)
end

-- From here on only writes. `document` becomes the stored session; `write` and `remove` collect the changed fields.
local write, remove = {}, {}
local function set(field, value)
  if document[field] ~= value then
    document[field] = value
    table.insert(write, field)
    table.insert(write, value)
    return true
  end
  return false
end
local function unset(field)
  if document[field] then
    document[field] = nil
    table.insert(remove, field)
    return true
  end
  return false
end

if plan then write_close(plan, document, latest) end
local pointed_ended = ''
if pointed_status == 'active' then
  if pointed_active then
    pointed_ended = 'replaced'
    -- Not before its last change or activity, even if another service with a fast clock wrote those.
    local end_ms = math.max(now_ms, pointed_updated_at + 0, pointed_active_at + 0)
    local keys_expire_at = int(end_ms + RETENTION_MS)
    redis.call('HSET', pointed_key, 'status', 'ended', 'endReason', pointed_ended, 'endedAt', int(end_ms),
      'updatedAt', int(end_ms), 'version', int(pointed_version + 1))
    redis.call('PEXPIREAT', pointed_key, keys_expire_at)
    redis.call('PEXPIREAT', partition .. 'm:' .. pointed_id, keys_expire_at)
    redis.call('PEXPIREAT', partition .. 'd:' .. pointed_id, keys_expire_at)
  else
    pointed_ended = pointed_expires_at == pointed_active_until and 'max_lifetime' or 'idle'
    redis.call('HSET', pointed_key, 'status', 'expired', 'endReason', pointed_ended, 'endedAt', pointed_expires_at)
  end
  redis.call('ZREM', business, pointed_id)
end

local changed = false
for i = 9, #ARGV, 2 do
  local field, value = ARGV[i], ARGV[i + 1]
  if value == '' then
    changed = unset(field) or changed
  else
    changed = set(field, string.sub(value, 2)) or changed
  end
end

local change = ''
-- Not before the resume's place in the history, so a session never ends before its history score.
local change_ms = math.max(now_ms, document.updatedAt + 0, history_ms or 0)
if resumes then
  change, changed = 'resumed', true
  unset('endedAt')
  unset('endReason')
  set('status', 'active')
  set('activeUntil', int(active_until))
  set('historyAt', int(history_ms))
elseif ends then
  change, changed = 'ended', true
  set('status', 'ended')
  set('endedAt', int(math.max(change_ms, active_ms)))
  set('endReason', 'client')
elseif expired_now then
  change = 'expired'
  set('status', 'expired')
  set('endedAt', document.expiresAt)
  set('endReason', document.expiresAt == document.activeUntil and 'max_lifetime' or 'idle')
end
if document.status == 'active' then set('lastActivityAt', int(active_ms)) end
if extends then set('expiresAt', int(expires)) end
if changed then
  set('version', int(document.version + 1))
  set('updatedAt', int(change_ms))
  set('mutations', string.sub(mutation_id .. ' ' .. mutations, 1, MUTATIONS_KEPT * (#mutation_id + 1)))
end

if #write > 0 then redis.call('HSET', session, unpack(write)) end
if #remove > 0 then redis.call('HDEL', session, unpack(remove)) end
local keys_expire_ms = (document.endedAt or document.expiresAt) + RETENTION_MS
local keys_expire_at = int(keys_expire_ms)
if resumes then redis.call('ZADD', history, int(history_ms), id) end
if extends then
  redis.call('SET', pointer, id, 'PXAT', keys_expire_at)
  redis.call('ZADD', business, document.expiresAt, id)
  if history_until < keys_expire_ms then redis.call('PEXPIREAT', history, keys_expire_at) end
  -- If the other session was the only entry, ZREM deleted the index, and ZADD created it again without an expiry.
  if pointed_key or business_until < keys_expire_ms then
    redis.call('PEXPIREAT', business, int(math.max(business_until, keys_expire_ms)))
  end
elseif change ~= '' then
  if pointed_id == id then redis.call('DEL', pointer) end
  redis.call('ZREM', business, id)
  -- The retention may have become longer since the session was last active.
  if history_until < keys_expire_ms then redis.call('PEXPIREAT', history, keys_expire_at) end
end
if extends or change ~= '' then
  redis.call('PEXPIREAT', session, keys_expire_at)
  redis.call('PEXPIREAT', messages, keys_expire_at)
  redis.call('PEXPIREAT', message_ids, keys_expire_at)
end
if resumes and turn then redis.call('PEXPIREAT', turn, int(active_until + RETENTION_MS)) end
if resumes and chunks then redis.call('PEXPIREAT', chunks, int(active_until + RETENTION_MS)) end
if pointed_ended ~= '' then notify(pointed_key, document.businessId, ARGV[3], 's') end
if changed or change ~= '' then
  notify(session, document.businessId, ARGV[3], plan and closed_words(plan) .. ' s' or 's')
end
return updated(change, pointed_ended, plan and latest.status or '')
