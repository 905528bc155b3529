#!lua flags=allow-oom
-- Tell a client something that belongs to no message.
--
-- KEYS  1 reply stream, 2 the client's alive mark
-- ARGV  1 the signed reply, 2 ttl_s of a stream made here
-- Returns 'OK', or 'GONE' when there is no such client.
if redis.call('EXISTS', KEYS[2]) == 0 then
  return 'GONE'
end
redis.call('XADD', KEYS[1], '*', 'm', ARGV[1])
if redis.call('TTL', KEYS[1]) < 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return 'OK'
