-- finish: what became of deliveries, made durable. The first finisher of an entry wins, and only its effects happen.
--
-- KEYS  every key that an item names, by number
-- ARGV  [1] {group, consumer, delete (1 or 0), control channel, plain, items}
--       plain: {stream, stats, {entry id, ...}, stream, stats, ...} runs that succeeded and ask for nothing more
--       item: {kind, stream, stats, entry id, delivery count, job id to verify or '', ...} and then
--         'done'      retries or scheduled key, {next job, ...}: as a run of enqueue.lua with all its eight parts
--         'again'     retries key, delay, member
--         'dead'      dead letter key, {field, value, ...} to add, {field, value, ...} where the entry is gone
--         'released'  nothing more
-- Returns {plain not settled here, verdict per item ...}: 1 settled, 0 not ours (settled before, maybe by us), or the error
--
-- XACK answers 1 to exactly one caller. It is the first write: it works when memory is full, and what follows it in the
-- script then works too. Nothing may fail after it, so the type of every key is looked at before.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local group, me, delete = b[1], b[2], b[3] == 1
local t = call('TIME')
local ms = t[1] * 1000 + math.floor(t[2] / 1000)
local now, kinds, out = string.format('%.0f', ms), {}, {0}

local function wrong(key, kind)
  kinds[key] = kinds[key] or call('TYPE', KEYS[key]).ok
  local found = kinds[key]
  return found ~= 'none' and found ~= kind and 'WRONGTYPE the key ' .. KEYS[key] .. ' holds a ' .. found
end

local function count(stats, what, n)
  if redis.pcall('HINCRBY', KEYS[stats], what, n) == n then call('EXPIRE', KEYS[stats], 7200) end
end

for i = 1, #b[5], 3 do
  local key, stats, ids, acked = b[5][i], b[5][i + 1], b[5][i + 2], 0
  if not wrong(key, 'stream') then
    acked = call('XACK', KEYS[key], group, unpack(ids))
    if acked == #ids and delete then call('XDEL', KEYS[key], unpack(ids)) end
    -- Fewer: somebody settled some, and a group that was made again would run them once more; or it has yet to deliver some.
    local g = acked < #ids and redis.pcall('XINFO', 'GROUPS', KEYS[key])[1]
    for _, id in ipairs(delete and g and g[2] == group and ids or {}) do  -- g[8]: the last one that it delivered
      if call('XRANGE', KEYS[key], id, g[8], 'COUNT', 1)[1] then call('XDEL', KEYS[key], id) end
    end
    if acked > 0 then count(stats, 'done', acked) end
  end
  out[1] = out[1] + #ids - acked
end

local function ours(item)                  -- fenced: still pending for this consumer, by the delivery that we hold
  local p = redis.pcall('XPENDING', KEYS[item[2]], group, item[4], item[4], 1)
  return not p.err and #p == 1 and p[1][2] == me and p[1][4] == item[5]
end

local function same(item)                  -- after a restart that lost writes, an entry id can be another job's
  if item[6] == '' then return true end
  local e = call('XRANGE', KEYS[item[2]], item[4], item[4])
  if not e[1] then return false end
  for i = 1, #e[1][2], 2 do
    if e[1][2][i] == 'jobId' and e[1][2][i + 1] ~= '' then return e[1][2][i + 1] == item[6] end
  end
  return string.sub(item[6], -#item[4] - 1) == ':' .. item[4]
end

local function take(item)
  if call('XACK', KEYS[item[2]], group, item[4]) ~= 1 then return false end
  if delete then call('XDEL', KEYS[item[2]], item[4]) end
  return true
end

local apply = {}

function apply.done(item)
  for _, n in ipairs(item[8]) do
    local error = n[5] > 0 and wrong(item[7], 'zset') or n[5] == 0 and wrong(n[1], 'stream')
    if error then return error end
  end
  if not take(item) then return 0 end
  for _, n in ipairs(item[8]) do
    if n[7] == 0 or call('SET', KEYS[n[7]], n[3][2], 'NX', 'PX', n[8]) then
      if n[5] > 0 then call('ZADD', KEYS[item[7]], string.format('%.0f', ms + n[5]), n[6])
      else
        call('XADD', KEYS[n[1]], '*', 'taskName', n[2], 'payload', n[3][1], 'enqueuedAt', now, 'jobId', n[3][2], unpack(n[4]))
      end
    end
  end
  return 1
end

function apply.again(item)
  local error = wrong(item[7], 'zset')
  if error then return error end
  if not ours(item) or not take(item) then return 0 end
  call('ZADD', KEYS[item[7]], string.format('%.0f', ms + item[8]), item[9])
  return 1
end

function apply.dead(item)
  local error = wrong(item[7], 'stream')
  if error then return error end
  local e = call('XRANGE', KEYS[item[2]], item[4], item[4])
  local fields = e[1] and e[1][2] or item[9]
  for i = #fields, 7801, -1 do fields[i] = nil end  -- Lua can't pass 8000 arguments on: it would fail after the XACK
  if not ours(item) or not take(item) then return 0 end
  for _, part in ipairs(item[8]) do fields[#fields + 1] = part end
  call('XADD', KEYS[item[7]], '*', 'deadLetteredAt', now, unpack(fields))
  return 1
end

function apply.released(item)
  if not ours(item) then return 0 end
  call('XCLAIM', KEYS[item[2]], group, '~released', 0, item[4], 'TIME', 0, 'RETRYCOUNT', math.max(item[5] - 1, 0), 'JUSTID')
  return 1
end

local released = false
for i, item in ipairs(b[6]) do
  local verdict = wrong(item[2], 'stream') or not same(item) and 0 or apply[item[1]](item)
  if verdict == 1 then count(item[3], item[1], 1) end
  released = released or verdict == 1 and item[1] == 'released'
  out[i + 1] = verdict
end
if released then redis.pcall('PUBLISH', b[4], 'released') end
return out
