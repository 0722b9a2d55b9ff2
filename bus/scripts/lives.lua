-- lives: ARGV is name, incarnation, name, ...: each is in that life from now on, unless KEYS[1] has a later one.
redis.call('DEL', KEYS[1] .. ':none') -- a write that needs no memory, first: it passes also where memory is full
for i = 1, #ARGV, 2 do
  local life = string.match(redis.call('HGET', KEYS[1], ARGV[i]) or '', '^%d+$')
  if not life or tonumber(life) < tonumber(ARGV[i + 1]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return 1
