-- always: the command ARGV on KEYS[1], also when Redis' memory is full: the first write needs none, which lets the rest
-- pass. For what is small and read at once (events, metrics, heartbeats), and what may free memory in the end.
redis.call('DEL', KEYS[1] .. ':none')
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
