-- uses: common
-- SHARE <now>: what an ingress must know to go on alone: how many ingresses live, the ready replicas,
-- KV tokens and requests that may still start in the whole pool, the KV block, the largest need, KV
-- tokens and requests of the whole pool.

return {
  call('ZCOUNT', P .. 'ls', '(' .. int(now), '+inf'),
  pool.ready,
  math.max(0, math.min(pool.ktot - pool.committed, pool.kbrake, pool.kref)),
  math.max(0, pool.maxrun - pool.running),
  math.max(1, pool.block),
  pool.maxneed,
  pool.ktot,
  pool.maxrun,
}
