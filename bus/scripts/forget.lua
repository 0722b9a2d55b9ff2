-- forget: delete fields of the hash KEYS[1] that still have the value they were refused for. ARGV: field, value, ...
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return 1
