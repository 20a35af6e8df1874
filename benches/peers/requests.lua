-- The requests of wrk. The environment selects them:
--   WORK   hit, miss, pass or write
--   SIZE   first two digits of the ids, which select the size of the upstream's body
--   IDS    number of ids, requested in turn
--   RUN    distinguishes this run's ids from all earlier ones (miss)
-- At the end it prints the result as one line of JSON; times are in microseconds.
local work, size = os.getenv("WORK"), os.getenv("SIZE")
local ids, run = tonumber(os.getenv("IDS")), tonumber(os.getenv("RUN"))
local requests, i = {}, 0

local function id(number, run)
  return string.format("%s%06x-%04x-4000-8000-%012x", size, number % 0x1000000, run, number)
end

function init(args)
  for k = 0, ids - 1 do
    if work == "write" then
      wrk.headers["Content-Type"] = "application/json"
      requests[k] = wrk.format("POST", "/jobs/" .. id(k, 0) .. "/cancel", nil, '{"reason":"bench"}')
    elseif work == "pass" then
      requests[k] = wrk.format("GET", "/reports/" .. id(k, 0))
    else
      requests[k] = wrk.format("GET", "/jobs/" .. id(k, 0))
    end
  end
end

function request()
  i = i + 1
  if work == "miss" then return wrk.format("GET", "/jobs/" .. id(i, run)) end
  return requests[i % ids]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
