-- dead_purge: entries of a dead letter, deleted for good.
--
-- KEYS  [1] dead letter
-- ARGV  [1] {{entry id, ...}, to, limit}: without ids the oldest ones up to `to`, at most `limit`
-- Returns {deleted, more (1 or 0)}
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local ids, to, limit = b[1], b[2], b[3]
if #ids > 0 then return {call('XDEL', KEYS[1], unpack(ids)), 0} end
local from = '-'
for _ = 1, limit do                        -- one at a time: bodies may be large
  local e = call('XRANGE', KEYS[1], from, to, 'COUNT', 1)[1]
  if not e then break end
  from = '(' .. e[1]
  ids[#ids + 1] = e[1]
end
if #ids == 0 then return {0, 0} end
return {call('XDEL', KEYS[1], unpack(ids)), #ids == limit and 1 or 0}
