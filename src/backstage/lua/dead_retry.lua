-- dead_retry: jobs out of a dead letter and back into their queue, as new entries of the same job.
--
-- KEYS  [1] dead letter  [2] stream
-- ARGV  [1] {queue, {entry id, ...}, from, to, limit, {name of a field that doesn't travel, ...}}
--       without ids: the entries from `from` to `to`, at most `limit`
-- Returns {retried, where to go on or '' at the end, entry ids that are no job, ...}
--
-- Bytes stay as they are. A job moves in one step: added first, for that may be refused (memory full), then deleted.
-- What has no task or payload (`raw`: it never was a job), or more fields than Lua can pass on, stays where it is.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local queue, ids, from, to, limit = b[1], b[2], b[3], b[4], b[5]
local dropped, out = {}, {0, ''}
for _, name in ipairs(b[6]) do dropped[name] = true end
for i = 1, 2 do
  local kind = call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= 'stream' then
    return redis.error_reply('WRONGTYPE the key ' .. KEYS[i] .. ' holds a ' .. kind)
  end
end

local function retry(id, flat)
  local job, rest = {}, {}
  for i = 1, #flat, 2 do
    local name = flat[i]
    job[name] = job[name] or flat[i + 1]
  end
  if not job.taskName or not job.payload or #flat > 7000 then
    out[#out + 1] = id
    return
  end
  job.jobId = job.jobId or queue .. ':' .. (job.originalId or id)
  for _, name in ipairs({'taskName', 'payload', 'enqueuedAt', 'jobId'}) do   -- first, in the order of every entry
    if job[name] then rest[#rest + 1] = name; rest[#rest + 1] = job[name]; dropped[name] = true end
  end
  for i = 1, #flat, 2 do
    if not dropped[flat[i]] then rest[#rest + 1] = flat[i]; rest[#rest + 1] = flat[i + 1] end
  end
  call('XADD', KEYS[2], '*', unpack(rest))
  call('XDEL', KEYS[1], id)
  out[1] = out[1] + 1
end

if #ids > 0 then
  for _, id in ipairs(ids) do
    local e = call('XRANGE', KEYS[1], id, id)[1]
    if e and e[2] then retry(id, e[2]) end
  end
  return out
end
for _ = 1, limit do                        -- one at a time: bodies may be large
  local e = call('XRANGE', KEYS[1], from, to, 'COUNT', 1)[1]
  if not e then return out end
  from = '(' .. e[1]
  retry(e[1], e[2])
end
out[2] = from
return out
