-- batch: step ARGV[1] trains on the groups ARGV[4..]; ARGV[2] is the record. Written before the step trains. Then the
-- first ARGV[3] of the groups that are still open are dropped: the surplus of those that were begun for this step.
-- Returns 1; 2 if the step has a record already (read it); 0 if the step is not the next, or a group is not ready
-- or named twice.
-- The record is in a hash; the stream only tells that there is one, so that nothing on it can be mistaken for a record.
local step, surplus = tonumber(ARGV[1]), tonumber(ARGV[3])
local last = number(META, 'last_step')
if step <= last then return 2 end
if step ~= last + 1 then return 0 end
local ids = ready_groups(4)
if not ids then return 0 end
even_if_full()
put_into(step, ids, ARGV[2], 'batched')
redis.call('HSET', META, 'last_step', step)
if surplus > 0 then
  for _, gid in ipairs(redis.call('ZRANGE', ORDER, 0, surplus - 1)) do
    drop(gid, { reason = 'surplus', detail = 'step ' .. step .. ' has its groups' })
  end
end
return 1
