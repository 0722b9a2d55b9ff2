-- publish: group ARGV[1], generated under lease ARGV[2], is ready; its payload lies at ARGV[3], ARGV[4] describes it.
-- Returns 1; 2 if this very publication was made before; 0 if the lease is not valid any more (the payload is deleted).
local gid, lease, payload = ARGV[1], ARGV[2], ARGV[3]
local state = redis.call('HGET', STATE, gid)
if redis.call('HGET', PAYLOAD, gid) == payload then return 2 end
even_if_full()
if state ~= 'f' or redis.call('HGET', LEASE, gid) ~= lease then
  redis.call('DEL', payload)
  return 0
end
if redis.call('PERSIST', payload) == 0 then return 0 end -- the worker slept so long that its payload is gone
move(gid, 'f', 'r')
forget_ticket(gid)
redis.call('HSET', PAYLOAD, gid, payload)
redis.call('HSET', READY, gid, ARGV[4])
redis.call('HSET', SAMPLE, gid, redis.call('XADD', SAMPLES, '*', 'm', ARGV[4]))
record('published', { gid }, { by = lease, ready = ARGV[4] })
return 1
