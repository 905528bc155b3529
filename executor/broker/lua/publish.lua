-- Publish call messages, each exactly once under its id.
-- KEYS: batches hash of the client
-- ARGV: ttl of the hash in seconds, then for each message: id, queue key, raw
-- Returns how many were new. A repeat after a lost connection adds nothing.
-- A message that its queue does not take (no right to that key) is not noted either: noted, it would count as queued.
local new = 0
for i = 2, #ARGV, 3 do
  if redis.call('HSETNX', KEYS[1], ARGV[i], '') == 1 then
    local pushed = redis.pcall('LPUSH', ARGV[i + 1], ARGV[i + 2])
    if type(pushed) == 'table' and pushed.err then
      redis.call('HDEL', KEYS[1], ARGV[i])
      return pushed
    end
    new = new + 1
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return new
