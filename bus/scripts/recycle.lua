-- recycle: group ARGV[1] will not be trained, for reason ARGV[2], in words ARGV[3]; its prompt waits to be dealt again, as group
-- ARGV[4]. Returns 1; 0 if it is batched, trained or dropped already.
local gid = ARGV[1]
local state = redis.call('HGET', STATE, gid)
if not state or state == 'b' then return 0 end
even_if_full()
redis.call('RPUSH', AGAIN, ARGV[4])
drop(gid, { reason = ARGV[2], detail = ARGV[3] })
return 1
