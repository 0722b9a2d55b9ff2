-- reconcile: a durable checkpoint of step ARGV[1] holds groups that this ledger, which lost its end, does not know as
-- trained: ARGV[2..]. They are trained, wherever this ledger has them; those that it has not even dealt yet are
-- remembered, and admission passes over them. Returns how many; 0 if the ledger knows that step (the retry of a lost
-- answer).
local step = tonumber(ARGV[1])
if step <= number(META, 'last_step') then return 0 end
for i = 2, #ARGV do
  local gid = ARGV[i]
  local state = redis.call('HGET', STATE, gid)
  if state == 'b' then return redis.error_reply('group ' .. gid .. ' is in a batch of its own record') end
end
even_if_full()
local ids = {}
for i = 2, #ARGV do
  local gid = ARGV[i]
  local state = redis.call('HGET', STATE, gid)
  if state then
    forget_ticket(gid)
    forget_payload(gid)
    redis.call('HDEL', STATE, gid)
    redis.call('ZREM', ORDER, gid)
    redis.call('HINCRBY', COUNT, NAME[state], -1)
  else
    redis.call('SADD', AHEAD, gid)
    redis.call('HINCRBY', COUNT, 'dealt', 1)
  end
  ids[#ids + 1] = gid
end
redis.call('HINCRBY', COUNT, 'trained', #ids)
redis.call('HSET', META, 'last_step', step, 'committed_step', step, 'forgotten_step', step)
record('reconciled', ids, { step = step })
return #ids
