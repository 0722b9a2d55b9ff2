-- admit: deal tickets while fewer than ARGV[1] groups are open, starting at prompt position ARGV[2].
-- ARGV[3]: the last step when the limit was decided on, -1 for any. ARGV[4..]: group id, ticket, group id, ticket, ...
-- Returns {admitted, next position}.
-- The position is the fence: a dealer that is behind (a retry, a second dealer) deals nothing twice. So is the step: a
-- group that is admitted for a step's window is there when the window is emptied.
-- Redis refuses this script as a whole where its memory is full: its first command is a write that needs some.
local limit, start, step = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local position = number(META, 'next_position')
if start ~= position then return { 0, position } end
if step >= 0 and step ~= number(META, 'last_step') then return { 0, position } end
redis.call('HSET', META, 'next_position', position)
local open = number(COUNT, 'waiting') + number(COUNT, 'in_flight') + number(COUNT, 'ready')
local admitted, passed = {}, 0
local entries, states, order = {}, {}, {}
local sequence = number(META, 'sequence')
local some_ahead = redis.call('EXISTS', AHEAD) == 1
for i = 4, #ARGV, 2 do
  if open + #admitted >= limit then break end
  local gid = ARGV[i]
  if some_ahead and redis.call('SREM', AHEAD, gid) == 1 then
    passed = passed + 1 -- trained before this ledger lost its end: counted when it was reconciled
  else
    local entry = redis.call('XADD', TICKETS, '*', 'g', gid, 'm', ARGV[i + 1])
    admitted[#admitted + 1] = gid
    append(entries, gid, entry)
    append(states, gid, 'w')
    append(order, sequence + #admitted, gid)
  end
end
with_all(entries, 'HSET', TICKET)
with_all(states, 'HSET', STATE)
with_all(order, 'ZADD', ORDER)
redis.call('HINCRBY', META, 'sequence', #admitted)
redis.call('HINCRBY', COUNT, 'dealt', #admitted)
redis.call('HINCRBY', COUNT, 'waiting', #admitted)
redis.call('HINCRBY', META, 'next_position', #admitted + passed)
if #admitted > 0 then record('admitted', admitted, {}) end
return { #admitted, position + #admitted + passed }
