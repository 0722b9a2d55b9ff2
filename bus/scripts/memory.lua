-- memory: what Redis uses and may use (0: no limit), in bytes: two numbers of the sixty of INFO, which a client would all read.
local info = redis.call('INFO', 'memory')
return { tonumber(string.match(info, 'used_memory:(%d+)')), tonumber(string.match(info, '\nmaxmemory:(%d+)') or '0') }
