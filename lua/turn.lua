-- turn: code that the scripts that close a turn share. The service sends common.lua, append.lua and this in front of
-- them.
--
-- A turn is open while the session's hash names it in `turnId`.
local TURNS_KEPT = 8

local function by_name(fields)
  local values = {}
  for i = 1, #fields, 2 do values[fields[i]] = fields[i + 1] end
  return values
end

-- The latest turn. If it is not the turn that the session names as open, because its hash was lost, no turn is open.
local function latest_turn(key, document)
  local latest = by_name(redis.call('HGETALL', key))
  if latest.turnId ~= document.turnId then document.turnId = nil end
  return latest
end

-- Appends all fields to the list: name, value, name, value.
local function append_fields(list, fields)
  for field, value in pairs(fields) do
    table.insert(list, field)
    table.insert(list, value)
  end
  return list
end

local function is_lost(document, now_ms)
  return document.turnId and now_ms >= document.turnUntil + LOST_AFTER_MS
end

-- The status with which other callers close the open turn: `lost` if its lease has expired, otherwise `how`.
local function lost_or(how, document, now_ms)
  if not is_lost(document, now_ms) then return how end
  local lease_until = document.turnUntil + 0
  return {status = 'lost', at_ms = lease_until, created_ms = lease_until}
end

-- The end of a lease that is renewed until `until_ms`. A request to stop limits it.
local function lease_end(turn, until_ms)
  return int(math.min(until_ms, (turn.cancelUntil or until_ms) + 0))
end

-- What is kept of closed turns when another one begins: a line for each, the newest last.
local function earlier_with(turn)
  local earlier = turn.earlier or '\n'
  if not turn.turnId then return earlier end
  local status = turn.status == 'open' and 'interrupted' or turn.status
  earlier = earlier .. table.concat({turn.turnId, turn.number, turn.writer, turn.role, status, turn.endedAs or '',
    turn.nextChunk, turn.afterSeq, turn.leaseUntil, turn.startedAt, turn.endedAt or '', turn.messageSeq or ''}, '\t')
    .. '\n'
  local _, lines = string.gsub(earlier, '\n', '')
  if lines > TURNS_KEPT then earlier = string.sub(earlier, string.find(earlier, '\n', 2, true), -1) end
  return earlier
end

-- Plans how to close the open turn. Only reads.
--   keys      session, messages, message_ids, turn, chunks
--   document  the session's fields, `latest` the turn's
--   how       status: unless the turn was asked to stop; at_ms: when it ended; created_ms: `createdAt` of its
--             message; is_activity: whether this is activity of the session; discards: whether to drop its text; and,
--             from its writer: endedAs, content, metadata, error
local function plan_close(keys, document, latest, how)
  local status = latest.cancelUntil and 'cancelled' or how.status
  local content = how.content
  if not content and not how.discards then
    local chunks = redis.call('LRANGE', keys.chunks, 0, -1)
    if #chunks > 0 or status == 'completed' then content = '"' .. table.concat(chunks) .. '"' end
  end
  local plan = {
    keys = keys, turn_id = latest.turnId, chunks_until = how.discards and 0 or how.at_ms + TURN_LEASE_MS,
    turn = {'status', status, 'endedAt', int(how.at_ms), 'metadata', how.metadata or latest.metadata},
    session = {}, trimmed = {},
  }
  local function change(list, field, value)
    table.insert(list, field)
    table.insert(list, value)
  end
  if how.endedAs then change(plan.turn, 'endedAs', how.endedAs) end
  if how.error then change(plan.turn, 'error', how.error) end
  if not content then return plan end

  local old_count = document.messageCount + 0
  local count = old_count + 1
  plan.seq = int(count)
  plan.message = '{"seq":' .. plan.seq .. ',"createdAt":"' .. rfc3339(how.created_ms) .. '","sessionId":"'
    .. document.sessionId .. '","messageId":"' .. latest.turnId .. '","role":"' .. latest.role .. '","content":'
    .. content .. ',"metadata":' .. (how.metadata or latest.metadata) .. ',"finishReason":"' .. status .. '"}'
  local bytes = (document.messageBytes or 0) + #plan.message
  local first_oldest = (document.oldestSeq or 1) + 0
  local oldest = first_oldest
  for index = 0, TRIM_MAX - 1 do
    if count - oldest < MESSAGES_KEPT and bytes <= SESSION_BYTES_MAX then break end
    local message = redis.call('LINDEX', keys.messages, index)
    if not message then break end
    oldest, bytes = oldest + 1, bytes - #message
    table.insert(plan.trimmed, message_id_of(message))
  end
  -- New keys expire with their session.
  plan.keys_until = old_count == 0 and redis.call('PEXPIRETIME', keys.session) or 0
  change(plan.turn, 'messageSeq', plan.seq)
  change(plan.session, 'messageCount', plan.seq)
  change(plan.session, 'messageBytes', int(bytes))
  if how.is_activity then change(plan.session, 'lastActivityAt', int(how.created_ms)) end
  if #plan.message > (document.largestMessage or 0) + 0 then
    change(plan.session, 'largestMessage', int(#plan.message))
  end
  if oldest > first_oldest then change(plan.session, 'oldestSeq', int(oldest)) end
  return plan
end

-- Closes the turn as planned, and brings `document` and `latest` up to date.
local function write_close(plan, document, latest)
  local keys = plan.keys
  if plan.message then
    redis.call('RPUSH', keys.messages, plan.message)
    redis.call('HSET', keys.message_ids, plan.turn_id, plan.seq)
    if #plan.trimmed > 0 then
      redis.call('LTRIM', keys.messages, #plan.trimmed, -1)
      redis.call('HDEL', keys.message_ids, unpack(plan.trimmed))
    end
    if plan.keys_until > 0 then
      redis.call('PEXPIREAT', keys.messages, int(plan.keys_until))
      redis.call('PEXPIREAT', keys.message_ids, int(plan.keys_until))
    end
    redis.call('HSET', keys.session, unpack(plan.session))
  end
  redis.call('HDEL', keys.session, 'turnId', 'turnUntil')
  redis.call('HSET', keys.turn, unpack(plan.turn))
  redis.call('PEXPIREAT', keys.chunks, int(plan.chunks_until))
  document.turnId, document.turnUntil = nil, nil
  for i = 1, #plan.session, 2 do document[plan.session[i]] = plan.session[i + 1] end
  for i = 1, #plan.turn, 2 do latest[plan.turn[i]] = plan.turn[i + 1] end
end

-- The words that notify event streams of a closed turn. `number` is its number if another turn began after it.
local function closed_words(plan, number)
  local turn = number and 'o' .. number .. ' t' or 't'
  return plan.seq and 'm' .. plan.seq .. '-' .. plan.seq .. ' ' .. turn or turn
end
