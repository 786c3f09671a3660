-- Makes a topic or changes its settings. One that is made anew, since Redis has lost it, begins above all that it ever gave.
local id, count_of, spec = arg(), arg(), arg()
local t = topic(id)
if t and t.parts ~= tonumber(count_of) then return { 'invalid', "a topic's partition count cannot change" } end
local key, of_run = P .. 't:' .. id, run()
call('HSET', key, 'parts', count_of, 'spec', spec)
for _, field in ipairs({ 'keep', 'room', 'window', 'keys', 'dead', 'dead_expired', 'dead_payload' }) do call('HSET', key, field, arg()) end
call('SADD', P .. 'topics', id)
call('HINCRBY', KEYS[1], 'settings', 1)
topics[id] = nil
local anew, now = num(), clock()
for n = 0, t and -1 or tonumber(count_of) - 1 do
  local from = anew and above(anew, now) or 0
  call('HSET', key .. ':' .. n, 'head', from, 'start', from, 'run', of_run)
end
touch_keys(topic(id))
return { 'ok' }
