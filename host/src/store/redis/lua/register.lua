-- A running broker's epoch, where Redis has forgotten it.
local epoch, node, born = num(), arg(), arg()
call('HSETNX', KEYS[1], 'born', born)
if tonumber(call('HGET', KEYS[1], 'epoch') or '0') < epoch then call('HSET', KEYS[1], 'epoch', epoch) end
call('HSET', P .. 'nodes', epoch, node)
return { 'ok', call('HGET', KEYS[1], 'born') }
