-- reconcile: a durable checkpoint of step ARGV[1] holds groups that this ledger, which lost its end, does not know as
-- trained: ARGV[2..]. They are trained, wherever this ledger has them, and so are their prompts: another attempt at one that is open
-- was given up in the lost end, and is dropped; one that waits to be dealt again waits no more; one of which nothing has been dealt
-- yet is remembered by its first attempt, and admission passes over it. Returns how many; 0 if no learner can go back behind that
-- step (the retry of a lost answer).
local step = tonumber(ARGV[1])
if step <= forgotten_step() then return 0 end
local ids, named, trained_as, is_here = {}, {}, {}, {} -- the last two by prompt
for i = 2, #ARGV do
  local gid = ARGV[i]
  if redis.call('HGET', STATE, gid) == 'b' then
    return redis.error_reply('group ' .. gid .. ' is in a batch of its own record')
  end
  ids[#ids + 1] = gid
  named[gid], trained_as[prompt_of(gid)] = true, gid
end
even_if_full()
local known = 0 -- of the groups, those that this ledger has dealt
for _, gid in ipairs(redis.call('ZRANGE', ORDER, 0, -1)) do
  local prompt = prompt_of(gid)
  if named[gid] then
    redis.call('HINCRBY', COUNT, NAME[redis.call('HGET', STATE, gid)], -1)
    forget_ticket(gid)
    forget_payload(gid)
    redis.call('HDEL', STATE, gid)
    redis.call('ZREM', ORDER, gid)
    known = known + 1
  elseif trained_as[prompt] then
    drop(gid, { reason = 'superseded', detail = 'its prompt is trained, as ' .. trained_as[prompt] })
  end
  is_here[prompt] = true
end
for _, gid in ipairs(redis.call('LRANGE', AGAIN, 0, -1)) do
  local prompt = prompt_of(gid)
  if trained_as[prompt] then redis.call('LREM', AGAIN, 0, gid) end
  is_here[prompt] = true
end
for prompt in pairs(trained_as) do
  if not is_here[prompt] then redis.call('SADD', AHEAD, prompt .. '-0') end
end
for s = forgotten_step() + 1, number(META, 'last_step') do forget_step(s) end
count('dealt', #ids - known)
redis.call('HINCRBY', COUNT, 'trained', #ids)
redis.call('HSET', META, 'last_step', step, 'committed_step', step, 'forgotten_step', step)
record('reconciled', ids, { step = step })
return #ids
