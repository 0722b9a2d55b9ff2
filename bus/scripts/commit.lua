-- commit: a durable checkpoint contains step ARGV[1]: its groups and those of earlier steps are trained and leave the
-- streams. Returns how many groups.
local step = tonumber(ARGV[1])
local from = number(META, 'committed_step') + 1
local last = number(META, 'last_step')
if step > last then return redis.error_reply('commit of step ' .. step .. ', but the last batch is of step ' .. last) end
if step < from then return 0 end
even_if_full()
local trained = 0
for s = from, step do
  local ids = cmsgpack.unpack(string.sub(redis.call('HGET', BATCH, s), 2))[3]
  for _, gid in ipairs(ids) do
    forget_payload(gid)
    redis.call('HDEL', STATE, gid)
    trained = trained + 1
  end
  redis.call('HDEL', BATCH, s)
  record('trained', ids, { step = s })
end
redis.call('HSET', META, 'committed_step', step)
redis.call('HINCRBY', COUNT, 'batched', -trained)
redis.call('HINCRBY', COUNT, 'trained', trained)
return trained
