#!lua
-- begin_turn: begin a turn, which is a message that one writer writes piece by piece, or take over the open one.
--
-- Why it is atomic: one step looks for an open turn and begins this one. So a session has at most one open turn, and
-- only one of many concurrent callers writes it. If this call closes an open turn, it appends that turn's message in
-- the same step.
-- Safe to run twice: the caller names the turn and its writer. The second run finds both and only renews the lease.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, list, and hash of messageId -> seq
--        4 turn, 5 chunks    the session's latest turn (hash) and its chunks (list)
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 turn_id        the turn's id as JSON writes it, without quotes
--        4 writer         its writer as JSON writes it, without quotes
--        5 role           the role of the message that it becomes
--        6 metadata       the metadata of that message, JSON
--        7 if_open        what to do with an open turn: `reject`, `interrupt`, `discard` or `takeover`
-- Returns {`began`, closed, fields}    this turn is new
--         {`known`, closed, fields}    it is open: this writer began it before, or has it now
--         {`closed`, closed}           it is closed, or a message has its id
--         {`turn_open`, turnId, leaseUntil}    of the open turn
--         {`not_active`} {`missing`}
-- where closed is the status of the turn that this call closed, or ``, and fields are all fields of the turn's hash:
-- name, value, name, value, in no fixed order.
-- O(chunks of the turn that it closes + TRIM_MAX).
local session, messages, message_ids, turn, chunks = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, now_ms = ARGV[1], ARGV[2] + 0
local turn_id, writer, role, metadata, if_open = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local document = by_name(redis.call('HGETALL', session))
if document.sessionId ~= id then return {'missing'} end
if now_ms >= (document.endedAt or document.expiresAt) + RETENTION_MS then return {'missing'} end
local latest = latest_turn(turn, document)
local is_this = document.turnId == turn_id
local is_own = is_this and latest.writer == writer
local is_closed = not is_this and (latest.turnId == turn_id
  or string.find(latest.earlier or '', '\n' .. turn_id .. '\t', 1, true)
  or redis.call('HGET', message_ids, turn_id))
if is_closed then return {'closed', ''} end
local is_active = document.status == 'active' and now_ms < document.expiresAt + 0
if not is_own and not is_active then return {'not_active'} end

local lost = not is_own and is_lost(document, now_ms)
local takes_over = is_this and not lost and (is_own or if_open == 'takeover' or if_open == 'discard')
local plan
if document.turnId and not takes_over then
  if not lost and (is_this or (if_open ~= 'interrupt' and if_open ~= 'discard')) then
    return {'turn_open', document.turnId, document.turnUntil}
  end
  local how = lost_or({
    status = 'interrupted', at_ms = now_ms, created_ms = math.max(now_ms, document.lastActivityAt + 0),
    is_activity = true, discards = if_open == 'discard',
  }, document, now_ms)
  plan = plan_close({session = session, messages = messages, message_ids = message_ids, turn = turn, chunks = chunks},
    document, latest, how)
end

-- From here on only writes.
local closed, words = '', 't'
if plan then
  write_close(plan, document, latest)
  closed, words = latest.status, closed_words(plan, latest.number)
end
-- This turn itself was lost.
if plan and is_this then
  notify(session, document.businessId, ARGV[2], closed_words(plan))
  return {'closed', closed}
end
local continues = takes_over and (is_own or if_open == 'takeover')
if not continues then
  local earlier = takes_over and latest.earlier or earlier_with(latest)
  latest = {
    turnId = turn_id, role = role, metadata = metadata, status = 'open', nextChunk = '0', chunkBytes = '0',
    afterSeq = document.messageCount, startedAt = int(now_ms), earlier = earlier,
    -- The request to stop remains for the same turn.
    cancelUntil = takes_over and latest.cancelUntil or nil,
  }
  redis.call('DEL', turn, chunks)
end
if not is_own then document.turnNumber = int((document.turnNumber or 0) + 1) end
latest.number, latest.writer = document.turnNumber, writer
if not continues then latest.since = latest.number end
latest.leaseUntil = lease_end(latest, now_ms + TURN_LEASE_MS)
redis.call('HSET', turn, unpack(append_fields({}, latest)))
redis.call('PEXPIREAT', turn, int(document.activeUntil + RETENTION_MS))
redis.call('HSET', session, 'turnNumber', latest.number, 'turnId', turn_id, 'turnUntil', latest.leaseUntil)
notify(session, document.businessId, ARGV[2], words)
return append_fields({takes_over and 'known' or 'began', closed}, latest)
