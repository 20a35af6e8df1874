-- Hands a lease back when there is nothing to store.
-- KEYS: main, lease   ARGV: token
-- Reply: 1 released, 0 the lease was no longer ours
-- The purge token follows the token of the lease.
if string.match(redis.call('GET', KEYS[2]) or '', '^%S+') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if redis.call('STRLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1]) end
return 1
