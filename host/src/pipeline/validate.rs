//! Whether stages, as someone sets them, are within bounds. Invariant: all faults are told at once, each by its JSON
//! Pointer into the request. Never looks at whether a plugin exists or likes its config.

use std::collections::HashSet;

use crate::catalog::model::{Scope, StageSpec};
use crate::message::{EVENTS_TOPIC, TopicName};

use super::limits::{CONFIG_BYTES_MAX, EMIT_TO_MAX, MEMORY_MB_MAX, STAGES_MAX, TIMEOUT_MS_MAX};
use super::registry::{is_label, is_plugin_name};

/// Bytes of a stage's name.
const NAME_BYTES_MAX: usize = 64;

/// What is wrong with `stages`, if anything.
#[must_use]
pub fn faults(scope: Scope, stages: &[StageSpec]) -> Vec<(String, String)> {
    let mut faults = Faults(Vec::new());
    if stages.len() > STAGES_MAX {
        faults.add("/stages", format!("a pipeline has at most {STAGES_MAX} stages"));
    }
    let mut names = HashSet::new();
    for (at, stage) in stages.iter().enumerate().take(STAGES_MAX) {
        let pointer = |field: &str| format!("/stages/{at}/{field}");
        if !is_stage_name(&stage.name) {
            let why = format!("a stage's name is 1 to {NAME_BYTES_MAX} letters, digits, dots, underscores or hyphens");
            faults.add(&pointer("name"), why);
        } else if !names.insert(stage.name.as_str()) {
            faults.add(&pointer("name"), format!("there is another stage named '{}'", stage.name));
        }
        if !is_plugin_name(&stage.plugin) {
            faults.add(&pointer("plugin"), "a plugin's name is [a-z0-9][a-z0-9.-]{0,127}".to_owned());
        }
        if stage.version != "latest" && !is_label(&stage.version) {
            faults.add(&pointer("version"), "a version is `latest` or a label such as 1.2.0".to_owned());
        }
        bounds(&mut faults, stage, &pointer);
        emit_to(&mut faults, scope, stage, &pointer);
    }
    faults.0
}

struct Faults(Vec<(String, String)>);

impl Faults {
    fn add(&mut self, pointer: &str, why: String) {
        self.0.push((pointer.to_owned(), why));
    }
}

fn bounds(faults: &mut Faults, stage: &StageSpec, pointer: &impl Fn(&str) -> String) {
    if !(1..=TIMEOUT_MS_MAX).contains(&stage.timeout_ms) {
        faults.add(&pointer("timeoutMs"), format!("1 to {TIMEOUT_MS_MAX}"));
    }
    if !(1..=MEMORY_MB_MAX).contains(&stage.memory_mb) {
        faults.add(&pointer("memoryMb"), format!("1 to {MEMORY_MB_MAX}"));
    }
    if !stage.config.is_object() {
        faults.add(&pointer("config"), "a config is a JSON object".to_owned());
    } else if stage.config.to_string().len() > CONFIG_BYTES_MAX {
        faults.add(&pointer("config"), format!("a config has at most {CONFIG_BYTES_MAX} bytes"));
    }
}

fn emit_to(faults: &mut Faults, scope: Scope, stage: &StageSpec, pointer: &impl Fn(&str) -> String) {
    if !stage.emit_to.is_empty() && matches!(scope, Scope::Subscription(..)) {
        faults.add(&pointer("emitTo"), "a subscription's stage cannot emit: its messages are stored".to_owned());
    }
    if stage.emit_to.len() > EMIT_TO_MAX {
        faults.add(&pointer("emitTo"), format!("at most {EMIT_TO_MAX} topics"));
    }
    for (n, topic) in stage.emit_to.iter().enumerate().take(EMIT_TO_MAX) {
        match topic.parse::<TopicName>() {
            Err(why) => faults.add(&pointer(&format!("emitTo/{n}")), why),
            Ok(topic) if topic.is_dead_letter() => {
                faults.add(&pointer(&format!("emitTo/{n}")), "nothing is emitted to dead letters".to_owned());
            }
            Ok(topic) if topic.as_str() == EVENTS_TOPIC => {
                faults.add(
                    &pointer(&format!("emitTo/{n}")),
                    "what this topic tells is told by the broker itself".to_owned(),
                );
            }
            Ok(_) => {}
        }
    }
}

fn is_stage_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed)
}
