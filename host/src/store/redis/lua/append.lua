-- Stores a batch. First all is looked at and decided, then all is written.
local t = topic(arg())
local revision, all, now = num(), arg() == '1', clock()
local roomy, batch, replays = {}, {}, {}
for _ = 1, num() do roomy[arg()] = true end
for n = 1, num() do replays[n] = { t = arg(), p = arg(), seq = num() } end
for n = 1, num() do
  local item = { kind = arg(), key = arg(), hash = arg(), tail = arg(), emitted = {} }
  if item.kind == 'L' then item.p, item.rev, item.t = arg(), revision, t
  elseif item.kind == 'D' then item.p = '0' end
  if item.kind ~= 'X' then item.cost, item.head, item.body = num(), arg(), arg() end
  for m = 1, num() do
    item.emitted[m] = { id = arg(), p = arg(), rev = num(), cost = num(), head = arg(), body = arg() }
  end
  batch[n] = item
end
if not t then return { 'no_topic' } end

for _, item in ipairs(batch) do
  if item.kind == 'L' and tonumber(item.p) >= t.parts then return { 'invalid', 'the topic has no partition ' .. item.p } end
  if item.kind == 'D' then
    item.t = grave(t)
    if not item.t then return { 'invalid', 'the topic has no dead-letter topic' } end
  end
  for _, e in ipairs(item.emitted) do
    e.t = topic(e.id)
    if not e.t then return { 'no_topic' } end
    if tonumber(e.p) >= e.t.parts then return { 'invalid', 'the topic has no partition ' .. e.p } end
  end
end
for _, item in ipairs(batch) do
  if item.kind == 'L' and revision < part(t, item.p).rev then return { 'stale', part(t, item.p).rev } end
  for _, e in ipairs(item.emitted) do
    if e.rev < part(e.t, e.p).rev then return { 'stale', part(e.t, e.p).rev } end
  end
end
for _, replay in ipairs(replays) do
  local of = topic(replay.t)
  replay.g = of and tonumber(replay.p) < of.parts and group(of, '0')
  if not replay.g or not is_open(replay.g, part(of, replay.p), replay.seq) then return { 'replayed' } end
end

local keyed = false
for _, item in ipairs(batch) do keyed = keyed or item.key ~= '' end
if keyed then age(t, now, 10000) end
local held, seen, taken, short = call('ZCARD', t.key .. ':da'), {}, {}, nil
local values = {}
-- The outcome of an item whose key was used before.
local function repeated(item)
  if item.key == '' then return nil end
  local value = values[item.key]
  if value == nil then
    value = call('HGET', t.key .. ':d', item.key)
    if value and tonumber(string.match(value, '^%S+ (%S+)')) + t.window <= now then value = false end
    values[item.key] = value
  end
  if not value then return nil end
  return string.match(value, '^%S+') == item.hash and { 'U', value } or { 'K' }
end
local function room(of, need)
  if not of.room then return true end
  local wanted = of.bytes + (taken[of.id] or 0) + need
  if wanted <= of.room then return true end
  -- An eighth at a time, so that a full topic is not trimmed with every message.
  if not roomy[of.id] and not short then short = { of.id, math.floor(math.max(wanted - of.room, of.room / 8)) } end
  return false
end
local function fits(item)
  local needs, ok = {}, item.key == '' or held + 1 <= t.keys
  if item.t then needs[item.t] = item.cost end
  for _, e in ipairs(item.emitted) do needs[e.t] = (needs[e.t] or 0) + e.cost end
  for of, need in pairs(needs) do ok = room(of, need) and ok end
  return ok, needs
end
local outcomes, refused = {}, false
for n, item in ipairs(batch) do
  local outcome = repeated(item)
  if not outcome and item.key ~= '' and seen[item.key] then
    -- In a batch of all or nothing there is no outcome to repeat: the first is not stored either.
    outcome = (not all and seen[item.key] == item.hash) and { 'again' } or { 'K' }
  end
  if not outcome then
    local ok, needs = fits(item)
    if ok or all then
      if item.key ~= '' then held, seen[item.key] = held + 1, item.hash end
      for of, need in pairs(needs) do taken[of.id] = (taken[of.id] or 0) + need end
    end
    if not ok then outcome = { 'F' } end
  end
  refused = refused or outcome ~= nil
  outcomes[n] = outcome or { 'go' }
end
if short then return { 'short', short[1], short[2] } end
if all and refused then
  for _, outcome in ipairs(outcomes) do if outcome[1] == 'go' then outcome[1] = 'N' end end
  return { 'ok', outcomes, {} }
end

for n, item in ipairs(batch) do
  local outcome = outcomes[n]
  if outcome[1] == 'again' then outcomes[n] = { 'U', values[item.key] } end
  if outcome[1] == 'go' then
    local seq, at = 0, now
    if item.t then
      seq, at = push(item.t, item.p, now, item.head, item.body)
      if item.kind == 'L' then
        local q = part(t, item.p)
        q.rev = math.max(q.rev, revision)
      end
    else
      at = math.max(now, part(t, '0').at)
    end
    for _, e in ipairs(item.emitted) do
      push(e.t, e.p, now, e.head, e.body)
      local q = part(e.t, e.p)
      q.rev = math.max(q.rev, e.rev)
    end
    if item.key ~= '' then
      values[item.key] = item.hash .. ' ' .. at .. ' ' .. (item.t or t).id .. ':' .. seq .. ' ' .. item.tail
      call('HSET', t.key .. ':d', item.key, values[item.key])
      call('ZADD', t.key .. ':da', at, item.key)
    end
    outcomes[n] = { item.kind, seq, (item.t or t).id }
  end
end
local kept = { F = true, K = true, N = true }
local one_each, any_kept = #replays == #batch, false
for _, outcome in ipairs(outcomes) do any_kept = any_kept or kept[outcome[1]] or false end
for n, replay in ipairs(replays) do
  local keeps = any_kept
  if one_each then keeps = kept[outcomes[n][1]] end
  if not keeps then
    discard(replay.g, part(replay.g.topic, replay.p), replay.seq)
    wake(replay.g.topic)
  end
end
if keyed then touch_keys(t) end
return { 'ok', outcomes, flush() }
