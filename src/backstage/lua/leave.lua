-- leave: a worker's consumer out of the groups, where it holds nothing, and the worker out of the registry.
--
-- KEYS  [1] workers  [2] this worker's hash  [3 ...] streams
-- ARGV  [1] {group, consumer}
-- Returns how many groups it still holds deliveries of (they are reclaimed when its lease ends)
local call, b, left = redis.call, cmsgpack.unpack(ARGV[1]), 0
for i = 3, #KEYS do
  local pending = redis.pcall('XPENDING', KEYS[i], b[1], '-', '+', 1, b[2])
  if pending[1] then left = left + 1
  elseif not pending.err then call('XGROUP', 'DELCONSUMER', KEYS[i], b[1], b[2]) end
end
redis.pcall('ZREM', KEYS[1], b[2])
call('DEL', KEYS[2])
return left
