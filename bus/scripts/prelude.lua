-- Names and moves shared by every ledger script. KEYS[1] is the run's prefix.
-- A group is in exactly one state: w(aiting), f (in flight), r(eady), b(atched); trained and dropped groups are counters.
local P = KEYS[1]
local COUNT, STATE, LEASE, ORDER = P .. 'l:count', P .. 'l:state', P .. 'l:lease', P .. 'l:order'
local TICKET, READY, SAMPLE, META = P .. 'l:ticket', P .. 'l:ready', P .. 'l:sample', P .. 'l:meta'
local PAYLOAD, AHEAD = P .. 'l:payload', P .. 'l:ahead'
local TICKETS, SAMPLES, BATCHES = P .. 'tickets', P .. 'samples', P .. 'batches'
local NAME = { w = 'waiting', f = 'in_flight', r = 'ready', b = 'batched' }

local function number(hash, field)
  return tonumber(redis.call('HGET', hash, field) or '0')
end

local function move(gid, from, to)
  redis.call('HINCRBY', COUNT, NAME[from], -1)
  redis.call('HINCRBY', COUNT, NAME[to], 1)
  redis.call('HSET', STATE, gid, to)
end

local function forget_ticket(gid)
  local entry = redis.call('HGET', TICKET, gid)
  if entry then
    redis.call('XACK', TICKETS, 'rollout', entry)
    redis.call('XDEL', TICKETS, entry)
    redis.call('HDEL', TICKET, gid)
  end
  redis.call('HDEL', LEASE, gid)
end

local function forget_payload(gid)
  local payload = redis.call('HGET', PAYLOAD, gid)
  if payload then redis.call('DEL', payload) end
  local entry = redis.call('HGET', SAMPLE, gid)
  if entry then redis.call('XDEL', SAMPLES, entry) end
  redis.call('HDEL', PAYLOAD, gid)
  redis.call('HDEL', SAMPLE, gid)
  redis.call('HDEL', READY, gid)
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
