-- uses: common meter
-- WHO <now> <digest>: whose key it is, nothing charged: `ok id tenant figures`, `auth reason`, or
-- `rebuild` when Redis is empty.

if pool.epoch == 0 then return {'rebuild'} end
local key = read_config(P .. 'key:' .. ARGV[2])
local refusal = refused_key(key)
if refusal then return {'auth', refusal} end
return add_figures({'ok', key.id, key.tenant}, {
  read_scope('k', key.id, key),
  read_scope('t', key.tenant, read_config(P .. 'ten:' .. key.tenant)),
})
