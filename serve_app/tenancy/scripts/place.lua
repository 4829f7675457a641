-- uses: common meter capacity fair
-- PLACE <now> <rid>: place in the queue in fair order (1 is next) and predicted milliseconds (-1:
-- unknown); 0 0 when it does not wait.

local r = read_request(ARGV[2])
if not r or r.state ~= 'q' then return {0, 0} end
local rank = call('ZRANK', queue_of(r.tenant), ARGV[2])
local length = call('ZCARD', queue_of(r.tenant))
local tenants = call('ZCARD', VT)
local own = num(call('HGET', WN, r.tenant)) * (rank + 1) / length
local eta = fair_wait(own, rank + 1, tenants, pool.wneed, pool.waiting)
return {math.min(pool.waiting, (rank + 1) * tenants), eta}
