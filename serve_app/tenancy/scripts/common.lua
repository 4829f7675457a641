-- What every script starts with: the key prefix, the clock, exact integers, the pool's figures.
-- KEYS[1] is `dr:{<pool>}:pool`; ARGV[1] is '' (Redis's own clock) or, in tests, microseconds.
-- Lua doubles are exact to 2^53, but tostring keeps 14 digits: numbers are written with `int`.

local P = string.sub(KEYS[1], 1, -5)
local call = redis.call
local CLASS = 'default'

local now
if ARGV[1] == '' then
  local t = call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
else
  now = tonumber(ARGV[1])
end

local function int(x) return string.format('%.0f', x + 0) end  -- + 0: never '-0'
local function num(x) return tonumber(x) or 0 end

-- fence arr tick                  counters: grants made, last arrival, last TICK
-- committed running waiting wneed KV tokens and requests running; requests and KV tokens waiting
-- gb g0..g3                       KV tokens granted lately, by quarter second (gb: newest quarter)
-- vclock                          the fair queue's virtual clock
-- ready ktot kbrake kref maxrun maxneed block  what the ready replicas offer together
-- ew ewn ewd                      means of output length, their count, of service time (x 256)
-- eww ewk                         KV x ms and KV of finished requests, fading
-- cold emptyat                    cold start in microseconds; since when no replica is ready
-- nadm nset ncan                  requests admitted, settled, cancelled before they ran
local POOL_FIELDS = {
  'fence', 'arr', 'tick', 'committed', 'running', 'waiting', 'wneed',
  'gb', 'g0', 'g1', 'g2', 'g3', 'vclock', 'ready', 'ktot', 'kbrake', 'kref', 'maxrun', 'maxneed',
  'block', 'ew', 'ewn', 'ewd', 'eww', 'ewk', 'cold', 'emptyat', 'nadm', 'nset', 'ncan',
}
local pool, pool_was = {}, {}
local pool_values = call('HMGET', KEYS[1], 'epoch', unpack(POOL_FIELDS))
local epoch = pool_values[1] or ''
for i = 1, #POOL_FIELDS do
  local value = num(pool_values[i + 1])
  pool[POOL_FIELDS[i]], pool_was[POOL_FIELDS[i]] = value, value
end

local function save_pool()
  local changed = {}
  for i = 1, #POOL_FIELDS do
    local field = POOL_FIELDS[i]
    if pool[field] ~= pool_was[field] then
      changed[#changed + 1] = field
      changed[#changed + 1] = int(pool[field])
    end
  end
  if #changed > 0 then call('HSET', KEYS[1], unpack(changed)) end
end
