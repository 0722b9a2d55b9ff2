-- again: deal the prompts that have waited longest for it, while fewer than ARGV[1] groups are open. ARGV[2]: the last step when
-- the limit was decided on. ARGV[3..]: group id, ticket, group id, ticket, ... Returns how many were dealt.
-- Those that wait are the fence: a dealer that is behind (a retry, a second dealer) names others, and deals nothing twice.
-- Redis refuses this script as a whole where its memory is full, as it does "admit".
local limit, step = tonumber(ARGV[1]), tonumber(ARGV[2])
if step ~= number(META, 'last_step') then return 0 end
local open = number(COUNT, 'waiting') + number(COUNT, 'in_flight') + number(COUNT, 'ready')
local dealt = {}
for i = 3, #ARGV, 2 do
  local gid = ARGV[i]
  if open + #dealt >= limit or redis.call('LINDEX', AGAIN, 0) ~= gid then break end
  local entry = redis.call('XADD', TICKETS, '*', 'g', gid, 'm', ARGV[i + 1])
  redis.call('LPOP', AGAIN)
  redis.call('HSET', TICKET, gid, entry)
  redis.call('HSET', STATE, gid, 'w')
  redis.call('ZADD', ORDER, redis.call('HINCRBY', META, 'sequence', 1), gid)
  dealt[#dealt + 1] = gid
end
count('dealt', #dealt)
count('waiting', #dealt)
if #dealt > 0 then record('admitted', dealt, {}) end
return #dealt
