-- uses: common
-- BEAT <now> <ingress> <lease> <waiting rid...> (at most 64 rids; lease 0: the ingress leaves).
-- Renews the ingress's one lease. Returns the epoch, how often keys have changed, how many requests
-- Redis holds for it, and, for each rid given, `run fence replica kv`, `wait 0 '' kv` or `gone 0 '' 0`:
-- a lost push costs one beat.

local ingress = ARGV[2]
local ends = now + tonumber(ARGV[3])
call('ZADD', P .. 'ls', ends, ingress)
if ends < pool.due then
  pool.due = ends
  save_pool()
end
local reply = {
  pool.epoch, pool.nconf, call('SCARD', P .. 'in:' .. ingress),
}
for i = 4, math.min(#ARGV, 67) do
  local r = read_request(ARGV[i])
  local state = r and (r.state == 'r' and 'run' or 'wait') or 'gone'
  reply[#reply + 1] = state
  reply[#reply + 1] = r and r.fence or 0
  reply[#reply + 1] = r and r.replica or ''
  reply[#reply + 1] = r and r.kv or 0
end
return reply
