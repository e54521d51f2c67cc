-- send: a message for every live worker.
--
-- KEYS  [1] marker of this call  [2] broadcast
-- ARGV  [1] {marker ttl in ms, entries to keep, task, payload}
-- Returns the entry's id
--
-- The marker keeps the answer, so that a call repeated after a lost reply answers the same and sends nothing.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local seen = call('GET', KEYS[1])
if seen then return seen end
local kind = call('TYPE', KEYS[2]).ok
if kind ~= 'none' and kind ~= 'stream' then
  return redis.error_reply('WRONGTYPE the key ' .. KEYS[2] .. ' holds a ' .. kind)
end
local t = call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local id = call('XADD', KEYS[2], 'MAXLEN', '~', b[2], '*', 'taskName', b[3], 'payload', b[4], 'enqueuedAt', now)
call('SET', KEYS[1], id, 'PX', b[1])
return id
