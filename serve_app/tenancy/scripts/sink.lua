-- uses: common
-- SINK <now> <ingress> <lease>: the right to move the ledger, held by one ingress at a time; `lease` in
-- microseconds. Returns 1, or 0 when another holds it; how many entries were dropped unstored; and 1
-- when budgets know what the ledger says (RECKON), as they do not after Redis was emptied.

local holder = call('GET', P .. 'sink')
if holder and holder ~= ARGV[2] then return {0, pool.ndrop, 1} end
call('SET', P .. 'sink', ARGV[2], 'PX', math.ceil(tonumber(ARGV[3]) / 1000))
return {1, pool.ndrop, pool.paid == pool.epoch and 1 or 0}
