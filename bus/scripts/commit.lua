-- commit: a durable checkpoint contains step ARGV[1]: its groups and those of earlier steps are trained. Returns how many
-- groups. Records and payloads of the steps up to ARGV[2] are forgotten; those of later ones stay, so that a learner whose
-- newest checkpoint turns out to be damaged can train them again on top of an older one.
local step, forget = tonumber(ARGV[1]), tonumber(ARGV[2])
local from = number(META, 'committed_step') + 1
local last = number(META, 'last_step')
if step > last then return redis.error_reply('commit of step ' .. step .. ', but the last batch is of step ' .. last) end
local forgotten = forgotten_step()
even_if_full()
local trained, committed = 0, math.max(step, from - 1)
for s = from, step do
  local ids = {}
  for _, gid in ipairs(groups_of(s)) do
    if redis.call('HEXISTS', QUARANTINE, gid) == 0 then
      forget_news(gid)
      redis.call('HDEL', STATE, gid)
      trained = trained + 1
      ids[#ids + 1] = gid
    end
  end
  record('trained', ids, { step = s })
end
for s = forgotten + 1, math.min(forget, committed) do
  for _, gid in ipairs(groups_of(s)) do
    forget_payload(gid)
    redis.call('HDEL', QUARANTINE, gid)
  end
  redis.call('HDEL', BATCH, s)
  forgotten = s
end
redis.call('HSET', META, 'committed_step', committed, 'forgotten_step', forgotten)
if trained > 0 then
  redis.call('HINCRBY', COUNT, 'batched', -trained)
  redis.call('HINCRBY', COUNT, 'trained', trained)
end
return trained
