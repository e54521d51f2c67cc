-- enqueue: a batch of jobs into their streams, or into `scheduled` where they have a delay.
--
-- KEYS  [1] marker of this call  [2] scheduled  [3 ...] streams, then dedupe keys
-- ARGV  [1] {marker ttl in ms, how many streams, runs, control channel}
--       a run is jobs of one queue and one task, in order: {key, task, {payload, id, payload, id, ...}}
--       or one job with options: {key, task, {payload, id}, option fields, delay, member, dedupe key, dedupe ttl}
--       (keys are numbers of KEYS; delay in ms, 0 for none; member '' and dedupe key 0 where there is none)
-- Returns what was not added: {position, 0 (a duplicate) or the error, position, ...}
--
-- The marker is the first write, so that a full or read-only server refuses the whole call there; it then keeps the
-- answer, so that a call repeated after a lost reply answers the same and adds nothing. Whoever promotes is told on the
-- control channel when a job is due before all others; a server that forbids that only makes it up to a second later.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local seen = call('GET', KEYS[1])
if seen == '' then return redis.error_reply('INCOMPLETE an earlier try of this call stopped half-way') end
if seen then return cmsgpack.unpack(seen) end
local t = call('TIME')
local ms = t[1] * 1000 + math.floor(t[2] / 1000)
local now, wrong, out, at, soonest = string.format('%.0f', ms), {}, {}, 0, nil

for i = 2, 2 + b[2] do
  local kind = call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= (i == 2 and 'zset' or 'stream') then
    wrong[i] = 'WRONGTYPE the key ' .. KEYS[i] .. ' holds a ' .. kind
  end
end

local function refuse(error)
  out[#out + 1] = at; out[#out + 1] = error
end

local function add(key, task, payload, id, options)
  local r = redis.pcall('XADD', key, '*', 'taskName', task, 'payload', payload, 'enqueuedAt', now, 'jobId', id, unpack(options))
  return type(r) == 'table' and r.err
end

local none = {}
call('SET', KEYS[1], '', 'PX', b[1])
for _, run in ipairs(b[3]) do
  local key, task, jobs = run[1], run[2], run[3]
  if #run == 3 then
    for i = 1, #jobs, 2 do
      at = at + 1
      local error = wrong[key] or add(KEYS[key], task, jobs[i], jobs[i + 1], none)
      if error then refuse(error) end
    end
  else
    at = at + 1
    local delay, dedupe = run[5], KEYS[run[7]]
    local error = wrong[delay > 0 and 2 or key]
    if error then refuse(error)
    elseif dedupe and not call('SET', dedupe, jobs[2], 'NX', 'PX', run[8]) then refuse(0)
    else
      if delay > 0 then
        call('ZADD', KEYS[2], string.format('%.0f', ms + delay), run[6])
        soonest = math.min(soonest or ms + delay, ms + delay)
      else error = add(KEYS[key], task, jobs[1], jobs[2], run[4]) end
      if error then
        if dedupe then call('DEL', dedupe) end
        refuse(error)
      end
    end
  end
end
if soonest and soonest <= tonumber(call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]) then
  redis.pcall('PUBLISH', b[4], 'due')
end
call('SET', KEYS[1], cmsgpack.pack(out), 'PX', b[1])
return out
