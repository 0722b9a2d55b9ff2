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
  local ids, members = {}, groups_of(s)
  for i, quarantined in ipairs(values_of(QUARANTINE, members)) do
    if not quarantined then ids[#ids + 1] = members[i] end
  end
  with_all(some_of(values_of(SAMPLE, ids)), 'XDEL', SAMPLES)
  with_all(ids, 'HDEL', SAMPLE)
  with_all(ids, 'HDEL', STATE)
  trained = trained + #ids
  record('trained', ids, { step = s })
end
for s = forgotten + 1, math.min(forget, committed) do
  forget_step(s)
  forgotten = s
end
redis.call('HSET', META, 'committed_step', committed, 'forgotten_step', forgotten)
if trained > 0 then
  redis.call('HINCRBY', COUNT, 'batched', -trained)
  redis.call('HINCRBY', COUNT, 'trained', trained)
end
return trained
