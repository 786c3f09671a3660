-- All topics and groups with their settings; for one topic its groups alone.
local only, all = arg(), {}
local ids = only ~= '' and { only } or call('SMEMBERS', P .. 'topics')
for _, id in ipairs(ids) do
  local t = topic(id)
  if t then
    local specs = {}
    for _, g in ipairs(groups_of(t)) do specs[#specs + 1] = { g.id, call('HGET', g.key, 'spec') } end
    all[#all + 1] = { id, call('HGET', t.key, 'spec'), specs }
  elseif only ~= '' then
    return { 'no_topic' }
  end
end
local about = call('HMGET', KEYS[1], 'born', 'settings')
return { 'ok', about[1] or '', about[2] or '0', all }
