-- Before a write is answered; also the purge: deletes the entry, voids the lease, lifts the fence.
-- KEYS: main, meta, lease, fence   ARGV: write id, linger_ms
-- With a linger the fence stays that long: the outcome is unknown, or the upstream's reads lag.
-- Reply: 1 if there was an entry, else 0; size of main in bytes; 1 if a fill was in flight, else 0;
-- and of the entry, '' if meta has no such field: generation, stored_at_ms, age_ms
local body = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('STRLEN', KEYS[1]) or 1
-- A value of another type was written by a third party. It is no meta, and must not stop the rest.
local meta = redis.pcall('GET', KEYS[2])
if type(meta) ~= 'string' then meta = '' end
local filling = redis.call('EXISTS', KEYS[3])
-- A placeholder has neither a body nor meta.
local there = redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) > 0 and (body > 0 or meta ~= '')
-- A value of another type was written by a third party, and is no fence.
local kind = redis.call('TYPE', KEYS[4]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', KEYS[4]) end
local linger = tonumber(ARGV[2])
if linger > 0 then
  local t = redis.call('TIME')
  redis.call('ZADD', KEYS[4], t[1] * 1000 + math.floor(t[2] / 1000) + linger, ARGV[1])
else
  redis.call('ZREM', KEYS[4], ARGV[1])
end
-- The key lives exactly as long as the last of its writes: a linger shortens what begin has set.
local last = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2]
if last then redis.call('PEXPIREAT', KEYS[4], last) end
-- Inside a JSON string every quote is escaped, so these patterns match nowhere else. A generation that
-- is not a token of ours might not be text, and is left out.
local generation = string.match(meta, '"generation":"([%w%-]+)"') or ''
local stored_at = string.match(meta, '"stored_at_ms":(%-?%d+)') or ''
local age = string.match(meta, '"age_ms":(%-?%d+)') or ''
return {there and 1 or 0, body, filling, generation, stored_at, age}
