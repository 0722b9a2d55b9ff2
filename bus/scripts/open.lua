-- open: what admission and selection look at, in one consistent view: {last step, next position, open ids in the order
-- they were dealt, their states}.
local ids = redis.call('ZRANGE', ORDER, 0, -1)
return { number(META, 'last_step'), number(META, 'next_position'), ids, values_of(STATE, ids) }
