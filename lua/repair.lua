#!lua
-- repair: repair what is safe to repair for one session id: the entries that name it, and expiries.
--
-- Why it is atomic: an audit reads key after key while services write, so a finding may be outdated. The script checks
-- the condition of every repair again, in the step that repairs.
-- Safe to run twice: the second run finds nothing to repair. The script never makes a session active that is not marked
-- active, never ends a session, and changes nothing if more than one repair is possible.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, list, and hash of messageId -> seq
--        4 business                              the index that names it: of its business in this partition
--        5 pointer, 6 history                    of its user; both absent if the user is unknown
--        derived: the sessions that pointer and history name, under `partition`
-- ARGV   1 partition         key prefix of the partition
--        2 id                the session's id
--        3 business_id       the business of the index
--        4 user_id           the user of pointer and history, or ``
--        5 now_ms            Unix time
--        6 index_expires_ms  Unix time after which no currently active session is readable
-- Returns {`repaired`, two for each repair: the repair, its key}
-- O(OTHERS_MAX), plus log n in the size of the indexes.
local session, messages, message_ids, business = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local pointer, history = KEYS[5], KEYS[6]
local partition, id, business_id, user_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now_ms, index_expires_ms = ARGV[5] + 0, ARGV[6] + 0
local NO_KEY, NO_EXPIRY = -2, -1
-- Maximum number of the user's sessions that are searched for another active one.
local OTHERS_MAX = 1000

local function int(ms)
  return string.format('%d', ms)
end

local function number(text)
  return text and tonumber(text)
end

local function expiry(key)
  return key and redis.call('PEXPIRETIME', key) or NO_KEY
end

local stored_business, stored_user, status, created_at, history_at, expires_at, ended_at = unpack(
  redis.call('HMGET', session, 'businessId', 'userId', 'status', 'createdAt', 'historyAt', 'expiresAt', 'endedAt'))
local history_ms, expires, ended = number(history_at or created_at), number(expires_at), number(ended_at)
local session_until, messages_until, message_ids_until = expiry(session), expiry(messages), expiry(message_ids)
local pointer_until, history_until, business_until = expiry(pointer), expiry(history), expiry(business)
local pointed_id = pointer and redis.call('GET', pointer)
local in_history = history and redis.call('ZSCORE', history, id)
local in_business = redis.call('ZSCORE', business, id)

local exists = session_until ~= NO_KEY
local of_business = stored_business == business_id
local of_user = of_business and stored_user == user_id
local of_another = (stored_business and not of_business) or (pointer and stored_user and stored_user ~= user_id)
local has_ended = status == 'ended' or status == 'expired'
local is_marked_active = of_user and status == 'active'

local function another_is_active()
  local others = redis.call('ZRANGE', history, 0, OTHERS_MAX - 1, 'REV')
  if redis.call('ZCARD', history) > #others then return true end
  if pointed_id then table.insert(others, pointed_id) end
  for _, other_id in ipairs(others) do
    local other_business, other_user, other_status = unpack(
      redis.call('HMGET', partition .. 's:' .. other_id, 'businessId', 'userId', 'status'))
    local is_of_user = other_business == business_id and other_user == user_id
    if other_id ~= id and is_of_user and other_status == 'active' then return true end
  end
  return false
end

-- A session expires at the end of its retention, together with its messages and pointer.
local keys_expire_ms = session_until
if keys_expire_ms == NO_EXPIRY then keys_expire_ms = of_user and expires and (ended or expires) + RETENTION_MS end
if keys_expire_ms == NO_KEY then keys_expire_ms = nil end
local puts_pointer = pointer and is_marked_active and keys_expire_ms and pointed_id ~= id and not another_is_active()
local puts_history = history and of_user and history_ms and keys_expire_ms and not in_history
local puts_business = is_marked_active and keys_expire_ms and expires and now_ms < expires and not in_business

-- From here on only writes.
local reply = {'repaired'}
local function done(what, key)
  table.insert(reply, what)
  table.insert(reply, key)
end
local function expire(key, current, at)
  if current == NO_EXPIRY and at and redis.call('PEXPIREAT', key, int(at)) == 1 then done('expiry set', key) end
end

expire(session, session_until, keys_expire_ms)
expire(messages, messages_until, keys_expire_ms)
expire(message_ids, message_ids_until, keys_expire_ms)

if puts_pointer then
  redis.call('SET', pointer, id, 'PXAT', int(keys_expire_ms))
  done('pointer restored', pointer)
elseif pointed_id == id and (not exists or of_another or has_ended) then
  redis.call('DEL', pointer)
  done('pointer removed', pointer)
elseif pointed_id == id then
  expire(pointer, pointer_until, keys_expire_ms)
end

if puts_history then
  redis.call('ZADD', history, int(history_ms), id)
  if history_until ~= NO_EXPIRY and history_until < keys_expire_ms then
    redis.call('PEXPIREAT', history, int(keys_expire_ms))
  end
  done('history entry restored', history)
elseif in_history and not exists then
  redis.call('ZREM', history, id)
  done('history entry removed', history)
end
if history then expire(history, history_until, math.max(index_expires_ms, keys_expire_ms or 0)) end

if puts_business then
  redis.call('ZADD', business, int(expires), id)
  if business_until ~= NO_EXPIRY and business_until < keys_expire_ms then
    redis.call('PEXPIREAT', business, int(keys_expire_ms))
  end
  done('business entry restored', business)
elseif in_business and (not exists or (of_business and has_ended)) then
  redis.call('ZREM', business, id)
  done('business entry removed', business)
end
expire(business, business_until, math.max(index_expires_ms, keys_expire_ms or 0))
return reply
