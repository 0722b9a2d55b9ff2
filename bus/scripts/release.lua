-- release: in-flight groups go back to waiting: those of lease ARGV[1], or all of them where it is ''. Returns how many.
-- ARGV[2]: why the attempt ended, which counts as one; '' where the worker hands its work back, which does not.
local lease, why = ARGV[1], ARGV[2]
local released = {}
local states = redis.call('HGETALL', STATE)
even_if_full()
for i = 1, #states, 2 do
  local gid = states[i]
  local holder = redis.call('HGET', LEASE, gid)
  if states[i + 1] == 'f' and (lease == '' or holder == lease) then
    if why == '' then
      redis.call('HSET', ATTEMPTS, gid, number(CLAIM, gid) - 1)
    else
      add_cause(gid, holder .. ': ' .. why)
    end
    requeue(gid)
    released[#released + 1] = gid
  end
end
if #released > 0 then record('released', released, { by = lease, detail = why }) end
return #released
