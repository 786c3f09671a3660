-- A message by its id, and its state for each group of its topic.
local t = topic(arg())
local id, now = arg(), clock()
local m = t and call('HGET', t.key .. ':i', id)
if not m then return { 'none' } end
local p, seq = place_of(m)
local q = part(t, p)
local e = read(q, seq)
if not e then return { 'none' } end
local states = {}
for _, g in ipairs(groups_of(t)) do
  local attempts = tonumber(call('HGET', g.key .. ':A', m) or '0')
  local held, waits = call('ZSCORE', g.key .. ':L', m), call('ZSCORE', g.key .. ':W', m)
  local attempt = string.match(call('HGET', g.key .. ':H', m) or '', '^(%d+) ')
  local state, number, at = 'S', 0, 0
  if held and tonumber(held) > now and attempt then state, number, at = 'L', tonumber(attempt), held
  elseif held then state = 'W'
  elseif waits and tonumber(waits) > now then state, number, at = 'R', attempts, waits
  elseif is_open(g, q, seq) and (not e.target or e.target == g.id) then state = 'W' end
  states[#states + 1] = { g.id, state, number, at, state ~= 'S' and failures(g, m) or {} }
end
return { 'ok', p, seq, e.head, e.body, states }
