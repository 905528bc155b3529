#!lua flags=allow-oom
-- Put back what a BLMOVE took into inboxes and nobody claimed, oldest first to be popped.
--
-- KEYS  inbox and list, in turn
-- Returns how many messages went back.
local moved = 0
for i = 1, #KEYS, 2 do
  while redis.call('LMOVE', KEYS[i], KEYS[i + 1], 'LEFT', 'RIGHT') do
    moved = moved + 1
  end
end
return moved
