-- Ends leases with their copies in dead-letter topics. Whoever was quicker (a settlement, a retry, a seek) is let be.
local now, results = clock(), {}
local function one()
  local tid, gid, m, record, dead, head, body, at = arg(), arg(), arg(), arg(), arg(), arg(), arg(), num()
  local t = topic(tid)
  local g = t and group(t, gid)
  if not g or call('HGET', g.key .. ':H', m) ~= record then return 0 end
  local over = tonumber(call('ZSCORE', g.key .. ':L', m) or '0') <= now
  -- Who settles must do so in time; whose time has passed is buried by the clock alone.
  if (arg() == '1') ~= over then return 0 end
  if t.dead ~= dead or not grave(t) then return 0 end
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
  given = before + 9
end
return { 'ok', results, flush() }
