-- The epochs of a broker.
local node, found, all = arg(), {}, call('HGETALL', P .. 'nodes')
for n = 1, #all, 2 do
  if all[n + 1] == node then found[#found + 1] = all[n] end
end
return { 'ok', found }
