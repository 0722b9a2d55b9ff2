-- room: what admission looks at, in one consistent view: {last step, next position, how many groups are open, how many prompts
-- wait to be dealt again}.
local open = number(COUNT, 'waiting') + number(COUNT, 'in_flight') + number(COUNT, 'ready')
return { number(META, 'last_step'), number(META, 'next_position'), open, redis.call('LLEN', AGAIN) }
