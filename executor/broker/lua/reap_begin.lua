#!lua flags=allow-oom
-- Begin to reap a worker: put up its tombstone, so that it can neither claim nor beat under this id again.
--
-- KEYS  1 leases, 2 its tombstone, 3 obituaries, 4 its in-flight hash, 5 workers, 6 who is reaping it
-- ARGV  1 worker, 2 its beat as last seen ('' to trust the obituary alone), 3 reaper, 4 ttl_s of the tombstone
-- Returns 'ALIVE' (it has beaten since), 'GONE' (reaped to the end), 'BUSY' (another one is at it),
-- or {in-flight hash as a flat list, description, obituary}.
local beat = redis.call('HGET', KEYS[1], ARGV[1])
local obituary = redis.call('HGET', KEYS[3], ARGV[1])
if not beat and not obituary then
  return 'GONE'
end
if not obituary and beat ~= ARGV[2] and redis.call('EXISTS', KEYS[2]) == 0 then
  return 'ALIVE'
end
if not redis.call('SET', KEYS[6], ARGV[3], 'NX', 'EX', 3) and redis.call('GET', KEYS[6]) ~= ARGV[3] then
  return 'BUSY'
end
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
return {redis.call('HGETALL', KEYS[4]), redis.call('HGET', KEYS[5], ARGV[1]) or '', obituary or ''}
