-- snapshot: the learner of incarnation ARGV[2] announces the weights of version ARGV[1]: its message ARGV[3] is recorded in
-- KEYS[1], and told on the stream KEYS[2], if the ledger (KEYS[3]) has a batch for each of its steps and no later learner has
-- spoken. Returns 1; 0: a later one has; -1: there are not so many batches.
redis.call('DEL', KEYS[1] .. ':none') -- a write that needs no memory, first: it passes also where memory is full
if tonumber(ARGV[2]) < tonumber(redis.call('HGET', KEYS[1], 'learner') or '0') then return 0 end
if tonumber(ARGV[1]) > tonumber(redis.call('HGET', KEYS[3], 'last_step') or '0') then return -1 end
redis.call('HSET', KEYS[1], 'learner', ARGV[2], ARGV[2] .. '-' .. ARGV[1], ARGV[3])
redis.call('XADD', KEYS[2], '*', 'm', ARGV[3])
return 1
