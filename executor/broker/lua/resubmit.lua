#!lua
-- Queue a dead letter again. It is a letter or a message, never both, never neither.
--
-- KEYS  1 dead letters, 2 queue
-- ARGV  1 the letter, 2 the message in it
-- Returns 1, or 0 when the letter is no longer there.
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then
  return 0
end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1
