"""The only road to Redis: addresses, scripts, publishing, replies, reaping, the embedded server."""
