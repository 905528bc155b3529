#!lua flags=allow-oom
-- Forget a reaped worker, once nothing is left under its id.
--
-- KEYS  1 leases, 2 workers, 3 obituaries, 4 its in-flight hash, 5 its control list, 6 who is reaping it
-- ARGV  1 worker
-- Returns 'OK', or 'HELD' when messages are still in flight there.
if redis.call('EXISTS', KEYS[4]) == 1 then
  return 'HELD'
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[5], KEYS[6])
return 'OK'
