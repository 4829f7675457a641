-- uses: common meter price budget classes capacity fair promise request grant
-- CLAIM <now> <name> <print> <claim> <ingress> <longest>: who runs the request of an Idempotency-Key.
-- `print` tells the request's content, `claim` this one sending of it; `longest` in microseconds.
-- Replies:
--   mine                                    run it, then KEEP or DROP
--   runs  <microseconds since its start>    another one does
--   kept  status headers body               its reply
--   large                                   it had a reply, too large to be kept
--   other                                   the name belongs to another content
-- A claim ends with its ingress: whose lease lapsed will never keep a reply.

local key = P .. 'idem:' .. ARGV[2]
local held = load(key)

local function lives(claim)
  return claim.state == 'runs' and lease_holds(claim.ingress)
end

if held.state ~= 0 and (held.state ~= 'runs' or lives(held)) then
  if held.print ~= ARGV[3] then return {'other'} end
  if held.state == 'kept' then return {'kept', held.status, held.headers, held.body} end
  if held.state == 'large' then return {'large'} end
  if held.claim ~= ARGV[4] then return {'runs', now - held.since} end
end
local record = {
  state = 'runs', print = ARGV[3], claim = ARGV[4], ingress = ARGV[5], since = now,
}
call('SET', key, cmsgpack.pack(record), 'PX', math.ceil(tonumber(ARGV[6]) / 1000))
return {'mine'}
