-- discard: group ARGV[1], generated under lease ARGV[2], is of no use, for reason ARGV[3] (a filter's, or its age), in words ARGV[4].
-- ARGV[5]: msgpack of the response lengths; ARGV[6]: as which group its prompt is to be dealt again, '' if it is not. Returns 1; 0 if
-- the lease is not valid any more, or this was done before.
local gid, lease = ARGV[1], ARGV[2]
if redis.call('HGET', STATE, gid) ~= 'f' or redis.call('HGET', LEASE, gid) ~= lease then return 0 end
even_if_full()
drop(gid, { by = lease, reason = ARGV[3], detail = ARGV[4], lengths = cmsgpack.unpack(ARGV[5]), again = ARGV[6] })
return 1
