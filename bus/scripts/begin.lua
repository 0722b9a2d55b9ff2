-- begin: the attempt at group ARGV[1] under lease ARGV[2] begins: from here on it counts. Returns 1; 0 if the lease is not
-- valid any more. (All but a last attempt are counted by their claim.)
local gid, lease = ARGV[1], ARGV[2]
if redis.call('HGET', STATE, gid) ~= 'f' or redis.call('HGET', LEASE, gid) ~= lease then return 0 end
even_if_full()
redis.call('HSET', ATTEMPTS, gid, number(CLAIM, gid))
return 1
