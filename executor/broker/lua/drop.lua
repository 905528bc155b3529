#!lua flags=allow-oom
-- Acknowledge a plain Celery message: forget it, if it is still ours.
--
-- KEYS  1 in-flight hash
-- ARGV  1 tag
-- Returns 1, or 0 when the delivery was taken away.
return redis.call('HDEL', KEYS[1], ARGV[1])
