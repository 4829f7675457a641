-- uses: common meter
-- WHO <now> <digest>: whose key it is, nothing charged: `ok id tenant scopes models shown reserve
-- figures`, then `rpm tpm itpm otpm concurrency burst` of key and tenant (lists with commas; the key's
-- defaults); or `auth reason`, or `rebuild` when Redis is empty.

if pool.epoch == '' then return {'rebuild'} end
local key = load(P .. 'key:' .. ARGV[2])
local refusal = refused_key(key)
if refusal then return {'auth', refusal} end
local scopes = read_scopes(key.id, ARGV[2], key.ten)
local reply = add_figures(
  {'ok', key.id, key.ten, key.scopes, key.models, key.shown, key.reserve}, scopes)
for _, scope in ipairs(scopes) do
  for i = 1, 4 do reply[#reply + 1] = scope.may[LIMITS[i]] end
  reply[#reply + 1] = scope.may.conc
  reply[#reply + 1] = scope.burst / 1000000
end
return reply
