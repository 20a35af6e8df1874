-- Replaces an entry that its reader could not use with a newer body.
-- KEYS: main, meta, fence, purge token
-- ARGV: sha1 of the body seen, expiry_ms seen, generation, body, meta without its closing brace,
--       expiry_ms, which counts from the start of the upstream's read
-- Reply: 1 replaced, 0 refused (invalidated, replaced or written to since it was seen)
local seen = redis.call('GET', KEYS[1])
if not seen or redis.sha1hex(seen) ~= ARGV[1] then return 0 end
if string.format('%.0f', redis.call('PEXPIRETIME', KEYS[1])) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local meta = redis.call('GET', KEYS[2])
if not meta or not string.find(meta, '"generation":"' .. ARGV[3] .. '"', 1, true) then return 0 end
-- The epoch of an entry ends with the purge token under which it was leased.
local purge = redis.pcall('GET', KEYS[4])
if type(purge) ~= 'string' or string.match(meta, '"epoch":"[^"]* (%w+)"') ~= purge then return 0 end
local now = redis.call('TIME')
if tonumber(ARGV[6]) <= now[1] * 1000 + math.floor(now[2] / 1000) then return 0 end
redis.call('SET', KEYS[1], ARGV[4], 'PXAT', ARGV[6])
redis.call('SET', KEYS[2], ARGV[5] .. ',"expires_at_ms":' .. ARGV[6] .. '}', 'PXAT', ARGV[6])
return 1
