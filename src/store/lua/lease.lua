-- Grants the right to fill, unless something prevents it.
-- KEYS: main, meta, lease, fence, purge token
-- ARGV: token, lease_ms, refused_expiry_ms ('' for none), a new purge token
-- Reply: {'stored', body, meta, expiry_ms, purge token}  the key has been filled in the meantime
--        {'fenced'}                        a write is in flight, or its outcome is unknown
--        {'leased', token, purge token}    another reader is filling
--        {'granted', purge token}
-- A value that the caller has seen and refused (not ours, corrupt, of another epoch) is named by its
-- expiry and deleted: deleting the wrong value costs one read of the upstream, never a stale one.
-- An entry of a response without a job, such as a 404, has an empty main and its body in meta. A
-- placeholder has no meta.
-- A purge token that a third party wrote, of another type or with other characters, counts as missing.
local purge = redis.pcall('GET', KEYS[5])
purge = type(purge) == 'string' and string.match(purge, '^%w+$')
local body = redis.call('GET', KEYS[1])
if body and (body ~= '' or redis.call('EXISTS', KEYS[2]) == 1) then
  local expiry = redis.call('PEXPIRETIME', KEYS[1])
  if ARGV[3] == '' or string.format('%.0f', expiry) ~= ARGV[3] then
    return {'stored', body, redis.call('GET', KEYS[2]) or '', expiry, purge or ''}
  end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  body = false
end
if redis.call('EXISTS', KEYS[4]) == 1 then return {'fenced'} end
if body then
  -- A lease from before a purge of all counts as absent.
  local holder, of = string.match(redis.call('GET', KEYS[3]) or '', '^(%S+) (%S+)$')
  if holder and of == purge then return {'leased', holder, purge} end
end
-- The placeholder: a third party's DEL of an absent key would leave no trace, but a DEL of the
-- placeholder voids the lease.
-- SET comes first, so that a server at its memory limit refuses before anything has changed. A new purge
-- token voids only what the missing one had voided already.
if not purge then
  purge = ARGV[4]
  redis.call('SET', KEYS[5], purge)
end
redis.call('SET', KEYS[1], '', 'PX', ARGV[2])
redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. purge, 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
return {'granted', purge}
