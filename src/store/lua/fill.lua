-- Stores an entry under a lease that still stands.
-- KEYS: main, meta, lease, purge token   ARGV: token, body, meta without its closing brace, ttl_ms, lease_ms
-- Reply: 1 stored, 0 revoked (purged, also by a purge of all, written to, SET by a third party, expired
-- or leased again)
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('STRLEN', KEYS[1]) ~= 0 then return 0 end
local purge = redis.pcall('GET', KEYS[4])
if type(purge) ~= 'string' or redis.call('GET', KEYS[3]) ~= ARGV[1] .. ' ' .. purge then return 0 end
-- The TTL counts from the grant: the upstream's answer is no younger than that.
local expiry = redis.call('PEXPIRETIME', KEYS[3]) - tonumber(ARGV[5]) + tonumber(ARGV[4])
local now = redis.call('TIME')
if expiry <= now[1] * 1000 + math.floor(now[2] / 1000) then
  redis.call('DEL', KEYS[1], KEYS[3])
  return 0
end
-- SET comes first, so that a server at its memory limit refuses before anything has changed.
local at = string.format('%.0f', expiry)
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', at)
redis.call('SET', KEYS[2], ARGV[3] .. ',"expires_at_ms":' .. at .. '}', 'PXAT', at)
redis.call('DEL', KEYS[3])
return 1
