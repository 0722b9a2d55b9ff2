-- Names and moves for the ledger's scripts, each of which gets those that it uses (bus/script_text.py). KEYS[1] is the run's
-- prefix.
-- A group is in exactly one state: w(aiting), f (in flight), r(eady), b(atched); trained and dropped groups are counters.
local P = KEYS[1]
local COUNT = P .. 'l:count'
local STATE = P .. 'l:state'
local LEASE = P .. 'l:lease'
local ORDER = P .. 'l:order'
local TICKET = P .. 'l:ticket'
local SAMPLE = P .. 'l:sample'
local META = P .. 'l:meta'
local PAYLOAD = P .. 'l:payload'
local AHEAD = P .. 'l:ahead'
local AGAIN = P .. 'l:again' -- the ids under which prompts are to be dealt again, who has waited longest first
local BATCH = P .. 'l:batch'
local QUARANTINE = P .. 'l:quarantine' -- the groups of recorded steps that are no part of them any more, and why
local ATTEMPTS = P .. 'l:attempts'
local CLAIM = P .. 'l:claim'
local CAUSES = P .. 'l:causes'
local TICKETS = P .. 'tickets'
local SAMPLES = P .. 'samples'
local BATCHES = P .. 'batches'
local EVENTS = P .. 'events'
local DEAD = P .. 'dead'
local NAME = { w = 'waiting', f = 'in_flight', r = 'ready', b = 'batched' }

-- A write that needs no memory, first: Redis then lets the script finish even when its memory is full. Whatever
-- frees memory in the end must go on; admission alone is refused (it does not call this).
local function even_if_full()
  redis.call('HDEL', LEASE, '')
end

local function number(hash, field)
  return tonumber(redis.call('HGET', hash, field) or '0')
end

local function count(place, more)
  if more ~= 0 then redis.call('HINCRBY', COUNT, place, more) end -- there is a -0 in Lua, and none in Redis
end

local function move(gid, from, to)
  redis.call('HINCRBY', COUNT, NAME[from], -1)
  redis.call('HINCRBY', COUNT, NAME[to], 1)
  redis.call('HSET', STATE, gid, to)
end

local function append(items, one, other)
  local last = #items
  items[last + 1], items[last + 2] = one, other
end

-- A command, its key and a consumer group, as far as it has these, on all `items`, some at a time: Lua hands over no more than a
-- few thousand at once.
local function with_all(items, command, key, group)
  for from = 1, #items, 1000 do
    local upto = math.min(from + 999, #items)
    if group then
      redis.call(command, key, group, unpack(items, from, upto))
    elseif key then
      redis.call(command, key, unpack(items, from, upto))
    else
      redis.call(command, unpack(items, from, upto))
    end
  end
end

-- What the hash `key` holds for `ids`, in order; false where it holds nothing.
local function values_of(key, ids)
  if #ids > 0 and #ids <= 1000 then return redis.call('HMGET', key, unpack(ids)) end
  local values = {}
  for from = 1, #ids, 1000 do
    local some = redis.call('HMGET', key, unpack(ids, from, math.min(from + 999, #ids)))
    for i = 1, #some do values[from + i - 1] = some[i] end
  end
  return values
end

-- Those of `values` that are there.
local function some_of(values)
  local some = {}
  for _, value in ipairs(values) do
    if value then some[#some + 1] = value end
  end
  return some
end

-- The array in a message.
local function unpacked(message)
  return cmsgpack.unpack(string.sub(message, 2))
end

-- The transition, on the stream of events, in the same atomic script. `t` has the fields of bus.messages.Transition.
-- Returns the message.
local function record(kind, ids, t)
  local message = pack_transition({
    kind = kind, group_ids = ids, by = t.by or '', step = t.step or 0, reason = t.reason or '', detail = t.detail or '',
    attempt = t.attempt or 0, lengths = t.lengths or {},
    group = cjson.null, -- which cmsgpack packs as nil
    max_lag = t.max_lag or -1, masked_tokens = t.masked_tokens or -1,
  })
  redis.call('XADD', EVENTS, '*', 'm', message)
  return message
end

-- `entries`: those of their tickets, as far as they have one.
local function forget_tickets(ids, entries)
  with_all(entries, 'XACK', TICKETS, 'rollout')
  with_all(entries, 'XDEL', TICKETS)
  for _, table in ipairs({ TICKET, LEASE, ATTEMPTS, CLAIM, CAUSES }) do with_all(ids, 'HDEL', table) end
end

local function forget_ticket(gid)
  forget_tickets({ gid }, { redis.call('HGET', TICKET, gid) or nil })
end

-- The last step that no learner can train again. Before it was written down, what was committed was forgotten.
local function forgotten_step()
  return tonumber(redis.call('HGET', META, 'forgotten_step') or redis.call('HGET', META, 'committed_step') or '0')
end

-- The groups of a step that is not forgotten.
local function groups_of(step)
  return unpacked(redis.call('HGET', BATCH, step))[BATCH_GROUP_IDS]
end

-- Record and payloads of a step leave, so that it can be trained no more.
local function forget_step(step)
  local ids = groups_of(step)
  with_all(some_of(values_of(PAYLOAD, ids)), 'DEL')
  with_all(ids, 'HDEL', PAYLOAD)
  with_all(ids, 'HDEL', QUARANTINE)
  redis.call('HDEL', BATCH, step)
end

-- The groups that ARGV names from `first` on, if all are ready and none is named twice; else nil.
local function ready_groups(first)
  local ids, named = {}, {}
  for i = first, #ARGV do
    if named[ARGV[i]] then return nil end
    named[ARGV[i]] = true
    ids[#ids + 1] = ARGV[i]
  end
  for _, state in ipairs(values_of(STATE, ids)) do
    if state ~= 'r' then return nil end
  end
  return ids
end

-- The ready groups `ids` are in the step, whose record is now `message`. Its transition says under
-- which bound, and whether the weights are held.
local function put_into(step, ids, message, kind)
  local states = {}
  for _, gid in ipairs(ids) do
    append(states, gid, 'b')
  end
  with_all(states, 'HSET', STATE)
  with_all(ids, 'ZREM', ORDER)
  count('ready', -#ids)
  count('batched', #ids)
  redis.call('HSET', BATCH, step, message)
  redis.call('XADD', BATCHES, 'MAXLEN', 1000, '*', 'm', message)
  local batch = unpacked(message)
  record(kind, ids, {
    step = step, detail = batch[BATCH_TICKS] == false and 'held' or '',
    max_lag = batch[BATCH_MAX_LAG], masked_tokens = batch[BATCH_MASKED_TOKENS],
  })
end

-- Response tokens of each sample of a group whose news is there.
local function lengths_of(gid)
  local entry = redis.call('HGET', SAMPLE, gid)
  local news = entry and redis.call('XRANGE', SAMPLES, entry, entry)[1]
  return news and unpacked(news[2][2])[READY_LENGTHS] or {}
end

-- The news that the group was published; its payload stays.
local function forget_news(gid)
  local entry = redis.call('HGET', SAMPLE, gid)
  if entry then redis.call('XDEL', SAMPLES, entry) end
  redis.call('HDEL', SAMPLE, gid)
end

local function forget_payload(gid)
  local payload = redis.call('HGET', PAYLOAD, gid)
  if payload then redis.call('DEL', payload) end
  redis.call('HDEL', PAYLOAD, gid)
  forget_news(gid)
end

local function requeue(gid)
  local entry = redis.call('HGET', TICKET, gid)
  local found = redis.call('XRANGE', TICKETS, entry, entry)
  redis.call('XACK', TICKETS, 'rollout', entry)
  redis.call('XDEL', TICKETS, entry)
  local again = redis.call('XADD', TICKETS, '*', unpack(found[1][2]))
  redis.call('HSET', TICKET, gid, again)
  redis.call('HDEL', LEASE, gid)
  move(gid, 'f', 'w')
end

-- Of which prompt the group is: the id is PROMPT-ATTEMPT.
local function prompt_of(gid)
  return string.match(gid, '^(.*)%-%d+$') or gid
end

-- The open group leaves undone, counted under `t.reason`; `t.again`: as which group its prompt waits to be dealt again, if that is
-- neither nil nor ''. Admission, which has a place more to give, is woken.
local function drop(gid, t)
  if t.again and t.again ~= '' then redis.call('RPUSH', AGAIN, t.again) end
  local state = redis.call('HGET', STATE, gid)
  if state == 'r' and not t.lengths then t.lengths = lengths_of(gid) end
  forget_ticket(gid)
  forget_payload(gid)
  redis.call('HDEL', STATE, gid)
  redis.call('ZREM', ORDER, gid)
  redis.call('HINCRBY', COUNT, NAME[state], -1)
  redis.call('HINCRBY', COUNT, 'dropped', 1)
  redis.call('HINCRBY', COUNT, 'dropped:' .. t.reason, 1)
  redis.call('XADD', BATCHES, 'MAXLEN', 1000, '*', 'm', record('dropped', { gid }, t))
end

-- Remember why an attempt came to nothing: one line each.
local function add_cause(gid, cause)
  local line = string.gsub(cause, '\n', ' ')
  local before = redis.call('HGET', CAUSES, gid)
  redis.call('HSET', CAUSES, gid, before and (before .. '\n' .. line) or line)
end

-- No further attempt: the group is dropped, and lies among the dead letters with its causes and its ticket.
local function bury(gid, t)
  local causes = {}
  for cause in string.gmatch(redis.call('HGET', CAUSES, gid) or '', '[^\n]+') do causes[#causes + 1] = cause end
  local entry = redis.call('HGET', TICKET, gid)
  local ticket = redis.call('XRANGE', TICKETS, entry, entry)[1][2][4]
  local letter = { group_id = gid, attempts = number(ATTEMPTS, gid), reason = t.reason, causes = causes }
  redis.call('XADD', DEAD, 'MAXLEN', '~', 10000, '*', 'm', pack_dead_letter(letter), 't', ticket)
  drop(gid, t)
end
