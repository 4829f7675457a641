-- uses: common meter price budget classes capacity fair promise request grant
-- TICK <now> <at most every>: what time alone brings about. Any ingress may call it.

if now - pool.tick < tonumber(ARGV[2]) then return 0 end
pool.tick = now
drop_silent_replicas()
sweep_deadlines()
reap()
grant()
save_pool()
return 1
