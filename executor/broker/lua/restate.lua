#!lua flags=allow-oom
-- A server has lost its data, and this worker still runs calls: say so again.
--
-- KEYS  1 leases, 2 workers, 3 the worker's tombstone, 4 its in-flight hash
-- ARGV  1 worker, 2 its description (JSON), 3 ttl_s of hashes made here,
--       then for each message: tag, entry, client ('' for a plain Celery message), message id
-- Returns 'OK', or 'TOMB' when the id was reaped after all.
if redis.call('EXISTS', KEYS[3]) == 1 then
  return 'TOMB'
end
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
for i = 4, #ARGV, 4 do
  redis.call('HSETNX', KEYS[4], ARGV[i], ARGV[i + 1])
  if ARGV[i + 2] ~= '' then
    local batches = 'ke:batches:' .. ARGV[i + 2]
    redis.call('HSET', batches, ARGV[i + 3], ARGV[1])
    if redis.call('TTL', batches) < 0 then
      redis.call('EXPIRE', batches, ARGV[3])
    end
  end
end
return 'OK'
