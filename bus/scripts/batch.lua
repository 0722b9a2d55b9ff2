-- batch: step ARGV[1] trains on the groups ARGV[4..]; ARGV[2] is the record. Written before the step trains. Then the
-- first ARGV[3] of the groups that are still open are dropped: the surplus of those that were begun for this step.
-- Returns 1; 2 if the step has a record already (read it); 0 if the step is not the next, or a group is not ready
-- or named twice.
-- The record is in a hash; the stream only tells that there is one, so that nothing on it can be mistaken for a record.
local step, surplus = tonumber(ARGV[1]), tonumber(ARGV[3])
local last = number(META, 'last_step')
if step <= last then return 2 end
if step ~= last + 1 then return 0 end
local ids, named = {}, {}
for i = 4, #ARGV do
  if named[ARGV[i]] then return 0 end
  named[ARGV[i]] = true
  ids[#ids + 1] = ARGV[i]
end
for _, state in ipairs(values_of(STATE, ids)) do
  if state ~= 'r' then return 0 end
end
even_if_full()
local states = {}
for _, gid in ipairs(ids) do
  append(states, gid, 'b')
end
with_all(states, 'HSET', STATE)
with_all(ids, 'ZREM', ORDER)
count('ready', -#ids)
count('batched', #ids)
redis.call('HSET', BATCH, step, ARGV[2])
redis.call('HSET', META, 'last_step', step)
redis.call('XADD', BATCHES, 'MAXLEN', 1000, '*', 'm', ARGV[2])
record('batched', ids, { step = step })
if surplus > 0 then
  for _, gid in ipairs(redis.call('ZRANGE', ORDER, 0, surplus - 1)) do
    drop(gid, { reason = 'surplus', detail = 'step ' .. step .. ' has its groups' })
  end
end
return 1
