-- Publish call messages, each exactly once under its id.
-- KEYS: batches hash of the client
-- ARGV: ttl of the hash in seconds, then for each message: id, queue key, raw
-- Returns how many were new. A repeat after a lost connection adds nothing.
local new = 0
for i = 2, #ARGV, 3 do
  if redis.call('HSETNX', KEYS[1], ARGV[i], '') == 1 then
    redis.call('LPUSH', ARGV[i + 1], ARGV[i + 2])
    new = new + 1
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return new
