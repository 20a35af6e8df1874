-- Fences a key of a slot that is moving to another node, where a script may name only one key.
-- KEYS: fence   ARGV: write id, fence_ms
-- It removes nothing: a key that it emptied would be on the other node at its next access.
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
redis.call('PEXPIREAT', KEYS[1], redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
return 1
