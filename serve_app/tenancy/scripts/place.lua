-- uses: common meter classes capacity fair
-- PLACE <now> <rid>: place in the queue in order of class and fairness (1 is next) and predicted
-- milliseconds (-1: unknown); 0 0 when it does not wait.

local r = read_request(ARGV[2])
if not r or r.state ~= 'q' then return {0, 0} end
local class, queue = r.rank, queue_of(r.rank, r.tenant)
local count = call('ZRANK', queue, ARGV[2]) + 1
local share = shares(class, r.weight, true)
local own = num(call('HGET', WN, field_of(class, r.tenant))) * count / call('ZCARD', queue)
local eta = fair_wait(class, own, count, share, pool[NEED[class]], pool[WAITING[class]])
local place = math.min(pool[WAITING[class]], math.ceil(count * share))
for higher = 1, class - 1 do place = place + pool[WAITING[higher]] end
return {place, eta}
