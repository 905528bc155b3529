#!lua flags=allow-oom
-- Publish outcomes of a claimed message, fenced by its in-flight entry.
--
-- KEYS  1 in-flight hash, 2 reply stream, 3 the client's alive mark, 4 its batches, 5 its cancels
-- ARGV  1 tag, 2 index of the first outcome, 3 index after the last one, 4 '1' when the message is done with it,
--       5 the signed reply, 6 message id, 7 least ttl_s of a stream made here, 8 first index of the message
-- Returns 'OK', 'ALREADY' (these outcomes were published before) or 'FENCED' (the delivery was taken away).
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 'FENCED'
end
local done = tonumber(redis.call('HGET', KEYS[1], ARGV[1] .. ':done') or ARGV[8])
local status = 'OK'
if done > tonumber(ARGV[2]) then
  status = 'ALREADY'
elseif ARGV[5] ~= '' and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('XADD', KEYS[2], '*', 'm', ARGV[5])
  if redis.call('TTL', KEYS[2]) < 0 then
    redis.call('EXPIRE', KEYS[2], math.max(ARGV[7], redis.call('TTL', KEYS[3])))
  end
end
if ARGV[4] == '1' then
  redis.call('HDEL', KEYS[1], ARGV[1], ARGV[1] .. ':done', ARGV[1] .. ':end')
  redis.call('HDEL', KEYS[4], ARGV[6])
  redis.call('HDEL', KEYS[5], ARGV[6])
elseif status == 'OK' then
  redis.call('HSET', KEYS[1], ARGV[1] .. ':done', ARGV[3])
end
return status
