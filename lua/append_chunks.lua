#!lua
-- append_chunks: append chunks to the open turn, and renew its lease.
--
-- Why it is atomic: one step compares the turn's number and its number of chunks with the caller's. So a writer whose
-- turn was closed or taken over writes nothing, and chunks have no gaps.
-- Safe to run twice: the caller numbers the chunks. Stored chunks are compared and skipped.
--
-- KEYS   1 session    the session's hash
--        2 turn, 3 chunks    the session's latest turn (hash) and its chunks (list)
-- ARGV   1 id                the session's id
--        2 scope             whose sessions the caller may use: `` for all, or lines of `business` or
--                            `business<tab>user`, each between two line feeds
--        3 now_ms            Unix time
--        4 turn_id           the turn's id as JSON writes it, without quotes
--        5 number            the number of the turn, which its begin returned
--        6 from              the number of the first chunk, from 0
--        7 ... chunk (each as JSON writes it, without quotes)
-- Returns {`appended`, nextChunk, leaseUntil, 1 if the writer should stop or ``, status, lastActivityAt, expiresAt,
--          activeUntil}      the last four of the session
--         {`chunk_gap`, nextChunk} {`chunk_conflict`} {`too_large`}
--         {`taken`}          the turn has another number
--         {`not_open`}       another turn is open, or none
--         {`damaged`}        the turn lacks chunks that it should have
--         {`missing`}
-- O(chunks in the call).
local session, turn, chunks = KEYS[1], KEYS[2], KEYS[3]
local id, scope, now_ms = ARGV[1], ARGV[2], ARGV[3] + 0
local turn_id, number, from = ARGV[4], ARGV[5], ARGV[6]
local FIRST, WIDTH = 7, 1

local session_id, status, expires_at, ended_at, last_activity_at, active_until, turn_number, open_id = unpack(
  redis.call('HMGET', session, 'sessionId', 'status', 'expiresAt', 'endedAt', 'lastActivityAt', 'activeUntil',
    'turnNumber', 'turnId'))
if session_id ~= id then return {'missing'} end
if not is_in_scope(session, scope) then return {'missing'} end
if now_ms >= (ended_at or expires_at) + RETENTION_MS then return {'missing'} end
if open_id ~= turn_id then return {'not_open'} end
if turn_number ~= number then return {'taken'} end

local next_chunk, chunk_bytes, cancel_until = unpack(
  redis.call('HMGET', turn, 'nextChunk', 'chunkBytes', 'cancelUntil'))
if not next_chunk then return {'not_open'} end
local first, count = from + 0, #ARGV - FIRST + 1
local stored = next_chunk + 0
if count > 0 and first > stored then return {'chunk_gap', next_chunk} end
local known = math.min(count, math.max(stored - first, 0))
if known > 0 then
  local old_chunks = redis.call('LRANGE', chunks, first, first + known - 1)
  if #old_chunks < known then return {'damaged'} end
  for index, chunk in ipairs(old_chunks) do
    if chunk ~= ARGV[FIRST + index - 1] then return {'chunk_conflict'} end
  end
end
local bytes = chunk_bytes + 0
for i = FIRST + known, #ARGV, WIDTH do bytes = bytes + #ARGV[i] end
local has_new = known < count
if has_new then stored = first + count end
if has_new and (stored > TURN_CHUNKS_MAX or bytes > TURN_BYTES_MAX) then return {'too_large'} end
local stored_text = has_new and int(stored) or next_chunk
local lease_until = int(math.min(now_ms + TURN_LEASE_MS, cancel_until and cancel_until + 0 or now_ms + TURN_LEASE_MS))

-- From here on only writes.
if has_new then
  local length = redis.call('RPUSH', chunks, unpack(ARGV, FIRST + known))
  if length == count - known then redis.call('PEXPIREAT', chunks, int(active_until + RETENTION_MS)) end
  redis.call('HSET', turn, 'nextChunk', stored_text, 'chunkBytes', int(bytes), 'leaseUntil', lease_until)
else
  redis.call('HSET', turn, 'leaseUntil', lease_until)
end
redis.call('HSET', session, 'turnUntil', lease_until)
if has_new then notify_session(session, ARGV[3]) end
return {'appended', stored_text, lease_until, cancel_until and '1' or '', status, last_activity_at, expires_at,
  active_until}
