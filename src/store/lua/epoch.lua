-- Notes since when this server is known in its present epoch. The first sidecar that sees a new epoch
-- sets the mark, in place of that of the epoch before.
-- KEYS: mark   ARGV: epoch, 'new' if the server has just started, else 'old'
-- Reply: for how long the epoch has been known, in ms
-- A server that is older than that and has no mark has not been used by jobcache: nobody owes it anything.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- A mark of another type was written by a third party: since when the epoch is known is unknown.
local mark = redis.pcall('GET', KEYS[1]) or ''
if type(mark) ~= 'string' then mark = '?' end
local since, epoch = string.match(mark, '^(%d+) (.*)$')
if epoch == ARGV[1] then return now - tonumber(since) end
since = 0
if mark ~= '' or ARGV[2] == 'new' then since = now end
redis.call('SET', KEYS[1], string.format('%.0f', since) .. ' ' .. ARGV[1])
return now - since
