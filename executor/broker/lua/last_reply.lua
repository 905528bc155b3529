#!lua flags=no-writes
-- Id of the last entry in a reply stream, without its (perhaps large) content.
--
-- KEYS  1 reply stream
-- Returns the id, or nil where there is none.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return last and last[1]
