-- claim: group ARGV[1] is in flight under lease ARGV[2]; it has ARGV[3] attempts; its ticket is entry ARGV[4]. Returns
-- the number of this attempt; 0 if the group is not to be generated any more, be it because its attempts are spent; -1 if
-- the entry is on the stream and the ledger has not put it there.
-- A claim of a group that is in flight already takes it over: the former lease is fenced off.
-- The last of several attempts counts only once it begins: a worker that is killed by one group on its last attempt may
-- hold others that wait for theirs.
local gid, lease, attempts = ARGV[1], ARGV[2], tonumber(ARGV[3])
local entry = redis.call('HGET', TICKET, gid)
if entry ~= ARGV[4] then
  if #redis.call('XRANGE', TICKETS, ARGV[4], ARGV[4]) == 0 then return 0 end -- replaced since it was delivered
  return -1
end
local state = redis.call('HGET', STATE, gid)
if state ~= 'w' and state ~= 'f' then return 0 end
even_if_full()
if state == 'f' then
  local holder = redis.call('HGET', LEASE, gid)
  if holder == lease then return number(CLAIM, gid) end -- the retry of a lost answer
  add_cause(gid, holder .. ': its lease ended')
end
local attempt = number(ATTEMPTS, gid) + 1
if attempt > attempts then
  bury(gid, { by = lease, reason = 'worker_died', detail = 'no worker survived it' })
  return 0
end
if state == 'w' then move(gid, 'w', 'f') end
redis.call('HSET', LEASE, gid, lease)
redis.call('HSET', CLAIM, gid, attempt)
if attempt == 1 or attempt < attempts then redis.call('HSET', ATTEMPTS, gid, attempt) end
record('claimed', { gid }, { by = lease, attempt = attempt })
return attempt
