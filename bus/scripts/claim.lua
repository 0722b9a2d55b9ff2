-- claim: groups are in flight under lease ARGV[1]; each has ARGV[2] attempts. ARGV[3..]: group id, the entry of its ticket, group
-- id, ... Returns for each the number of this attempt; 0 if the group is not to be generated any more, be it because its
-- attempts are spent; -1 if the entry is on the stream and the ledger has not put it there.
-- A claim of a group that is in flight already takes it over: the former lease is fenced off.
-- The last of several attempts counts only once it begins: a worker that is killed by one group on its last attempt may
-- hold others that wait for theirs.
-- A payload that lies there under the lease is of an attempt whose publication Redis has lost, with the end of its file: it goes, so
-- that the next one under that lease is not published with it.
local lease, attempts = ARGV[1], tonumber(ARGV[2])
even_if_full()
local ids = {}
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local tickets, states, holders = values_of(TICKET, ids), values_of(STATE, ids), values_of(LEASE, ids)
local claims, counted = values_of(CLAIM, ids), values_of(ATTEMPTS, ids)
local taken, leases, numbers, counts = {}, {}, {}, {}
local kinds, by_attempt = {}, {} -- of attempts; the groups that are on each of them

local function claim(i, gid, entry)
  if tickets[i] ~= entry then
    if #redis.call('XRANGE', TICKETS, entry, entry) == 0 then return 0 end -- replaced since it was delivered
    return -1
  end
  if states[i] ~= 'w' and states[i] ~= 'f' then return 0 end
  if states[i] == 'f' then
    if holders[i] == lease then return tonumber(claims[i]) end -- the retry of a lost answer
    add_cause(gid, holders[i] .. ': its lease ended')
  end
  local attempt = tonumber(counted[i] or '0') + 1
  if attempt > attempts then
    bury(gid, { by = lease, reason = 'worker_died', detail = 'no worker survived it' })
    return 0
  end
  if states[i] == 'w' then append(taken, gid, 'f') end
  append(leases, gid, lease)
  append(numbers, gid, attempt)
  if attempt == 1 or attempt < attempts then append(counts, gid, attempt) end
  if not by_attempt[attempt] then
    by_attempt[attempt] = {}
    table.insert(kinds, attempt)
  end
  table.insert(by_attempt[attempt], gid)
  return attempt
end

local answers, named, unpublished = {}, {}, {}
for i, gid in ipairs(ids) do
  local entry = ARGV[2 * i + 2]
  named[entry] = named[entry] or claim(i, gid, entry)
  answers[i] = named[entry]
  if answers[i] > 0 then unpublished[#unpublished + 1] = P .. 'payload:' .. gid .. ':' .. lease end
end
with_all(unpublished, 'DEL')
with_all(taken, 'HSET', STATE)
with_all(leases, 'HSET', LEASE)
with_all(numbers, 'HSET', CLAIM)
with_all(counts, 'HSET', ATTEMPTS)
count('waiting', -#taken / 2)
count('in_flight', #taken / 2)
for _, attempt in ipairs(kinds) do record('claimed', by_attempt[attempt], { by = lease, attempt = attempt }) end
return answers
