-- claim: group ARGV[1] is in flight under lease ARGV[2]; it has ARGV[3] attempts. Returns the number of this attempt;
-- 0 if the group is not to be generated any more, be it because its attempts are spent.
-- A claim of a group that is in flight already takes it over: the former lease is fenced off.
local gid, lease, attempts = ARGV[1], ARGV[2], tonumber(ARGV[3])
local state = redis.call('HGET', STATE, gid)
if state ~= 'w' and state ~= 'f' then return 0 end
even_if_full()
if state == 'f' then
  local holder = redis.call('HGET', LEASE, gid)
  if holder == lease then return number(ATTEMPTS, gid) end -- the retry of a lost answer
  add_cause(gid, holder .. ': its lease ended')
end
if number(ATTEMPTS, gid) >= attempts then
  bury(gid, { by = lease, reason = 'worker_died', detail = 'no worker survived it' })
  return 0
end
if state == 'w' then move(gid, 'w', 'f') end
redis.call('HSET', LEASE, gid, lease)
local attempt = redis.call('HINCRBY', ATTEMPTS, gid, 1)
record('claimed', { gid }, { by = lease, attempt = attempt })
return attempt
