-- survey: how many jobs of one queue wait, run and are dead, at one moment. Writes nothing.
--
-- KEYS  [1] stream  [2] dead letter
-- ARGV  [1] {group, most entries to count on either side of the last delivered one}
-- Returns {waiting, exact (1 or 0), running, dead, entry id of the oldest that waits or '', now in ms},
--         or {what is wrong with a key}
--
-- What was given back (`~released`) waits. The server's own `lag` is asked last: it is nil or wrong where entries that
-- nobody had read were deleted, and on Redis 7.0 it stays wrong.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local group, most = b[1], b[2]
local t = call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
for i = 1, 2 do
  local kind = call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= 'stream' then
    return {'the key ' .. KEYS[i] .. ' holds a ' .. kind .. ', not a stream'}
  end
end
local length, dead = call('XLEN', KEYS[1]), call('XLEN', KEYS[2])

local last, lag, pending, released, oldest = '0-0', false, 0, 0, ''
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])   -- an error where there is no such key
for i = 1, groups.err and 0 or #groups do
  local info = {}
  for j = 1, #groups[i], 2 do info[groups[i][j]] = groups[i][j + 1] end
  if info.name == group then last, lag, pending = info['last-delivered-id'], info.lag, info.pending end
end
if pending > 0 then
  for _, c in ipairs(call('XPENDING', KEYS[1], group)[4]) do
    if c[1] == '~released' then released = tonumber(c[2]) end
  end
  if released > 0 then oldest = call('XPENDING', KEYS[1], group, '-', '+', 1, '~released')[1][1] end
end

local function count(from, to)             -- how many entries, or nil where there are too many to look at
  local n = 0
  while n < most do
    local page = call('XRANGE', KEYS[1], from, to, 'COUNT', 100)
    n = n + #page
    if #page < 100 then return n end
    from = '(' .. page[100][1]
  end
end

local waiting, exact = 0, 1
local first, following = call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1], call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
if following then
  if first[1] == following[1] then waiting = length
  else
    local before = count('-', last)
    waiting = before and length - before or count('(' .. last, '+') or lag
    if not waiting then waiting, exact = length - math.max(pending, most), 0 end
  end
  if oldest == '' then oldest = following[1] end
end
return {waiting + released, exact, pending - released, dead, oldest, now}
