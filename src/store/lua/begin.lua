-- Before a write is forwarded: deletes the entries of jobs, voids their leases, fences their keys.
-- KEYS: main, meta, lease, fence; of each job   ARGV: write id, fence_ms
-- The fence is a set of writes in flight, each with its deadline by this server's clock, so that it
-- outlives a sidecar that dies. DEL comes first: under `noeviction` at the limit it still succeeds.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for at = 1, #KEYS, 4 do
  local fence = KEYS[at + 3]
  redis.call('DEL', KEYS[at], KEYS[at + 1], KEYS[at + 2])
  -- A value of another type was written by a third party, and is no fence.
  local kind = redis.call('TYPE', fence).ok
  if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', fence) end
  redis.call('ZREMRANGEBYSCORE', fence, '-inf', now)
  redis.call('ZADD', fence, now + tonumber(ARGV[2]), ARGV[1])
  -- The key lives exactly as long as the last of its writes.
  redis.call('PEXPIREAT', fence, redis.call('ZRANGE', fence, -1, -1, 'WITHSCORES')[2])
end
return 1
