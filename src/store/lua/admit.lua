-- Adds a caller to the audience of an entry whose bytes the upstream has just served to it, and notes
-- when.
-- KEYS: main, meta, fence, purge token
-- ARGV: sha1 of the body seen, expiry_ms seen, generation, caller, served_ms
-- Reply: 1 admitted, 0 refused (invalidated, replaced or written to since it was seen)
-- The value itself is compared, not only the generation: a third party's DEL leaves meta behind.
local body = redis.call('GET', KEYS[1])
if not body or redis.sha1hex(body) ~= ARGV[1] then return 0 end
if string.format('%.0f', redis.call('PEXPIRETIME', KEYS[1])) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local meta = redis.call('GET', KEYS[2])
-- Inside a JSON string every quote is escaped, so these patterns match nowhere else.
if not meta or not string.find(meta, '"generation":"' .. ARGV[3] .. '"', 1, true) then return 0 end
-- The epoch of an entry ends with the purge token under which it was leased.
local purge = redis.pcall('GET', KEYS[4])
if type(purge) ~= 'string' or string.match(meta, '"epoch":"[^"]* (%w+)"') ~= purge then return 0 end
local _, at = string.find(meta, '"audience":[', 1, true)
if not at then return 0 end
-- A caller that is there already is renewed in its place, so that the audience does not grow. Callers
-- are hexadecimal, so no character is magic in a pattern. Those of older sidecars have no time.
local pair = '"' .. ARGV[4] .. '@' .. ARGV[5] .. '"'
local from, to = string.find(meta, '"' .. ARGV[4] .. '@?%d*"', at + 1)
if from then
  meta = string.sub(meta, 1, from - 1) .. pair .. string.sub(meta, to + 1)
else
  -- The credential is the first half of a caller. It holds at most this many pairs, so that it cannot
  -- fill the audience of others: a further pair replaces its oldest one. A store from before this limit
  -- may hold more.
  local most = 8
  local own = '"' .. string.sub(ARGV[4], 1, 32) .. '%x*@?(%d*)",?'
  repeat
    local held, oldest, first, last = 0, nil, nil, nil
    local start, stop, time = string.find(meta, own, at + 1)
    while start do
      held = held + 1
      time = tonumber(time) or 0
      -- Newer pairs come first, so the last of several with the same time is the oldest.
      if not oldest or time <= oldest then oldest, first, last = time, start, stop end
      start, stop, time = string.find(meta, own, stop + 1)
    end
    if held >= most then meta = string.sub(meta, 1, first - 1) .. string.sub(meta, last + 1) end
  until held <= most
  -- The pair that was taken out may have been the last one of the list.
  local list = string.gsub(pair .. ',' .. string.sub(meta, at + 1), '",]', '"]', 1)
  meta = string.sub(meta, 1, at) .. list
end
redis.call('SET', KEYS[2], meta, 'PXAT', ARGV[2])
return 1
