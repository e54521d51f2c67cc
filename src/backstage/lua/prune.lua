-- prune: what nobody needs any more in one stream: consumers that are gone, entries that others acked and left.
--
-- KEYS  [1] stream  [2] workers
-- ARGV  [1] {group, idle ms after which a dead worker's consumer goes, idle ms for other SDKs' consumers, trim (1 or 0)}
-- Returns {consumers deleted, entries trimmed, groups of the stream}
--
-- A consumer goes only while it holds nothing: DELCONSUMER throws away what is pending. `~released` stays.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local group, idle, foreign, deleted, trimmed = b[1], b[2], b[3], 0, 0
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then return {0, 0, 0} end
local found = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], group)
if found.err then return {0, 0, #groups} end
for _, c in ipairs(found) do
  local info = {}
  for i = 1, #c, 2 do info[c[i]] = c[i + 1] end
  local ours = string.find(info.name, '~', 1, true)
  local live = ours and redis.pcall('ZSCORE', KEYS[2], info.name)
  if live and type(live) == 'table' then live = nil end
  if info.pending == 0 and info.name ~= '~released' and not live and info.idle > (ours and idle or foreign) then
    call('XGROUP', 'DELCONSUMER', KEYS[1], group, info.name)
    deleted = deleted + 1
  end
end
if b[4] == 1 and #groups == 1 then
  local pending, last = call('XPENDING', KEYS[1], group), '0-0'
  for i = 1, #groups[1], 2 do if groups[1][i] == 'last-delivered-id' then last = groups[1][i + 1] end end
  local ms, seq = string.match(last, '^(%d+)-(%d+)$')
  local past = ms .. '-' .. (#seq > 15 and seq or string.format('%.0f', seq + 1))
  if pending[1] > 0 then                   -- the lower of both: after an XGROUP SETID what is between runs again
    local pms, pseq = string.match(pending[2], '^(%d+)-(%d+)$')
    local d = pms - ms
    if d < 0 or d == 0 and pseq - seq <= 0 then past = pending[2] end
  end
  trimmed = call('XTRIM', KEYS[1], 'MINID', past)
end
return {deleted, trimmed, #groups}
