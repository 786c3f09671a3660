//! The `jq` stage: replaces payloads by what a jq program makes of them, with the interpreter jaq.
//! Invariant: a payload that goes on is JSON, and the program's first output. Never asks for a second output, and never reads
//! anything but the message: time and memory are bounded by the broker, depth here.

use jaq_core::load::{self, Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Vars, compile, data::JustLut};
use jaq_json::{Val, read};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use sluice_plugin::{Failure, Message, NOT_JSON, Rejection, Stage};

mod debug;

/// The code of a rejection by the program: it ended with an error.
pub const JQ_ERROR: &str = "JQ_ERROR";

/// The length of a program. A longer one is a sign of data in it.
const PROGRAM_BYTES_MAX: usize = 64 * 1024;

/// Levels of a payload: the interpreter recurses over them, and its stack is small.
const DEPTH_MAX: usize = 128;

/// The length of an error's text: it repeats the value that the program stumbled over.
const ERROR_CHARS_MAX: usize = 200;

/// What the message is beside its payload, for the program.
const MESSAGE: &str = "$message";

type Filter = jaq_core::Filter<JustLut<Val>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    /// The program.
    program: String,
}

/// The stage: a program, compiled.
#[derive(Deserialize)]
#[serde(try_from = "Config")]
pub struct Jq {
    filter: Filter,
    /// Whether the program says `$message` at all: else it is not made.
    wants_message: bool,
}

impl TryFrom<Config> for Jq {
    type Error = String;

    fn try_from(Config { program }: Config) -> Result<Self, String> {
        if program.len() > PROGRAM_BYTES_MAX {
            return Err(format!("`program` has {} bytes; at most {PROGRAM_BYTES_MAX} are allowed", program.len()));
        }
        debug::to_the_plugins_log();
        let wants_message = program.contains(MESSAGE);
        Ok(Self { filter: compile(&program).map_err(|e| format!("`program`, {e}"))?, wants_message })
    }
}

fn compile(program: &str) -> Result<Filter, String> {
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let funs = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    let arena = Arena::default();
    let file = File { code: program, path: () };
    let modules = Loader::new(defs).load(&arena, file).map_err(|errors| load_error(program, &errors))?;
    let compiler = Compiler::default().with_funs(funs).with_global_vars([MESSAGE]);
    compiler.compile(modules).map_err(|errors| compile_error(program, &errors))
}

/// Where a part of the program stands in it.
fn place(program: &str, part: &str) -> String {
    format!("at byte {}", load::span(program, part).start)
}

/// The first error alone: those after it are most often its consequences.
fn load_error(program: &str, errors: &load::Errors<&str, ()>) -> String {
    match errors.first().map(|(_, error)| error) {
        Some(load::Error::Lex(errors)) => errors.first().map_or_else(String::new, |(expected, found)| {
            format!("{}: expected {}", place(program, found), expected.as_str())
        }),
        Some(load::Error::Parse(errors)) => errors.first().map_or_else(String::new, |(expected, found)| {
            let (at, found) = match *found {
                "" => ("at its end".to_owned(), String::new()),
                found => (place(program, found), format!(", found {found:?}")),
            };
            format!("{at}: expected {}{found}", expected.as_str())
        }),
        Some(load::Error::Io(errors)) => {
            let module = errors.first().map_or("", |(module, _)| module);
            format!("{}: there are no modules to import", place(program, module))
        }
        None => "it can't be read".into(),
    }
}

fn compile_error(program: &str, errors: &compile::Errors<&str, ()>) -> String {
    let first = errors.first().and_then(|(_, errors)| errors.first());
    first.map_or_else(
        || "it can't be compiled".into(),
        |(name, kind)| format!("{}: undefined {} {name:?}", place(program, name), kind.as_str()),
    )
}

impl Stage for Jq {
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        let payload = message.payload();
        let input = read_json(&payload)?;
        let about = if self.wants_message { about(message)? } else { Val::Null };
        let context = Ctx::<JustLut<Val>>::new(&self.filter.lut, Vars::new([about]));
        match self.filter.id.run((context, input)).next() {
            None => message.drop("the program has no output"),
            Some(Ok(output)) => {
                let text = output.to_string();
                if text.as_bytes() != payload {
                    // What jaq can hold and JSON can't (NaN, bytes, keys that are no strings) shows here.
                    serde_json::from_str::<IgnoredAny>(&text).map_err(|_| error("its output is no JSON"))?;
                    message.set_payload(text);
                }
            }
            Some(Err(exception)) => {
                return Err(match exception.get_err() {
                    Ok(raised) => error(&raised.to_string()).into(),
                    Err(_) => error("it halted").into(),
                });
            }
        }
        Ok(())
    }
}

/// The payload as the interpreter reads it, once it is known to be JSON: the interpreter takes more than that.
fn read_json(payload: &[u8]) -> Result<Val, Rejection> {
    let text = std::str::from_utf8(payload).map_err(|e| Rejection::new(NOT_JSON, e.to_string()))?;
    serde_json::from_str::<IgnoredAny>(text)?;
    if depth(payload) > DEPTH_MAX {
        return Err(Rejection::new(NOT_JSON, format!("it is nested deeper than {DEPTH_MAX} levels")));
    }
    read::parse_single(payload).map_err(|e| Rejection::new(NOT_JSON, e.to_string()))
}

/// Levels of arrays and objects in what is JSON.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// `$message`: `{id, key, contentType, publishedAt, headers}`; the time in seconds, as jq counts it.
fn about(message: &Message<'_>) -> Result<Val, Failure> {
    let headers = message.header_names().into_iter().filter_map(|name| {
        let value = message.header(&name)?;
        Some((name, Value::String(value)))
    });
    let headers: Map<String, Value> = headers.collect();
    let about = serde_json::json!({
        "id": message.id(),
        "key": message.key(),
        "contentType": message.content_type(),
        "publishedAt": message.published_at_ms() as f64 / 1000.0,
        "headers": headers,
    });
    let text = about.to_string();
    read::parse_single(text.as_bytes()).map_err(|e| sluice_plugin::Error::new(e.to_string()).into())
}

/// The interpreter shows values as JSON: what a program says with `error("…")` is the text in it.
fn error(what: &str) -> Rejection {
    let said = serde_json::from_str::<String>(what).ok();
    let what = said.as_deref().unwrap_or(what);
    Rejection::new(JQ_ERROR, what.chars().take(ERROR_CHARS_MAX).collect::<String>())
}

sluice_plugin::export!(Jq);
