-- uses: common meter price budget classes capacity fair promise request grant
-- CAP <now> <replica> <ttl> <state> <kv_total> <kv_free> <kv_planned> <running> <waiting>
--     <max_running> <block> <preempted> <incarnation> <info>
-- A replica's heartbeat and truth, in KV tokens; `preempted`: how many requests it had to, in all its
-- life. State ready | starting | draining | stopped; only ready replicas offer capacity, a stopped one
-- is forgotten. Freed capacity is granted at once.

local id, state = ARGV[2], ARGV[4]
local preempted = 0
if state == 'stopped' then
  remove_replica(id)
else
  local before = call('HMGET', P .. 'rep:' .. id, 'incarnation', 'preempted')
  if before[1] == ARGV[13] then preempted = tonumber(ARGV[12]) - num(before[2]) end
  local ends = now + tonumber(ARGV[3])
  pool.due = math.min(pool.due, ends)
  call('ZADD', P .. 'rep', ends, id)
  call('HSET', P .. 'rep:' .. id, 'state', state, 'kv_total', ARGV[5], 'kv_free', ARGV[6],
    'kv_planned', ARGV[7], 'running', ARGV[8], 'waiting', ARGV[9], 'max_running', ARGV[10],
    'block', ARGV[11], 'preempted', ARGV[12], 'incarnation', ARGV[13], 'info', ARGV[14])
  if state == 'ready' then
    call('ZADD', P .. 'room', 'NX', ARGV[5], id)
  else
    call('ZREM', P .. 'room', id)
  end
end
drop_silent_replicas()
recount()
adapt(preempted, unpack(reserve_rule()))
grant()
save_pool()
return pool.waiting
