-- recover: what the group says this consumer holds, and it does not know of: a read's reply was lost on the way.
--
-- KEYS  [1] stream
-- ARGV  [1] {group, consumer, {entry id held, ...}}
-- Returns entries {id, delivery count, fields}; the count is kept, the lease is fresh
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local held, out, from = {}, {}, '-'
for _, id in ipairs(b[3]) do held[id] = true end
while true do
  local page = redis.pcall('XPENDING', KEYS[1], b[1], from, '+', 500, b[2])
  if page.err then return out end
  for _, p in ipairs(page) do
    from = '(' .. p[1]
    if not held[p[1]] then
      local e = call('XCLAIM', KEYS[1], b[1], b[2], 0, p[1], 'RETRYCOUNT', p[4])
      if e[1] and e[1][2] then out[#out + 1] = {p[1], p[4], e[1][2]} end
    end
  end
  if #page < 500 then return out end
end
