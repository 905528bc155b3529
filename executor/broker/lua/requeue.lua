#!lua flags=allow-oom
-- Take a claimed message away from its worker: parts of it go back to the head of the queue, others are answered,
-- and what is given up is kept as a dead letter. Compare and set, in one step. A message of which every call has been
-- cancelled goes nowhere: its client may have left, and nobody would ever take it from the queue.
--
-- KEYS  1 in-flight hash, 2 list it came from, 3 dead letters
-- ARGV  1 tag, 2 'done' as seen ('' for none, '*' by its own worker), 3 'end' as seen (likewise), 4 client ('' if plain),
--       5 id of the claimed message, 6 dead letter ('' for none), 7 ttl_s of a stream made here,
--       8 number of replies, the signed replies, then id and text of each message, the last one first
-- Returns 'OK', 'GONE' (someone else finished or took it) or 'CHANGED' (read it again).
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 'GONE'
end
if ARGV[2] ~= '*' and ((redis.call('HGET', KEYS[1], ARGV[1] .. ':done') or '') ~= ARGV[2]
  or (redis.call('HGET', KEYS[1], ARGV[1] .. ':end') or '') ~= ARGV[3]) then
  return 'CHANGED'
end
redis.call('HDEL', KEYS[1], ARGV[1], ARGV[1] .. ':done', ARGV[1] .. ':end')
if ARGV[6] ~= '' then
  redis.call('LPUSH', KEYS[3], ARGV[6])
end
local client, messages = ARGV[4], 9 + tonumber(ARGV[8])
local batches, cancels = 'ke:batches:' .. client, 'ke:cancels:' .. client
local cancelled = false
if client ~= '' then
  cancelled = redis.call('HGET', cancels, ARGV[5])
  redis.call('HDEL', batches, ARGV[5])
  redis.call('HDEL', cancels, ARGV[5])
end
local never = {}
for index in string.gmatch(cancelled or '', '%d+') do
  never[tonumber(index)] = true
end

local function wanted(raw)
  local first, last = string.match(string.sub(raw, 1, 500), '"range": %[(%d+), (%d+)%]')
  for index = tonumber(first) or 0, tonumber(last or 0) - 1 do
    if not never[index] then return true end
  end
  return not first
end

for i = messages, #ARGV, 2 do
  local goes = not cancelled or wanted(ARGV[i + 1])
  if goes then
    redis.call('RPUSH', KEYS[2], ARGV[i + 1])
  end
  if goes and client ~= '' then
    redis.call('HSET', batches, ARGV[i], '')
    if cancelled then
      redis.call('HSET', cancels, ARGV[i], cancelled)
    end
  end
end
if client ~= '' and messages > 9 and redis.call('EXISTS', 'ke:client:' .. client) == 1 then
  local replies = 'ke:replies:' .. client
  for i = 9, messages - 1 do
    redis.call('XADD', replies, '*', 'm', ARGV[i])
  end
  if redis.call('TTL', replies) < 0 then
    redis.call('EXPIRE', replies, ARGV[7])
  end
end
return 'OK'
