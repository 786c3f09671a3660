-- Epochs that nothing is leased under any more.
for _ = 1, num() do call('HDEL', P .. 'nodes', arg()) end
return { 'ok' }
