-- Which of these leases have ended, whoever has ended them.
local now, ended = clock(), {}
for n = 1, num() do
  local tid, gid, m, epoch, grant = arg(), arg(), arg(), arg(), arg()
  local t = topic(tid)
  local g = t and group(t, gid)
  local of, number = string.match(g and call('HGET', g.key .. ':H', m) or '', '^%d+ (%S+) (%S+) ')
  local lives = of == epoch and number == grant and tonumber(call('ZSCORE', g.key .. ':L', m) or '0') > now
  ended[n] = lives and 0 or 1
end
return { 'ok', ended }
