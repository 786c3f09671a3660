-- Leases of epochs that are over have ended: of one group, some from the `skip`th on; how many were looked at, and how many of these
-- have ended.
local t = topic(arg())
local gid, holder, skip, most = arg(), arg(), num(), num()
local over = {}
for _ = 1, num() do over[arg()] = true end
local g = t and group(t, gid)
if not g then return { 'ok', 0, 0 } end
local held, ended = call('ZRANGEBYSCORE', g.key .. ':L', '(0', '+inf', 'LIMIT', skip, most), 0
for _, m in ipairs(held) do
  local epoch, whose = string.match(call('HGET', g.key .. ':H', m) or '', '^%d+ (%S+) %S+ %S+ (.*)$')
  if epoch and over[epoch] and (holder == '' or holder == whose) then
    call('ZADD', g.key .. ':L', 0, m)
    touch(g)
    ended = ended + 1
  end
end
flush()
return { 'ok', #held, ended }
