#!lua flags=allow-oom
-- A worker comes ('join'), comes back to a server that forgot it ('join' again), or goes ('leave').
--
-- KEYS  1 leases, 2 workers, 3 the worker's tombstone, 4 obituaries, 5 in-flight hash, 6 control list
-- ARGV  1 'join' or 'leave', 2 worker, 3 its description (JSON)
-- Returns 'OK', 'TOMB' (the id was reaped: take another), or 'HELD' (it may not leave: messages are in flight).
if ARGV[1] == 'join' then
  if redis.call('EXISTS', KEYS[3]) == 1 then
    return 'TOMB'
  end
  redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
  return 'OK'
end
if redis.call('EXISTS', KEYS[5]) == 1 then
  return 'HELD'
end
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[4], ARGV[2])
redis.call('DEL', KEYS[6])
return 'OK'
