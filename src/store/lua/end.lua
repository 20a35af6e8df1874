-- Before a write is answered; also the purge: deletes the entries of jobs, voids their leases, lifts their
-- fences.
-- KEYS: main, meta, lease, fence; of each job   ARGV: write id, linger_ms
-- With a linger the fence stays that long: the outcome is unknown, or the upstream's reads lag.
-- Reply, for each job that had an entry or a fill in flight: its number, from 1; 1 if there was an entry,
-- else 0; size of main in bytes; 1 if a fill was in flight, else 0; and of the entry, '' if meta has no such
-- field: generation, stored_at_ms, age_ms
local found = {}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local linger = tonumber(ARGV[2])
for at = 1, #KEYS, 4 do
  local main, fence = KEYS[at], KEYS[at + 3]
  local body = redis.call('TYPE', main).ok == 'string' and redis.call('STRLEN', main) or 1
  -- A value of another type was written by a third party. It is no meta, and must not stop the rest.
  local meta = redis.pcall('GET', KEYS[at + 1])
  if type(meta) ~= 'string' then meta = '' end
  local filling = redis.call('EXISTS', KEYS[at + 2])
  -- A placeholder has neither a body nor meta.
  local there = redis.call('DEL', main, KEYS[at + 1], KEYS[at + 2]) > 0 and (body > 0 or meta ~= '')
  -- A value of another type was written by a third party, and is no fence.
  local kind = redis.call('TYPE', fence).ok
  if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', fence) end
  if linger > 0 then
    redis.call('ZADD', fence, now + linger, ARGV[1])
  else
    redis.call('ZREM', fence, ARGV[1])
  end
  -- The key lives exactly as long as the last of its writes: a linger shortens what begin has set.
  local last = redis.call('ZRANGE', fence, -1, -1, 'WITHSCORES')[2]
  if last then redis.call('PEXPIREAT', fence, last) end
  if there or filling == 1 then
    -- Inside a JSON string every quote is escaped, so these patterns match nowhere else. A generation
    -- that is not a token of ours might not be text, and is left out.
    local generation = string.match(meta, '"generation":"([%w%-]+)"') or ''
    local stored_at = string.match(meta, '"stored_at_ms":(%-?%d+)') or ''
    local age = string.match(meta, '"age_ms":(%-?%d+)') or ''
    local number = (at + 3) / 4
    for _, field in ipairs({number, there and 1 or 0, body, filling, generation, stored_at, age}) do
      found[#found + 1] = field
    end
  end
end
return found
