//! The host's side of the powers that a plugin imports by name: values, figures, schemas. Invariant: each is bounded per call,
//! and refused where the contract refuses it. Never decides what becomes of a message.

use wasmtime::component::Resource;
use wasmtime::{Error, Result};

use super::bindings::types::Batch;
use super::bindings::{kv, metrics, schemas};
use super::host_state::HostState;

impl kv::Host for HostState {
    fn get(&mut self, key: String) -> Result<Option<Vec<u8>>> {
        let call = self.call()?;
        let value = call.values()?.get(&key)?;
        call.copy(key.len() + value.as_ref().map_or(0, Vec::len))?;
        Ok(value)
    }

    fn set(&mut self, _: Resource<Batch>, i: u32, key: String, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<()> {
        let call = self.call()?;
        call.copy(key.len() + value.len())?;
        let place = call.place_in_window(i)?;
        call.values()?.set(place, key, Some((value, ttl_ms)))
    }

    fn delete(&mut self, _: Resource<Batch>, i: u32, key: String) -> Result<()> {
        let call = self.call()?;
        call.copy(key.len())?;
        let place = call.place_in_window(i)?;
        call.values()?.set(place, key, None)
    }
}

impl metrics::Host for HostState {
    fn add(&mut self, name: String, by: u64) -> Result<()> {
        self.says(&name)?;
        self.figures.add(&name, by);
        Ok(())
    }

    fn set(&mut self, name: String, value: f64) -> Result<()> {
        self.says(&name)?;
        self.figures.set(&name, value);
        Ok(())
    }

    fn observe(&mut self, name: String, value: f64) -> Result<()> {
        self.says(&name)?;
        self.figures.observe(&name, value);
        Ok(())
    }
}

impl schemas::Host for HostState {
    fn get(&mut self, id: String) -> Result<Option<String>> {
        match &self.schemas {
            Some(schemas) => schemas.get(&id),
            None => Err(Error::msg("`schemas.get` is for `configure` alone")),
        }
    }
}

impl HostState {
    fn says(&mut self, name: &str) -> Result<()> {
        match &mut self.call {
            Some(call) => call.copy(name.len()),
            None => Ok(()),
        }
    }
}
