-- uses: common
-- KEEP <now> <name> <claim> <longest> <most> <largest> <status> <headers> <body>: the reply of a claim.
-- Kept for `longest` microseconds; of a body above `largest` bytes only that it was there. Where all
-- replies together would pass `most` bytes, those that would go first go now. 1, or 0 when the claim
-- is no longer held.

local name, claim, most = ARGV[2], ARGV[3], tonumber(ARGV[5])
local held = load(P .. 'idem:' .. name)
if held.claim ~= claim then return 0 end
if held.state ~= 'runs' then return 1 end

local function forget(other)
  call('DEL', P .. 'idem:' .. other)
  call('ZREM', P .. 'idm', other)
  call('DECRBY', P .. 'idb', num(call('HGET', P .. 'idz', other)))
  call('HDEL', P .. 'idz', other)
end

for _, other in ipairs(call('ZRANGEBYSCORE', P .. 'idm', '-inf', now, 'LIMIT', 0, 64)) do
  forget(other)
end
if call('HEXISTS', P .. 'idz', name) == 1 then forget(name) end

local record = {print = held.print, claim = claim, state = 'large'}
local body = ARGV[9]
if #body <= tonumber(ARGV[6]) then
  record.state, record.status, record.headers, record.body = 'kept', tonumber(ARGV[7]), ARGV[8], body
end
local packed = cmsgpack.pack(record)
while num(call('GET', P .. 'idb')) + #packed > most do
  local oldest = call('ZRANGE', P .. 'idm', 0, 0)[1]
  if not oldest then break end
  forget(oldest)
end
local longest = tonumber(ARGV[4])
call('SET', P .. 'idem:' .. name, packed, 'PX', math.ceil(longest / 1000))
call('ZADD', P .. 'idm', now + longest, name)
call('HSET', P .. 'idz', name, #packed)
call('INCRBY', P .. 'idb', #packed)
return 1
