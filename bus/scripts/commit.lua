-- commit: a durable checkpoint contains step ARGV[1]: its groups and those of earlier steps are trained and leave the
-- streams. Returns how many groups.
local step = tonumber(ARGV[1])
local from = number(META, 'committed_step') + 1
local last = number(META, 'last_step')
if step > last then return redis.error_reply('commit of step ' .. step .. ', but the last batch is of step ' .. last) end
if step < from then return 0 end
local trained = 0
for s = from, step do
  local found = redis.call('XRANGE', BATCHES, s .. '-1', s .. '-1')
  for gid in string.gmatch(found[1][2][4], '%S+') do
    forget_payload(gid)
    redis.call('HDEL', STATE, gid)
    trained = trained + 1
  end
  redis.call('XDEL', BATCHES, s .. '-1')
end
redis.call('HSET', META, 'committed_step', step)
redis.call('HINCRBY', COUNT, 'batched', -trained)
redis.call('HINCRBY', COUNT, 'trained', trained)
return trained
