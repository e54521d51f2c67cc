-- enqueue: a batch of jobs into their streams, or into `scheduled` where they have a delay.
--
-- KEYS  [1] marker of this call  [2] scheduled  [3 ...] streams and dedupe keys, by number
-- ARGV  [1] {marker ttl in ms, runs, control channel}
--       a run is jobs of one queue and one task, in order: {key, task, {payload, id, payload, id, ...}}
--       or one job with options: {key, task, {payload, id}, option fields, delay, member, dedupe key, dedupe ttl}
--       (keys are numbers of KEYS; delay in ms, 0 for none; member '' and dedupe key 0 where there is none)
-- Returns what was not added: {position, 0 (a duplicate) or the error, position, ...}
--
-- The marker is the first write, so that a full or read-only server refuses the whole call there; it then keeps the
-- answer, so that a call repeated after a lost reply answers the same and adds nothing. Whoever promotes is told on the
-- control channel when a job is due before all others; a server that forbids that only makes it up to a second later.
local call, pcall, b = redis.call, redis.pcall, cmsgpack.unpack(ARGV[1])
local first = pcall('SET', KEYS[1], '', 'NX', 'PX', b[1])
if not first or first.err then
  local seen = call('GET', KEYS[1])
  if seen == '' then return redis.error_reply('INCOMPLETE an earlier try of this call stopped half-way') end
  return seen and cmsgpack.unpack(seen) or first
end
local t = call('TIME')
local ms = t[1] * 1000 + math.floor(t[2] / 1000)
local now, out, at, soonest = string.format('%.0f', ms), {}, 0, nil

local function refuse(why, key)
  if string.sub(why, 1, 9) == 'WRONGTYPE' then why = 'WRONGTYPE the key ' .. key .. ' holds a ' .. call('TYPE', key).ok end
  out[#out + 1] = at; out[#out + 1] = why
end

for _, run in ipairs(b[2]) do
  local stream, task, jobs = KEYS[run[1]], run[2], run[3]
  if #run == 3 then
    for i = 1, #jobs, 2 do
      at = at + 1
      local r = pcall('XADD', stream, '*', 'taskName', task, 'payload', jobs[i], 'enqueuedAt', now, 'jobId', jobs[i + 1])
      if type(r) == 'table' then refuse(r.err, stream) end
    end
  else
    at = at + 1
    local delay, dedupe, due, r = run[5], KEYS[run[7]], ms + run[5], nil
    if dedupe and not call('SET', dedupe, jobs[2], 'NX', 'PX', run[8]) then out[#out + 1] = at; out[#out + 1] = 0
    elseif delay > 0 then r = pcall('ZADD', KEYS[2], string.format('%.0f', due), run[6])
    else
      r = pcall('XADD', stream, '*', 'taskName', task, 'payload', jobs[1], 'enqueuedAt', now, 'jobId', jobs[2], unpack(run[4]))
    end
    if type(r) == 'table' then
      if dedupe then call('DEL', dedupe) end
      refuse(r.err, delay > 0 and KEYS[2] or stream)
    elseif r and delay > 0 then soonest = math.min(soonest or due, due) end
  end
end
if soonest and soonest <= tonumber(call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]) then
  pcall('PUBLISH', b[3], 'due')
end
call('SET', KEYS[1], cmsgpack.pack(out), 'PX', b[1])
return out
