-- batch: step ARGV[1] trains on the groups ARGV[3..]; ARGV[2] is the record. Written before the step trains.
-- Returns 1; 2 if the step has a record already (read it); 0 if the step is not the next or a group is not ready.
local step = tonumber(ARGV[1])
local last = number(META, 'last_step')
if step <= last then return 2 end
if step ~= last + 1 then return 0 end
for i = 3, #ARGV do
  if redis.call('HGET', STATE, ARGV[i]) ~= 'r' then return 0 end
end
local ids = {}
for i = 3, #ARGV do
  move(ARGV[i], 'r', 'b')
  redis.call('ZREM', ORDER, ARGV[i])
  ids[#ids + 1] = ARGV[i]
end
redis.call('XADD', BATCHES, step .. '-1', 'm', ARGV[2], 'g', table.concat(ids, ' '))
redis.call('HSET', META, 'last_step', step)
return 1
