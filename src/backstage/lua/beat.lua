-- beat: a worker is alive. Its entry in the registry lapses by itself when it stops beating.
--
-- KEYS  [1] workers  [2] this worker's hash
-- ARGV  [1] {consumer, ttl in ms, {field, value, ...}}
-- Returns now in ms
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
for i, kind in ipairs({'zset', 'hash'}) do
  local found = call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= kind then
    return redis.error_reply('WRONGTYPE the key ' .. KEYS[i] .. ' holds a ' .. found)
  end
end
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - b[2]))
call('ZADD', KEYS[1], string.format('%.0f', now), b[1])
call('PEXPIRE', KEYS[1], b[2])
call('HSET', KEYS[2], 'seen', string.format('%.0f', now), unpack(b[3]))
call('PEXPIRE', KEYS[2], b[2])
return string.format('%.0f', now)
