-- common: code that the scripts that change sessions share. The service sends it in front of them.

local function int(number)
  return string.format('%d', number)
end

-- Notifies the event streams of a session that it has changed. Their channel is the session's key. A script calls this
-- last. An error is ignored, because the streams also read at intervals.
local function notify_session(session, now_ms)
  redis.pcall('SPUBLISH', session, now_ms)
end

-- Notifies the event streams of the business. Their channel in this partition ends with the id of the business.
-- `changes` are words: `s` the session has changed, `t` its turn has changed, `o3` the turn with this number was closed
-- before that turn began, `m5-6` these messages are new, `c7` this message has changed, `d` the session was deleted.
local function notify_business(session, business_id, now_ms, changes)
  local id = string.sub(session, -36)
  redis.pcall('SPUBLISH', string.sub(session, 1, -39) .. 'b:' .. business_id, now_ms .. ' ' .. id .. ' ' .. changes)
end

local function notify(session, business_id, now_ms, changes)
  notify_session(session, now_ms)
  notify_business(session, business_id, now_ms, changes)
end

-- The new value of the field `changedMessages` after a change of a message: the number of changes, and the seqs of the
-- last ones.
local function changed_with(changed, seq)
  local count, seqs = string.match(changed or '0', '^(%d+)(.*)$')
  local kept = string.match(seqs .. ' ' .. seq, ' %d+ %d+ %d+ %d+ %d+ %d+ %d+ %d+$')
  return int(count + 1) .. (kept or seqs .. ' ' .. seq)
end
