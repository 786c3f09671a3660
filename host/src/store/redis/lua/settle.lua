-- Ends or extends leases. A message that is to be a dead letter is kept from everybody here; its copy is made by who can read it,
-- and `bury.lua` puts that in its place. `tick.lua` tells of it again until somebody has.
local now, results = clock(), {}

local function one()
  local how, tid, gid = arg(), arg(), arg()
  local p, seq, epoch, grant, id, holder
  if how == 'R' then p, seq, epoch, grant, id = arg(), arg(), arg(), arg(), arg() else id, holder = arg(), arg() end
  local kind, at, failure = arg(), num(), arg()
  local t = topic(tid)
  local g = t and group(t, gid)
  if not g then return { 'not_found' } end
  local m = p and (p .. ':' .. seq) or call('HGET', t.key .. ':i', id)
  local record = m and call('HGET', g.key .. ':H', m)
  if not record then return { 'expired' } end
  local attempt, of, number, whose, held_by = string.match(record, '^(%d+) (%S+) (%S+) (%S+) (.*)$')
  if not attempt then return { 'expired' } end
  if p and (of ~= epoch or number ~= grant) then return { 'expired' } end
  if holder and held_by ~= holder then return { 'expired' } end
  if p and id ~= '' and id ~= whose then return { 'wrong' } end
  if tonumber(call('ZSCORE', g.key .. ':L', m) or '0') <= now then return { 'expired' } end
  attempt = tonumber(attempt)
  local n
  p, n = place_of(m)
  touch(g)
  if kind == 'A' then
    forget(g, p, n)
    count(g, 'acked', 1)
    return { 'acked' }
  elseif kind == 'E' then
    call('ZADD', g.key .. ':L', now + at, m)
    return { 'extended', now + at }
  elseif kind == 'L' then
    again(g, p, n, attempt - 1, nil)
    return { 'released' }
  elseif kind == 'T' and attempt < g.max then
    remember(g, m, attempt, failure)
    again(g, p, n, attempt, at > now and at or nil)
    return { 'retrying', at }
  end
  local dead, e = grave(t), read(part(t, p), n)
  if dead and e then
    remember(g, m, attempt, failure)
    record = 'F ' .. attempt
    call('HSET', g.key .. ':H', m, record)
    call('ZADD', g.key .. ':D', now + 1000, m)
    call('ZREM', g.key .. ':L', m)
    return { 'bury', t.id, g.id, m, record, t.dead, t.dead_payload, g.name, failures(g, m), e.head, e.body }
  end
  forget(g, p, n)
  count(g, 'dead', 1)
  return { 'dead' }
end

for n = 1, num() do results[n] = one() end
return { 'ok', results, flush(), now }
