-- uses: common
-- CONF <now> <epoch> <json>: a list of [kind, name, version, fields], at most 128 of them.
-- kind `key` (name: digest) or `ten` (name: tenant). A record is taken when its version is newer
-- than the one held, with an audit entry in the same step. Sets the epoch (unless given as '') where
-- none is set: from then on Redis is no longer empty. Returns the epoch and how many records changed.

local changed = 0
local records = cjson.decode(ARGV[3])
for i = 1, math.min(#records, 128) do
  local kind, name, version, fields = unpack(records[i])
  local target = P .. kind .. ':' .. name
  local held = tonumber(call('HGET', target, 'version') or '-1')
  if version > held then
    local flat = {'version', int(version)}
    for field, value in pairs(fields) do
      flat[#flat + 1] = field
      flat[#flat + 1] = type(value) == 'number' and int(value) or value
    end
    call('DEL', target)
    call('HSET', target, unpack(flat))
    call('XADD', P .. 'aud', 'MAXLEN', '~', 10000, '*', 'op', 'conf', 'kind', kind,
      'name', fields.id or name, 'version', int(version), 'status', fields.status or '')
    changed = changed + 1
  end
end
if ARGV[2] ~= '' and pool.epoch == 0 then
  pool.epoch = ARGV[2]
  save_pool()
end
return {pool.epoch ~= 0 and pool.epoch or '', changed}
