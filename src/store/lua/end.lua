-- Before a write is answered; also the purge: drops the entry, voids the lease, lifts the fence.
-- KEYS: main, meta, lease, fence   ARGV: write id, linger_ms
-- With a linger the fence stays that long: the outcome is unknown, or the upstream's reads lag.
-- Reply: 1 if there was an entry, 0 if not
local body = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('STRLEN', KEYS[1]) or 1
local there = redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) > 0 and body > 0
-- Whatever else somebody has put there is no fence.
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
return there and 1 or 0
