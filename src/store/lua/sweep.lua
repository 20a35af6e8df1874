-- Deletes what a purge of all has voided: an entry or a placeholder of an older purge token, and values
-- of other programs. It is deleted only to free its memory: no reader uses it.
-- KEYS: main, meta, lease, purge token
-- Reply: 1 deleted, 0 kept
local purge = redis.pcall('GET', KEYS[4]) or ''
local meta = redis.pcall('GET', KEYS[2])
local of
if type(meta) == 'string' then
  of = string.match(meta, '"epoch":"[^"]* (%w+)"')
else
  local lease = redis.pcall('GET', KEYS[3])
  of = type(lease) == 'string' and string.match(lease, ' (%S+)$')
end
if of == purge then return 0 end
return redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) > 0 and 1 or 0
