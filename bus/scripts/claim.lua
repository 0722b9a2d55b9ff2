-- claim: group ARGV[1] is in flight under lease ARGV[2]. Returns 1; 0 if the group is not to be generated any more.
-- A claim of a group that is in flight already takes it over: the former lease is fenced off.
local gid, lease = ARGV[1], ARGV[2]
local state = redis.call('HGET', STATE, gid)
if state == 'w' then
  move(gid, 'w', 'f')
elseif state ~= 'f' then
  return 0
end
redis.call('HSET', LEASE, gid, lease)
return 1
