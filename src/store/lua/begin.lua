-- Before a write is forwarded: deletes the entry, voids the lease, fences the key.
-- KEYS: main, meta, lease, fence   ARGV: write id, fence_ms
-- The fence is a set of writes in flight, each with its deadline by this server's clock, so that it
-- outlives a sidecar that dies. DEL comes first: under `noeviction` at the limit it still succeeds.
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
-- A value of another type was written by a third party, and is no fence.
local kind = redis.call('TYPE', KEYS[4]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', KEYS[4]) end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[2]), ARGV[1])
-- The key lives exactly as long as the last of its writes.
redis.call('PEXPIREAT', KEYS[4], redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2])
return 1
