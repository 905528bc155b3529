#!lua flags=allow-oom
-- Claim messages: pop each and register it in flight, in one step.
--
-- KEYS  1 in-flight hash of the worker, 2 its tombstone, 3.. lists to pop from, most urgent first
-- ARGV  1 worker, 2 credit (how many at most), 3 number below the first tag, 4 ttl_s of hashes made here
-- Returns 'TOMB' when the worker was reaped, else a flat list: whether there is more, then for each message its tag,
-- list, text and cancelled indexes.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 'TOMB'
end
local worker, credit, tag = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local claimed = {0}

local function register(list, raw)
  tag = tag + 1
  redis.call('HSET', KEYS[1], tag, list .. '\n' .. raw)
  local cancelled = ''
  local client, id = string.match(string.sub(raw, 1, 200), '"ke": "([^":]+):([^"]+)"')
  if client then
    local batches = 'ke:batches:' .. client
    if redis.call('HSET', batches, id, worker) == 1 and redis.call('TTL', batches) < 0 then
      redis.call('EXPIRE', batches, ARGV[4])
    end
    cancelled = redis.call('HGET', 'ke:cancels:' .. client, id) or ''
  end
  local n = #claimed
  claimed[n + 1], claimed[n + 2], claimed[n + 3], claimed[n + 4] = tostring(tag), list, raw, cancelled
  credit = credit - 1
end

-- What an earlier BLMOVE took for this worker comes first.
for i = 3, #KEYS do
  local inbox = 'ke:inbox:' .. worker .. ':' .. KEYS[i]
  while credit > 0 do
    local raw = redis.call('RPOP', inbox)
    if not raw then break end
    register(KEYS[i], raw)
  end
end
for i = 3, #KEYS do
  while credit > 0 do
    local raw = redis.call('RPOP', KEYS[i])
    if not raw then break end
    register(KEYS[i], raw)
  end
end
for i = 3, #KEYS do
  if redis.call('LLEN', KEYS[i]) > 0 then
    claimed[1] = 1
    break
  end
end
return claimed
