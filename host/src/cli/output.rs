//! Prints results: tables for people, JSON for machines. Invariant: results go to stdout and nothing else does; text from
//! messages can't drive the terminal. Never decides what to print.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use super::failure::Failure;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

/// A column: its heading, and where its value stands in an item (a JSON Pointer).
pub(super) type Column = (&'static str, &'static str);

impl Output {
    pub(super) fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether a machine reads.
    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// A list: a table, or a JSON array.
    pub(super) fn list(self, items: &[Value], columns: &[Column], none: &str) -> Result<(), Failure> {
        if self.json {
            return self.document(&Value::Array(items.to_vec()));
        }
        if items.is_empty() {
            return self.note(none);
        }
        let mut table = plain_table();
        table.set_header(columns.iter().map(|(heading, _)| *heading));
        for item in items {
            table.add_row(columns.iter().map(|(_, pointer)| cell(item.pointer(pointer).unwrap_or(&Value::Null))));
        }
        self.line(&laid_out(table))
    }

    /// One thing: its fields one below the other, or a JSON object.
    pub(super) fn thing(self, thing: &Value) -> Result<(), Failure> {
        let Some(fields) = thing.as_object().filter(|_| !self.json) else { return self.document(thing) };
        let mut table = plain_table();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            table.add_row([clean(name), cell(value)]);
        }
        self.line(&laid_out(table))
    }

    /// A sentence for people on stderr, or the JSON that a machine wants.
    pub(super) fn done(self, sentence: &str, document: &Value) -> Result<(), Failure> {
        if self.json { self.document(document) } else { self.line(sentence) }
    }

    /// A JSON document, on as many lines as it takes for people to read it.
    pub(super) fn document(self, document: &Value) -> Result<(), Failure> {
        if document.is_null() {
            return Ok(());
        }
        self.line(&format!("{document:#}"))
    }

    /// A line on stdout.
    pub(super) fn line(self, text: &str) -> Result<(), Failure> {
        writeln!(io::stdout().lock(), "{text}").map_err(Failure::io("stdout"))
    }

    /// A line of somebody else's text on stdout: as it is for a file or a pipe, made harmless for a terminal.
    pub(super) fn foreign_line(self, text: &str) -> Result<(), Failure> {
        if io::stdout().is_terminal() { self.line(&clean(text)) } else { self.line(text) }
    }

    /// Hands what was printed on, before something is done that can't be undone.
    pub(super) fn flush(self) -> Result<(), Failure> {
        io::stdout().lock().flush().map_err(Failure::io("stdout"))
    }

    /// A line on stderr that belongs to no result.
    pub(super) fn note(self, text: &str) -> Result<(), Failure> {
        writeln!(io::stderr().lock(), "{text}").map_err(Failure::io("stderr"))
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Two blanks between columns and none before the first, so that lines can be cut by `awk` and the like.
fn laid_out(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

/// Without the characters that a terminal would obey.
fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() && letter != '\t' { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_show_values_and_drive_no_terminal() {
        assert_eq!(cell(&json!(null)), "");
        assert_eq!(cell(&json!("a\u{1b}[31mb\nc")), "a\u{fffd}[31mb\u{fffd}c");
        assert_eq!(cell(&json!({"a": [1]})), r#"{"a":[1]}"#);
    }

    #[test]
    fn tables_are_plain_columns() {
        let mut table = plain_table();
        table.set_header(["NAME", "N"]).add_row(["orders", "1"]).add_row(["a", "22"]);
        assert_eq!(laid_out(table), "NAME    N\norders  1\na       22");
    }
}
