#!lua flags=allow-oom
-- Fence the unstarted rest of a claimed batch off, and put it back at the head of its queue.
--
-- KEYS  1 in-flight hash, 2 list, 3 reply stream, 4 alive mark, 5 batches, 6 cancels
-- ARGV  1 tag, 2 index from which on the rest goes, 3 the rest as a message, 4 note for the client,
--       5 id of the claimed message, 6 id of the rest, 7 ttl_s of a stream made here,
--       8 indexes cancelled since the claim, comma-separated
-- Returns 'OK', 'ALREADY' or 'FENCED'.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 'FENCED'
end
local ending = redis.call('HGET', KEYS[1], ARGV[1] .. ':end')
if ending and tonumber(ending) <= tonumber(ARGV[2]) then
  return 'ALREADY'
end
redis.call('HSET', KEYS[1], ARGV[1] .. ':end', ARGV[2])
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[5], ARGV[6], '')
local cancelled = redis.call('HGET', KEYS[6], ARGV[5])
if ARGV[8] ~= '' then
  cancelled = cancelled and (cancelled .. ',' .. ARGV[8]) or ARGV[8]
end
if cancelled then
  redis.call('HSET', KEYS[6], ARGV[6], cancelled)
end
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('XADD', KEYS[3], '*', 'm', ARGV[4])
  if redis.call('TTL', KEYS[3]) < 0 then
    redis.call('EXPIRE', KEYS[3], ARGV[7])
  end
end
return 'OK'
