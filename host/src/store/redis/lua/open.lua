-- A broker opens the store: a new epoch, higher than any before, also where Redis has forgotten those; and which it had before.
local node, now, born = arg(), clock(), arg()
call('HSETNX', KEYS[1], 'born', born)
local epoch = math.max(tonumber(call('HGET', KEYS[1], 'epoch') or '0') + 1, now)
call('HSET', KEYS[1], 'epoch', epoch)
local before, all = {}, call('HGETALL', P .. 'nodes')
for n = 1, #all, 2 do
  if all[n + 1] == node then before[#before + 1] = all[n] end
end
call('HSET', P .. 'nodes', epoch, node)
call('ZADD', P .. 'seen', now, node)
return { 'ok', epoch, call('HGET', KEYS[1], 'born'), before }
