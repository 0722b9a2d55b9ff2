-- foreign: which of the entries on "samples" the ledger has not put there. ARGV: group id, entry id, group id, ...
-- Returns their places, from 0. An entry that has left the stream since it was read is none of them.
local found = {}
for i = 1, #ARGV, 2 do
  if redis.call('HGET', SAMPLE, ARGV[i]) ~= ARGV[i + 1] and #redis.call('XRANGE', SAMPLES, ARGV[i + 1], ARGV[i + 1]) > 0 then
    found[#found + 1] = (i - 1) / 2
  end
end
return found
