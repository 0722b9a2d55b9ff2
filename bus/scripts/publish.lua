-- publish: groups that were generated under lease ARGV[1] are ready. ARGV[2..]: group id, where its payload lies, the news of
-- it, the transition for the record, group id, ... Returns for each 1; 2 if this very publication was made before; 0 if the lease
-- is not valid any more (the payload is deleted); -1 if there is no payload: Redis had no room for it, or its worker slept so long
-- that it is gone. (So it is for the second of two publications of one group in one script, which will be told 2 when it is made
-- again.)
local lease, ids = ARGV[1], {}
for i = 2, #ARGV, 4 do ids[#ids + 1] = ARGV[i] end
local states, holders = values_of(STATE, ids), values_of(LEASE, ids)
local tickets, published = values_of(TICKET, ids), values_of(PAYLOAD, ids)
even_if_full()
local done, entries, moved, payloads, samples = {}, {}, {}, {}, {}

local function publish(i, gid, payload, news, transition)
  if published[i] == payload then return 2 end
  if states[i] ~= 'f' or holders[i] ~= lease then
    redis.call('DEL', payload)
    return 0
  end
  if redis.call('PERSIST', payload) == 0 then return -1 end
  done[#done + 1] = gid
  entries[#entries + 1] = tickets[i] or nil
  append(moved, gid, 'r')
  append(payloads, gid, payload)
  append(samples, gid, redis.call('XADD', SAMPLES, '*', 'm', news))
  redis.call('XADD', EVENTS, '*', 'm', transition)
  return 1
end

local answers = {}
for i, gid in ipairs(ids) do answers[i] = publish(i, gid, unpack(ARGV, 4 * i - 1, 4 * i + 1)) end
forget_tickets(done, entries)
with_all(moved, 'HSET', STATE)
with_all(payloads, 'HSET', PAYLOAD)
with_all(samples, 'HSET', SAMPLE)
count('in_flight', -#done)
count('ready', #done)
return answers
