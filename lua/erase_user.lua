#!lua flags=allow-oom
-- erase_user: remove the newest sessions of a user with their messages, up to a bound; the caller repeats until none remain.
--
-- Why it is atomic: each session goes with its pointer and index entries in one step, so a reader in between two runs sees
-- whole sessions only. The newest go first: as a rule the active one, unless a client resumed a very old one.
-- Safe to run twice: a session that is gone is not counted again. `allow-oom`, because a full Redis must be able to shrink.
--
-- KEYS   1 pointer, 2 history, 3 business    of the user, the user, the business in this partition
--        derived: the sessions that the history names, their messages and message ids, under `partition`
-- ARGV   1 partition      key prefix of the partition
--        2 now_ms         Unix time
--        3 retention_ms   how long a session stays readable after its end
--        4 batch_max      sessions to remove at the most
-- Returns {`erased`, sessions removed that were still readable, history entries that remain}
-- O(batch_max log n) in the size of the indexes; memory is given back in the background.
local pointer, history, business = KEYS[1], KEYS[2], KEYS[3]
local partition, now_ms, retention_ms, batch_max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local ids = redis.call('ZRANGE', history, 0, batch_max - 1, 'REV')
local remaining = redis.call('ZCARD', history) - #ids
local pointed_id = redis.call('GET', pointer)
local readable, points_here = 0, false
for _, id in ipairs(ids) do
  local document = redis.call('HMGET', partition .. 's:' .. id, 'expiresAt', 'endedAt')
  local over = tonumber(document[2] or document[1])
  if over and now_ms < over + retention_ms then readable = readable + 1 end
  points_here = points_here or id == pointed_id
end

-- From here on only writes.
for _, id in ipairs(ids) do
  redis.call('UNLINK', partition .. 's:' .. id, partition .. 'm:' .. id, partition .. 'd:' .. id)
end
if #ids > 0 then
  redis.call('ZREM', history, unpack(ids))
  redis.call('ZREM', business, unpack(ids))
end
if points_here then redis.call('DEL', pointer) end
return {'erased', tostring(readable), tostring(remaining)}
