-- extend: step ARGV[1], the last one, which has ARGV[2] groups on record, trains on the groups ARGV[4..], too; ARGV[3] is the record
-- with all of them. Written before they are trained. Returns 1; 2 if the step has another number of groups on record (read it); 0 if
-- it is not the last step or is committed, or a group is not ready or named twice.
local step, known = tonumber(ARGV[1]), tonumber(ARGV[2])
if step ~= number(META, 'last_step') or step <= number(META, 'committed_step') then return 0 end
if #groups_of(step) ~= known then return 2 end
local ids = ready_groups(4)
if not ids then return 0 end
even_if_full()
put_into(step, ids, ARGV[3], 'extended')
return 1
