-- cron: one slot of one schedule. Whoever asks first has its job added; the others are told that it is.
--
-- KEYS  [1] cron  [2] stream
-- ARGV  [1] {schedule, slot in ms, interval in ms, task, payload, id}
--       slot 0: only record that the schedule was seen; from now on its slots count
--       task '': pass over, which records the slot and adds no job
-- Returns {1 done by this call | 0 done before | -1 the slot is later than the clock, last slot on record, now in ms}
--
-- A record further in the future than an interval was written while the clock ran ahead: it counts as none.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local name, slot, interval, task = b[1], b[2], b[3], b[4]
for i, kind in ipairs({'hash', 'stream'}) do
  local found = call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= kind then
    return redis.error_reply('WRONGTYPE the key ' .. KEYS[i] .. ' holds a ' .. found)
  end
end
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function answer(verdict, last)
  return {verdict, string.format('%.0f', last), string.format('%.0f', now)}
end

local record = call('HGET', KEYS[1], name)
local last = record and string.match(record, '^%d+$') and tonumber(record)
if last and last > now + interval then last = nil end
if slot == 0 then
  if last then return answer(0, last) end
  slot, task = now, ''
elseif slot > now then return answer(-1, last or now)
elseif last and slot <= last then return answer(0, last) end

local stamp = string.format('%.0f', now)
if task ~= '' then
  call('XADD', KEYS[2], '*', 'taskName', task, 'payload', b[5], 'enqueuedAt', stamp, 'jobId', b[6])
end
call('HSET', KEYS[1], name, string.format('%.0f', slot))
return answer(1, slot)
