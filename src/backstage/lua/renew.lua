-- renew: the leases of all that a worker holds, and which of them it has lost.
--
-- KEYS  streams
-- ARGV  [1] {group, consumer, held}: held is {entry id, delivery count, entry id, ...} for each of KEYS
-- Returns the lost ones: {number of KEYS, entry id, number of KEYS, ...}
--
-- A lease is ours while the entry is pending for us *with the delivery count that we hold*. XCLAIM with JUSTID resets
-- its idle time and leaves the count. An entry whose body somebody deleted is lost too.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local group, me, lost = b[1], b[2], {}
for k, held in ipairs(b[3]) do
  local mine, from = {}, '-'
  repeat
    local page = redis.pcall('XPENDING', KEYS[k], group, from, '+', 1000, me)
    if page.err then page = {} end
    for _, p in ipairs(page) do mine[p[1]] = p[4]; from = '(' .. p[1] end
  until #page < 1000
  for at = 1, #held, 1000 do
    local keep, kept = {}, {}
    for i = at, math.min(at + 999, #held), 2 do
      if mine[held[i]] == held[i + 1] then keep[#keep + 1] = held[i] end
    end
    if #keep > 0 then
      keep[#keep + 1] = 'JUSTID'
      for _, id in ipairs(call('XCLAIM', KEYS[k], group, me, 0, unpack(keep))) do kept[id] = true end
    end
    for i = at, math.min(at + 999, #held), 2 do
      if not kept[held[i]] then lost[#lost + 1] = k; lost[#lost + 1] = held[i] end
    end
  end
end
return lost
