-- promote: members whose time has come, from the two sets into their streams.
--
-- KEYS  [1] scheduled  [2] retries  [3] dead letter of default  [4 ...] streams that may be written
-- ARGV  [1] {prefix, limit a set, {reserved name, ...}, {field, ...} in the order in which they are written}
-- Returns {promoted, next due in ms or '', streams that were missing from KEYS, now in ms, more due (1 or 0)}
--
-- A member that is no job, or points to where no job may go, is put into the dead letter with its raw bytes; it never
-- blocks those behind it. Numbers are written with %.0f, never by tostring.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local prefix, limit, order = b[1] .. ':', b[2], b[4]
local reserved, known, fits, missing, listed = {}, {}, {}, {}, {}
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local stamp, moved, more = string.format('%.0f', now), 0, 0
for _, name in ipairs(b[3]) do reserved[name] = true end
for _, name in ipairs(order) do listed[name] = true end
for i = 4, #KEYS do known[KEYS[i]] = true end

local function writable(key)
  if fits[key] == nil then
    local kind = call('TYPE', key).ok
    fits[key] = kind == 'none' or kind == 'stream'
  end
  return fits[key]
end

local function text(v)
  if type(v) == 'string' then return v end
  if type(v) == 'number' and v == math.floor(v) and math.abs(v) < 2^53 then return string.format('%.0f', v) end
end

local function stream(job)                 -- other SDKs' queues may have any name; only what is no queue is refused
  local key = job.streamKey
  if type(key) ~= 'string' then key = prefix .. (text(job.priority) or 'default') end
  if string.sub(key, 1, #prefix) ~= prefix then return nil end
  local queue = string.sub(key, #prefix + 1)
  if queue == '' or #queue > 512 or string.find(queue, ':dead%-letter$') then return nil end
  return not reserved[string.match(queue, '^[^:]*')] and key or nil
end

local function fields(job)
  local f = {}
  for _, name in ipairs(order) do
    local v = text(job[name])
    if name == 'payload' then v = v or 'null' end
    if v then f[#f + 1] = name; f[#f + 1] = v end
  end
  for name, v in pairs(job) do             -- what newer or other SDKs add travels on
    if type(v) == 'string' and not listed[name] and name ~= 'streamKey' and name ~= 'priority' then
      f[#f + 1] = name; f[#f + 1] = v
    end
  end
  return f
end

local function promote(set, member)
  local ok, job = pcall(cjson.decode, member)
  ok = ok and type(job) == 'table' and type(job.taskName) == 'string'
  ok = ok and (job.payload == nil or type(job.payload) == 'string')
  local key = ok and stream(job) or nil
  if key and not known[key] then
    missing[key] = true
    return
  end
  local f = key and fields(job)
  if not f or #f > 7900 then               -- Lua can't pass 8000 arguments on: it would fail after the ZREM
    key, f = KEYS[3], {'raw', member, 'reason', 'malformed', 'error', 'a scheduled member that is no job',
                       'queue', 'default', 'deadLetteredAt', stamp}
  end
  call('ZREM', set, member)                -- the first write: it works when memory is full
  local r = writable(key) and redis.pcall('XADD', key, '*', unpack(f)) or {err = 'WRONGTYPE'}
  if type(r) == 'table' and r.err then call('ZADD', set, string.format('%.0f', now + 60000), member)
  else moved = moved + 1 end
end

local due = ''
for i = 1, 2 do
  if call('TYPE', KEYS[i]).ok == 'zset' then
    local members = call('ZRANGEBYSCORE', KEYS[i], '-inf', stamp, 'LIMIT', 0, limit)
    for _, member in ipairs(members) do promote(KEYS[i], member) end
    if #members == limit then more = 1 end
    local first = call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')[2]
    if first and (due == '' or tonumber(first) < tonumber(due)) then due = first end
  end
end
local keys = {}
for key in pairs(missing) do keys[#keys + 1] = key end
return {moved, due, keys, stamp, more}
