#!lua flags=allow-oom
-- erase_user: remove at most BATCH_MAX sessions of a user with their messages; the caller repeats it until none remain.
--
-- Why it is atomic: one step removes sessions with their pointer and index entries, so a reader between two runs sees
-- only complete sessions. The active session is removed first, then the newest ones, so no caller gets a session that
-- is about to be erased.
-- Safe to run twice: a removed session is not counted again. The flag `allow-oom` lets a full Redis delete.
--
-- KEYS   1 pointer, 2 history, 3 business    of the user, the user, the business in this partition
--        derived: the sessions that pointer and history name, their messages, message ids and turns, under `partition`;
--        only in a slot that is not moving, see lua/README.md
-- ARGV   1 partition      key prefix of the partition
--        2 now_ms         Unix time
--        3 business_id, 4 user_id
-- Returns {`erased`, sessions removed that were still readable, history entries that remain}
-- O(BATCH_MAX log n) in the size of the indexes; Redis frees the memory in the background.
local pointer, history, business = KEYS[1], KEYS[2], KEYS[3]
local partition, now_ms, business_id, user_id = ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4]
-- Maximum number of sessions that one call removes.
local BATCH_MAX = 100

-- In a moving slot, an existing session may seem missing. Then this command fails.
redis.call('EXISTS', pointer, partition .. 'none')
local pointed_id = redis.call('GET', pointer)
local ids = {pointed_id or nil}
for _, id in ipairs(redis.call('ZRANGE', history, 0, BATCH_MAX - 1, 'REV')) do
  if id ~= pointed_id then table.insert(ids, id) end
end
local entries, removed, readable, own_ids = redis.call('ZCARD', history), 0, 0, {}
for _, id in ipairs(ids) do
  local its_business_id, its_user_id, expires_at, ended_at = unpack(
    redis.call('HMGET', partition .. 's:' .. id, 'businessId', 'userId', 'expiresAt', 'endedAt'))
  -- A damaged pointer or history may name another user's session. That session remains.
  if not its_business_id or (its_business_id == business_id and its_user_id == user_id) then
    table.insert(own_ids, id)
    local end_at = ended_at or expires_at
    if end_at and now_ms < end_at + RETENTION_MS then readable = readable + 1 end
  end
  if redis.call('ZSCORE', history, id) then removed = removed + 1 end
end

-- From here on only writes.
for _, id in ipairs(own_ids) do
  redis.call('UNLINK', partition .. 's:' .. id, partition .. 'm:' .. id, partition .. 'd:' .. id,
    partition .. 't:' .. id, partition .. 'r:' .. id)
end
if #ids > 0 then
  redis.call('ZREM', history, unpack(ids))
  redis.call('ZREM', business, unpack(ids))
end
redis.call('DEL', pointer)
for _, id in ipairs(own_ids) do notify(partition .. 's:' .. id, business_id, ARGV[2], 'd') end
return {'erased', tostring(readable), tostring(entries - removed)}
