-- Makes a topic or changes its settings. One that is made anew, since Redis has lost it, begins above all that it ever gave.
local id, count_of, spec = arg(), arg(), arg()
local t = topic(id)
if t and t.parts ~= tonumber(count_of) then return { 'invalid', "a topic's partition count cannot change" } end
local key = P .. 't:' .. id
call('HSET', key, 'parts', count_of, 'spec', spec)
for _, field in ipairs({ 'keep', 'room', 'window', 'keys', 'dead', 'dead_expired', 'dead_payload' }) do call('HSET', key, field, arg()) end
call('SADD', P .. 'topics', id)
call('HINCRBY', KEYS[1], 'settings', 1)
topics[id] = nil
local anew, now = num(), clock()
if not t and anew then
  -- Ten a millisecond, from the beginning of time, are more than a partition has taken. Fourteen digits are what a number has here as a word.
  local from = math.max(anew, now * 10)
  for n = 0, tonumber(count_of) - 1 do call('HSET', key .. ':' .. n, 'head', from, 'start', from) end
end
touch_keys(topic(id))
return { 'ok' }
