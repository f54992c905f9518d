-- append: code that the scripts that append messages and chunks share. The service sends common.lua and this in front
-- of them.
--
-- A turn may be closed as lost from LOST_AFTER_MS after `turnUntil`, the end of its lease.
local LOST_AFTER_MS = 1000
-- Maximum number of messages beyond the limits that one call removes.
local TRIM_MAX = 200

-- Whether the caller may use the session. `scope` is empty for all sessions, or has lines of `business` or
-- `business<tab>user`, each between two line feeds.
local function is_in_scope(session, scope)
  if scope == '' then return true end
  local business_id, user_id = unpack(redis.call('HMGET', session, 'businessId', 'userId'))
  return string.find(scope, '\n' .. business_id .. '\n', 1, true)
    or string.find(scope, '\n' .. business_id .. '\t' .. user_id .. '\n', 1, true)
end

-- Unix milliseconds as RFC 3339, from days since 0000-03-01 in eras of 400 years.
local function rfc3339(ms)
  local floor = math.floor
  local days, day_ms = floor(ms / 86400000) + 719468, ms % 86400000
  local era = floor(days / 146097)
  local era_day = days - era * 146097
  local era_year = floor((era_day - floor(era_day / 1460) + floor(era_day / 36524) - floor(era_day / 146096)) / 365)
  local year_day = era_day - (365 * era_year + floor(era_year / 4) - floor(era_year / 100))
  local shifted_month = floor((5 * year_day + 2) / 153)
  local day = year_day - floor((153 * shifted_month + 2) / 5) + 1
  local month = shifted_month < 10 and shifted_month + 3 or shifted_month - 9
  local year = era * 400 + era_year + (month <= 2 and 1 or 0)
  local seconds = floor(day_ms / 1000)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, day, floor(seconds / 3600),
    floor(seconds / 60) % 60, seconds % 60, day_ms % 1000)
end

-- The id in a stored message, as JSON writes it.
local function message_id_of(message)
  local _, before = string.find(message, ',"messageId":"', 1, true)
  return string.sub(message, before + 1, string.find(message, '","role":"', before, true) - 1)
end
