-- Sends the requests of a file in turn. Each line has method, path and body. Nine `#` become a new number each time,
-- below NUMBERS. Nine `@` become a number that grows by COUNTED with each time through the file, from 0.
-- wrk -s wrk.lua URL -- FILE FIRST_NUMBER NUMBERS
-- wrk asks for the first request once more, to look at it.
local requests, sent, number, numbers = {}, -1, 0, 0
local NUMBER, COUNT = string.rep('#', 9), string.rep('@', 9)
local COUNTED = 5

function init(args)
  number, numbers = tonumber(args[2]), tonumber(args[3])
  for line in io.lines(args[1]) do
    local method, path, body = line:match('^(%S+) (%S+) ?(.*)$')
    local headers = nil
    if body == '' then body = nil else headers = { ['Content-Type'] = 'application/json' } end
    local request = wrk.format(method, path, headers, body)
    local has = function(text) return request:find(text, 1, true) ~= nil end
    table.insert(requests, { text = request, numbered = has(NUMBER), counted = has(COUNT) })
  end
end

function request()
  local turn = math.max(sent, 0)
  local times, request = math.floor(turn / #requests), requests[turn % #requests + 1]
  sent = sent + 1
  -- Padded, so that the body has the length that its head says.
  if request.counted then return (request.text:gsub(COUNT, string.format('%9d', COUNTED * times))) end
  if not request.numbered then return request.text end
  number = (number + 1) % numbers
  return (request.text:gsub(NUMBER, string.format('%09d', number)))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%f,"errors":%d,"broken":%d,"p50":%f,"p99":%f,"p99.9":%f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency:percentile(99.9) / 1000))
end
