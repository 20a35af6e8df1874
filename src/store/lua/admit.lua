-- Adds a caller to the audience of an entry whose bytes the upstream has just served to it, and notes
-- when.
-- KEYS: main, meta, fence
-- ARGV: sha1 of the body seen, expiry_ms seen, generation, caller, served_ms
-- Reply: 1 admitted, 0 refused (invalidated, replaced or written to since it was seen)
-- The value itself is compared, not only the generation: a third party's DEL leaves meta behind.
local body = redis.call('GET', KEYS[1])
if not body or body == '' or redis.sha1hex(body) ~= ARGV[1] then return 0 end
if string.format('%.0f', redis.call('PEXPIRETIME', KEYS[1])) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local meta = redis.call('GET', KEYS[2])
-- Inside a JSON string every quote is escaped, so these patterns match nowhere else.
if not meta or not string.find(meta, '"generation":"' .. ARGV[3] .. '"', 1, true) then return 0 end
local _, at = string.find(meta, '"audience":[', 1, true)
if not at then return 0 end
-- A caller that is there already is renewed in its place, so that the audience does not grow. Callers
-- are hexadecimal, so no character is magic in a pattern. Those of older sidecars have no time.
local pair = '"' .. ARGV[4] .. '@' .. ARGV[5] .. '"'
local from, to = string.find(meta, '"' .. ARGV[4] .. '@?%d*"', at + 1)
if from then
  meta = string.sub(meta, 1, from - 1) .. pair .. string.sub(meta, to + 1)
else
  meta = string.sub(meta, 1, at) .. pair .. ',' .. string.sub(meta, at + 1)
end
redis.call('SET', KEYS[2], meta, 'PXAT', ARGV[2])
return 1
