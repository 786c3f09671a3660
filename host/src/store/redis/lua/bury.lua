-- Puts copies into dead-letter topics in the place of what is to be buried. Whoever was quicker (a seek, another broker) is let be.
local now, results = clock(), {}
local function one()
  local tid, gid, m, record, dead, head, body, at = arg(), arg(), arg(), arg(), arg(), arg(), arg(), num()
  local t = topic(tid)
  local g = t and group(t, gid)
  if not g or call('HGET', g.key .. ':H', m) ~= record then return 0 end
  if not call('ZSCORE', g.key .. ':D', m) or t.dead ~= dead or not grave(t) then return 0 end
  local p, seq = place_of(m)
  -- As the copy says: that is when it failed, a moment ago.
  push(grave(t), '0', math.min(at, now), head, body)
  forget(g, p, seq)
  count(g, 'dead', 1)
  touch(g)
  return 1
end
for n = 1, num() do
  local before = given
  results[n] = one()
  given = before + 8
end
return { 'ok', results, flush() }
