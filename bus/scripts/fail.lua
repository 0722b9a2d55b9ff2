-- fail: the attempt at group ARGV[1] under lease ARGV[2] came to nothing, for reason ARGV[3], ARGV[4]; it has ARGV[5]
-- attempts. ARGV[6]: msgpack of the response lengths, where it was generated. Returns 1: it waits again; 2: that was
-- the last attempt, it is dropped and among the dead letters; 0: the lease is not valid any more.
local gid, lease, reason, detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('HGET', STATE, gid) ~= 'f' or redis.call('HGET', LEASE, gid) ~= lease then return 0 end
even_if_full()
add_cause(gid, lease .. ': ' .. reason .. ': ' .. detail)
local t = { by = lease, reason = reason, detail = detail, lengths = cmsgpack.unpack(ARGV[6]) }
redis.call('HSET', ATTEMPTS, gid, number(CLAIM, gid))
if number(CLAIM, gid) >= tonumber(ARGV[5]) then
  bury(gid, t)
  return 2
end
requeue(gid)
record('failed', { gid }, t)
return 1
