#!lua flags=allow-oom
-- A client leaves: remove what belongs to it, but not what workers must still know of messages they hold: a cancelled
-- call that is handed back after its client has left must not run.
--
-- KEYS  1 batches, 2 cancels, 3.. whatever goes for good
-- ARGV  1 '1' when all its queues go, too: then what is queued will never be claimed
for i = 3, #KEYS do
  redis.call('DEL', KEYS[i])
end
local messages = redis.call('HGETALL', KEYS[1])
for i = 1, #messages, 2 do
  if messages[i + 1] == '' and ARGV[1] == '1' then
    redis.call('HDEL', KEYS[1], messages[i])
    redis.call('HDEL', KEYS[2], messages[i])
  end
end
return 'OK'
