-- fence: before any other line of a script that changes something. The last of KEYS are the lives, the last two of ARGV who asks: a
-- name and an incarnation. Whoever has a successor is refused as a whole, with the incarnation of that; what is no number in
-- the lives replaces nobody.
do
  local incarnation = tonumber(table.remove(ARGV))
  local name = table.remove(ARGV)
  for _, life in ipairs(redis.call('HMGET', table.remove(KEYS), '*', name)) do
    local lives_on = string.match(life or '', '^%d+$')
    if lives_on and incarnation < tonumber(lives_on) then return redis.error_reply('REPLACED ' .. lives_on) end
  end
end
