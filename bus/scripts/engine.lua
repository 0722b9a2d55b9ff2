-- engine: the line of engine ARGV[1] in KEYS[1] becomes ARGV[3] ('': it goes), and ARGV[4], where it is not '', is told on the
-- stream KEYS[2]; both only if the line still is ARGV[2] ('': there is none). Returns 1, or 0: it has changed meanwhile.
redis.call('DEL', KEYS[1] .. ':none') -- a write that needs no memory, first: it passes also where memory is full
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
if ARGV[4] ~= '' then redis.call('XADD', KEYS[2], '*', 'm', ARGV[4]) end
return 1
