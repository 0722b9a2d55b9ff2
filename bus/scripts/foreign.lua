-- foreign: which of the entries on "samples" the ledger has not put there. ARGV: group id, entry id, group id, ...
-- Returns their places, from 0. An entry that has left the stream since it was read is none of them.
local found, ids = {}, {}
for i = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
for i, entry in ipairs(values_of(SAMPLE, ids)) do
  local read = ARGV[2 * i]
  if entry ~= read and #redis.call('XRANGE', SAMPLES, read, read) > 0 then found[#found + 1] = i - 1 end
end
return found
