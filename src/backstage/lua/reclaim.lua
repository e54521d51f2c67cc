-- reclaim: deliveries whose holder gave them back or died, into the caller's hands. One stream a call.
--
-- KEYS  [1] stream
-- ARGV  [1] {group, consumer, idle ms, idle ms for consumers without `~`, room, cursor, latest, heal (1 or 0)}
--       idle -1: only what was released; latest: server ms after which the clock must have jumped, 0 for no bound
-- Returns {cursor, entries {id, delivery count, fields, own (1 or 0)}, gone, now}; cursor '-' at the end of the list,
--         'NOGROUP', or 'JUMPED' where the clock did (nothing is taken then)
--
-- Consumers without `~` in their names are other SDKs': they don't renew, so they get longer. An entry that is the
-- caller's own keeps its count: it is no crash.
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local group, me, idle, foreign, room, cursor, latest, heal = unpack(b)
local t = call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out, gone, seen = {}, 0, {}
local stamp = string.format('%.0f', now)
if latest > 0 and now > latest then return {'JUMPED', out, 0, stamp} end

local function claim(p)
  local id, own, n = p[1], p[2] == me, p[4]
  local e
  if own then e = call('XCLAIM', KEYS[1], group, me, 0, id, 'RETRYCOUNT', n)
  else e = call('XCLAIM', KEYS[1], group, me, 0, id); n = n + 1 end
  seen[id] = true
  if e[1] and e[1][2] then out[#out + 1] = {id, n, e[1][2], own and 1 or 0} else gone = gone + 1 end
end

if redis.pcall('XPENDING', KEYS[1], group).err then return {'NOGROUP', out, 0, stamp} end
for _, p in ipairs(call('XPENDING', KEYS[1], group, '-', '+', room, '~released')) do claim(p) end
if idle < 0 then return {'-', out, gone, stamp} end

while #out < room do
  local page = call('XPENDING', KEYS[1], group, 'IDLE', heal == 1 and 0 or idle, cursor, '+', 100)
  for _, p in ipairs(page) do
    if #out >= room then return {cursor, out, gone, stamp} end
    cursor = '(' .. p[1]
    if heal == 1 and p[3] == 0 then        -- the clock went back: its idle time would stand still until it caught up
      call('XCLAIM', KEYS[1], group, p[2], 0, p[1], 'JUSTID')
    elseif not seen[p[1]] and p[3] >= idle and (string.find(p[2], '~', 1, true) or p[3] >= foreign) then claim(p) end
  end
  if #page < 100 then return {'-', out, gone, stamp} end
end
return {cursor, out, gone, stamp}
