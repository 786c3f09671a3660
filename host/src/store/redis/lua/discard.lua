-- Takes dead letters off their lists.
local gone = 0
for _ = 1, num() do
  local t, p, seq = topic(arg()), arg(), num()
  local g = t and tonumber(p) < t.parts and group(t, '0')
  if g and discard(g, part(t, p), seq) then gone = gone + 1 end
end
flush()
return { 'ok', gone }
