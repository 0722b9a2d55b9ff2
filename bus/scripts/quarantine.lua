-- quarantine: group ARGV[2] of step ARGV[1] cannot be trained, for reason ARGV[3], in words ARGV[4]. From now on it is no part of
-- its step, also when that is trained again; it counts as dropped, and lies among the dead letters with its cause and the ticket
-- ARGV[5]. Returns how many groups were ever quarantined, this one included; 0 if it is not in the record of that step.
-- Its payload stays as long as those of the step.
local step, gid, reason, detail = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local total = number(COUNT, 'dropped:quarantined')
if redis.call('HEXISTS', QUARANTINE, gid) == 1 then return total end
local is_in_it = false
if redis.call('HEXISTS', BATCH, step) == 1 then
  for _, member in ipairs(groups_of(step)) do is_in_it = is_in_it or member == gid end
end
if not is_in_it then return 0 end
even_if_full()
-- a step that is trained again on top of an older checkpoint than the newest may be committed: its groups are no more "batched"
local state = redis.call('HGET', STATE, gid)
redis.call('HINCRBY', COUNT, state == 'b' and 'batched' or 'trained', -1)
redis.call('HINCRBY', COUNT, 'dropped', 1)
redis.call('HINCRBY', COUNT, 'dropped:quarantined', 1)
redis.call('HSET', QUARANTINE, gid, reason .. ': ' .. detail)
local lengths = lengths_of(gid)
redis.call('HDEL', STATE, gid)
forget_news(gid)
local causes = { 'step ' .. step .. ': ' .. reason .. ': ' .. detail }
local letter = { group_id = gid, attempts = 1, reason = 'quarantined', causes = causes }
redis.call('XADD', DEAD, 'MAXLEN', '~', 10000, '*', 'm', pack_dead_letter(letter), 't', ARGV[5])
record('quarantined', { gid }, { step = step, reason = reason, detail = detail, lengths = lengths })
return total + 1
