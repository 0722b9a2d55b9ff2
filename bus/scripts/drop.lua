-- drop: group ARGV[1] will not be trained, for reason ARGV[2], in words ARGV[3]; ARGV[4]: as which group its prompt is to be dealt
-- again, '' if it is not. Returns 1; 0 if it is batched, trained or dropped already.
local gid = ARGV[1]
local state = redis.call('HGET', STATE, gid)
if not state or state == 'b' then return 0 end
even_if_full()
drop(gid, { reason = ARGV[2], detail = ARGV[3], again = ARGV[4] })
return 1
