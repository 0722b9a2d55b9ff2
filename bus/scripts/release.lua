-- release: in-flight groups go back to waiting: those of lease ARGV[1], or all of them where it is ''. Returns how many.
local lease, released = ARGV[1], 0
local states = redis.call('HGETALL', STATE)
for i = 1, #states, 2 do
  local gid = states[i]
  if states[i + 1] == 'f' and (lease == '' or redis.call('HGET', LEASE, gid) == lease) then
    requeue(gid)
    released = released + 1
  end
end
return released
