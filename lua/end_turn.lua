#!lua
-- end_turn: close the open turn, with the message that it becomes.
--
-- Why it is atomic: one step compares the turn's number, appends its message and closes it. So a turn becomes at most
-- one message, even if several callers close it, and readers never see the closed turn without its message.
-- Safe to run twice: the second run finds the turn closed.
--
-- KEYS   1 session, 2 messages, 3 message_ids    the session's hash, list, and hash of messageId -> seq
--        4 turn, 5 chunks    the session's latest turn (hash) and its chunks (list)
-- ARGV   1 id             the session's id
--        2 now_ms         Unix time
--        3 turn_id        the turn's id as JSON writes it, without quotes
--        4 number         the number of the turn, which its begin returned
--        5 status         `completed` or `failed`; or `lost`, which closes only a turn whose lease has expired
--        6 content        the JSON of the message's content, or `` for all chunks joined
--        7 metadata       the JSON of the message's metadata, or `` for the turn's own
--        8 error          why it failed, JSON, or ``
-- Returns {`closed`, fields}   all fields of the turn's hash: name, value, name, value, in no fixed order
--         {`taken`}            the turn has another number
--         {`not_open`}         another turn is open, or none; or its lease has not expired. If the session names a turn
--                              that does not exist (damage), the script removes the name
--         {`missing`}
-- O(chunks of the turn + TRIM_MAX).
local session, messages, message_ids, turn, chunks = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, now_ms = ARGV[1], ARGV[2] + 0
local turn_id, number, status = ARGV[3], ARGV[4], ARGV[5]
local content, metadata, error = ARGV[6], ARGV[7], ARGV[8]

local document = by_name(redis.call('HGETALL', session))
if document.sessionId ~= id then return {'missing'} end
if now_ms >= (document.endedAt or document.expiresAt) + RETENTION_MS then return {'missing'} end
if document.turnId ~= turn_id then return {'not_open'} end
if document.turnNumber ~= number then return {'taken'} end
if status == 'lost' and not is_lost(document, now_ms) then return {'not_open'} end
local how = {
  status = status, at_ms = now_ms, created_ms = math.max(now_ms, document.lastActivityAt + 0), endedAs = status,
  is_activity = document.status == 'active' and now_ms < document.expiresAt + 0,
  content = content ~= '' and content, metadata = metadata ~= '' and metadata, error = error ~= '' and error,
}
if status == 'lost' then how = lost_or(how, document, now_ms) end
local latest = latest_turn(turn, document)
local keys = {session = session, messages = messages, message_ids = message_ids, turn = turn, chunks = chunks}
local plan = document.turnId and plan_close(keys, document, latest, how)

-- From here on only writes.
if not plan then
  redis.call('HDEL', session, 'turnId', 'turnUntil')
  notify_session(session, ARGV[2])
  return {'not_open'}
end
write_close(plan, document, latest)
notify(session, document.businessId, ARGV[2], closed_words(plan))
return append_fields({'closed'}, latest)
