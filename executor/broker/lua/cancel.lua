#!lua flags=allow-oom
-- Cancel calls of a message that may still be queued: the arbiter between cancelling and claiming.
--
-- KEYS  1 batches, 2 cancels
-- ARGV  1 message id, 2 indexes, comma-separated, 3 ttl_s of the cancels
-- Returns 'cancelled' (they will never run), 'gone' (finished, or not known here), or the id of the worker that has it.
local state = redis.call('HGET', KEYS[1], ARGV[1])
if not state then
  return 'gone'
end
if state ~= '' then
  return state
end
local before = redis.call('HGET', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], before and (before .. ',' .. ARGV[2]) or ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 'cancelled'
