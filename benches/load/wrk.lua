-- Sends the requests of a file in turn. Each line has method, path and body. Nine `#` become a new number each time,
-- below NUMBERS.
-- wrk -s wrk.lua URL -- FILE FIRST_NUMBER NUMBERS
local requests, turn, number, numbers = {}, 0, 0, 0
local NUMBER = string.rep('#', 9)

function init(args)
  number, numbers = tonumber(args[2]), tonumber(args[3])
  for line in io.lines(args[1]) do
    local method, path, body = line:match('^(%S+) (%S+) ?(.*)$')
    local headers = nil
    if body == '' then body = nil else headers = { ['Content-Type'] = 'application/json' } end
    local request = wrk.format(method, path, headers, body)
    table.insert(requests, { text = request, numbered = request:find(NUMBER, 1, true) ~= nil })
  end
end

function request()
  turn = turn % #requests + 1
  local request = requests[turn]
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
