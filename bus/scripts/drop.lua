-- drop: group ARGV[1] will not be trained, for reason ARGV[2]; under lease ARGV[3] where that is not ''.
-- Returns 1; 0 if it is batched, trained or dropped already, or the lease is not valid any more.
local gid, reason, lease = ARGV[1], ARGV[2], ARGV[3]
local state = redis.call('HGET', STATE, gid)
if not state or state == 'b' then return 0 end
if lease ~= '' and redis.call('HGET', LEASE, gid) ~= lease then return 0 end
forget_ticket(gid)
forget_payload(gid)
redis.call('HDEL', STATE, gid)
redis.call('ZREM', ORDER, gid)
redis.call('HINCRBY', COUNT, NAME[state], -1)
redis.call('HINCRBY', COUNT, 'dropped', 1)
redis.call('HINCRBY', COUNT, 'dropped:' .. reason, 1)
return 1
