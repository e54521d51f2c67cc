-- routes: to which queues the members of a set (`scheduled`, `retries`) go, by the rule of promote. Writes nothing.
--
-- KEYS  [1] the set
-- ARGV  [1] {prefix, first rank (-1: take them at random), how many}
-- Returns {queue, how many, queue, ...}; what promote would refuse counts for `default`, whose dead letter it goes to
local call, b = redis.call, cmsgpack.unpack(ARGV[1])
local prefix, from, most = b[1] .. ':', b[2], b[3]
local members
if from < 0 then members = call('ZRANDMEMBER', KEYS[1], most)
else members = call('ZRANGE', KEYS[1], from, from + most - 1) end

local function queue(member)
  local ok, job = pcall(cjson.decode, member)
  if not ok or type(job) ~= 'table' then return 'default' end
  if type(job.streamKey) == 'string' then
    local found = string.sub(job.streamKey, 1, #prefix) == prefix and string.sub(job.streamKey, #prefix + 1)
    return found and found ~= '' and not string.find(found, ':dead%-letter$') and found or 'default'
  end
  local priority = job.priority
  return type(priority) == 'string' and priority ~= '' and priority or 'default'
end

local found, out = {}, {}
for _, member in ipairs(members) do
  local name = queue(member)
  found[name] = (found[name] or 0) + 1
end
for name, n in pairs(found) do out[#out + 1] = name; out[#out + 1] = n end
return out
