#!lua flags=allow-oom
-- Renew a worker's lease, and look at everybody's.
--
-- KEYS  1 leases, 2 the worker's tombstone, 3 obituaries
-- ARGV  1 worker, 2 '1' to renew, '0' to look only
-- Returns 'TOMB' (it was reaped), 'LOST' (the server forgot it), or {leases, obituaries} as flat lists.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 'TOMB'
end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 'LOST'
end
if ARGV[2] == '1' then
  redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
end
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[3])}
