//! Every route and field, made wrong in every way: the table is the OpenAPI document of the running binary, so a route without
//! a right request to start from, or a field that none of them has, fails. Invariant: each fault is answered by a problem
//! with the code that the contract has for it, which names the place; nothing is stored by any of them.

use std::collections::BTreeSet;

use serde_json::Value;
use sluice_tests::{Answer, Client};

use super::cases::{Case, Maker};
use super::document::{Document, Operation, Schema};
use super::exceptions::EXCEPTIONS;
use super::rows::{Bed, Row};
use super::stored::{difference, stored};
use super::wire::Wire;

/// Far fewer than there are: a table that has lost its way makes none.
const CASES_MIN: usize = 3_000;

/// All that bodies are described in.
const MEDIA_TYPES: [&str; 4] =
    ["application/json", "application/x-ndjson", "application/cloudevents+json", "application/cloudevents-batch+json"];

#[tokio::test]
async fn every_way_to_be_wrong_is_answered_by_a_problem_and_stores_nothing() {
    let bed = Bed::start().await;
    let client = bed.broker.admin();
    let document = Document::of(&client).await;
    let rows = bed.rows();
    let mut table =
        Table { client: &client, document: &document, excused: BTreeSet::new(), faults: Vec::new(), asked: 0 };
    let operations = document.operations();
    let mut rows_held = 0;
    for operation in &operations {
        let own: Vec<&Row> = rows.iter().filter(|row| belongs(row, operation, &operations)).collect();
        rows_held += own.len();
        table.hold(operation, &own).await;
    }
    let unused = EXCEPTIONS.iter().enumerate().filter(|(at, _)| !table.excused.contains(at));
    table.faults.extend(unused.map(|(_, exception)| format!("nothing is excused by {exception:?}")));
    table.expect_right(&rows).await;
    println!("{} ways to be wrong, {} operations", table.asked, operations.len());
    assert_eq!(rows_held, rows.len(), "a row belongs to no operation");
    assert!(table.faults.is_empty(), "{} faults:\n{}", table.faults.len(), table.faults.join("\n"));
    assert!(table.asked > CASES_MIN, "the table has become small: {}", table.asked);
}

/// Of the paths that a request fits, the one with most of it literally is meant.
fn belongs(row: &Row, operation: &Operation, all: &[Operation]) -> bool {
    let fits = |operation: &Operation| operation.matches(row.method, row.path());
    let best = all.iter().filter_map(fits).max();
    best.is_some() && fits(operation) == best
}

struct Table<'t> {
    client: &'t Client,
    document: &'t Document,
    /// Exceptions that were of use, by their place.
    excused: BTreeSet<usize>,
    faults: Vec<String>,
    asked: usize,
}

impl Table<'_> {
    async fn hold(&mut self, operation: &Operation, rows: &[&Row]) {
        if rows.is_empty() {
            self.faults.push(format!("{} has no row in rows.rs", operation.name()));
        }
        self.expect_all_parts(operation, rows);
        let before = stored(self.client).await;
        let mut wire = Wire::to(self.client).await;
        for row in rows {
            let maker = Maker { client: self.client, document: self.document, operation, row };
            for case in maker.cases() {
                if !self.excuses(operation, &case.place, case.what) {
                    self.ask(operation, &case, &mut wire).await;
                }
            }
        }
        if let Some(difference) = difference(&before, &stored(self.client).await) {
            self.faults.push(format!("{} has stored what it refused: {difference}", operation.name()));
        }
    }

    async fn ask(&mut self, operation: &Operation, case: &Case, wire: &mut Wire) {
        self.asked += 1;
        wire.send(&case.request).await;
        let answer = wire.answer().await;
        if answer.as_ref().is_none_or(|answer| answer.header("connection") == Some("close")) {
            *wire = Wire::to(self.client).await;
        }
        let judged = answer.as_ref().ok_or_else(|| "no answer".to_owned()).and_then(|answer| judge(answer, case));
        if let Err(fault) = judged {
            let shown: String = answer.map_or_else(String::new, |answer| answer.text()).chars().take(500).collect();
            let Case { what, place, .. } = case;
            self.faults.push(format!("{}, {what} at '{place}': {fault}: {shown}", operation.name()));
        }
    }

    fn excuses(&mut self, operation: &Operation, place: &str, what: &str) -> bool {
        let name = operation.name();
        let found = EXCEPTIONS.iter().position(|exception| {
            name.ends_with(exception.operation) && place.ends_with(exception.place) && exception.what.contains(&what)
        });
        self.excused.extend(found);
        found.is_some()
    }

    /// A part of the request that no row has would never be made wrong.
    fn expect_all_parts(&mut self, operation: &Operation, rows: &[&Row]) {
        let mut missing: Vec<String> = Vec::new();
        for name in self.document.parameters(operation, "query").keys() {
            if !rows.iter().any(|row| row.parameters().iter().any(|(known, _)| known == name)) {
                missing.push(format!("?{name}"));
            }
        }
        for name in self.document.parameters(operation, "header").keys() {
            if !rows.iter().any(|row| row.headers.iter().any(|(known, _)| known == name)) {
                missing.push(format!("{name}:"));
            }
        }
        for media_type in MEDIA_TYPES {
            let Some(schema) = self.document.body(operation, media_type) else { continue };
            let of_type = rows.iter().filter(|row| row.media_type == media_type && !row.is_data);
            let bodies: Vec<&Value> = of_type.filter_map(|row| row.body.as_ref()).collect();
            missing_fields(self.document, &schema, &bodies, "", &mut missing);
        }
        for place in missing {
            if !self.excuses(operation, &place, "absent") {
                self.faults.push(format!("{}: no row has {place}", operation.name()));
            }
        }
    }

    async fn answer_to(&self, row: &Row) -> Answer {
        // Of several brokers, each has a turn, and tells some things of itself alone.
        let is_of_one = row.target.starts_with("/api/v1/brokers/") && row.target.ends_with("/metrics");
        let mut turns_left = if is_of_one { 2 } else { 0 };
        loop {
            let mut wire = Wire::to(self.client).await;
            wire.send(&row.request(self.client)).await;
            let answer = wire.expect_answer().await;
            if answer.status != 409 || turns_left == 0 {
                return answer;
            }
            turns_left -= 1;
        }
    }

    /// That each row is right as it is shows that what was refused before was refused for its fault.
    async fn expect_right(&mut self, rows: &[Row]) {
        for row in rows {
            let answer = self.answer_to(row).await;
            let refused = row.item.is_some() && first_result(&answer)["error"].is_object();
            if !(200..300).contains(&answer.status) || refused {
                self.faults.push(format!("{} {} is right and was refused: {answer}", row.method, row.target));
            }
        }
    }
}

fn missing_fields(document: &Document, schema: &Schema, values: &[&Value], at: &str, missing: &mut Vec<String>) {
    if let Some(items) = document.items(schema) {
        let all: Vec<&Value> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
        return missing_fields(document, &items, &all, &format!("{at}/0"), missing);
    }
    for name in schema.fields().keys() {
        let found: Vec<&Value> = values.iter().filter_map(|value| value.get(name)).collect();
        let place = format!("{at}/{name}");
        match document.field(schema, name) {
            Some(field) if !found.is_empty() => missing_fields(document, &field, &found, &place, missing),
            _ => missing.push(place),
        }
    }
}

/// What became of the first item of a batch, or of the first line of a stream.
fn first_result(answer: &Answer) -> Value {
    if answer.header("content-type") != Some("application/x-ndjson") {
        return answer.json()["results"][0].clone();
    }
    let text = answer.text();
    let line = text.lines().find(|line| line.starts_with('{')).unwrap_or("null");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Whether the answer is the problem that the case wants.
fn judge(answer: &Answer, case: &Case) -> Result<(), String> {
    let (problem, inside) = match case.item {
        // An item that is refused is said in its result: that makes the whole no failure.
        Some(item) if answer.status == 200 => (first_result(answer)["error"].clone(), item),
        _ => (answer.problem()?, ""),
    };
    let said = |word: &&(u16, &str)| problem["status"] == word.0 && problem["code"] == word.1;
    if !case.words.iter().any(|word| said(&word)) {
        return Err(format!("none of {:?}", case.words));
    }
    if problem["detail"].as_str().is_none_or(str::is_empty) {
        return Err("no detail".to_owned());
    }
    let Some(pointer) = case.pointer.as_ref().filter(|_| problem["code"] == "VALIDATION_ERROR") else { return Ok(()) };
    let wanted = pointer.strip_prefix(inside).unwrap_or(pointer);
    let named: Vec<&str> =
        problem["errors"].as_array().into_iter().flatten().filter_map(|fault| fault["pointer"].as_str()).collect();
    // What is wrong inside of a value may be said of the part that is, or of what it is a part of.
    let within =
        |whole: &str, part: &str| part.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_it = |named: &&str| !named.is_empty() && (within(named, wanted) || within(wanted, named));
    if wanted.is_empty() || named.iter().any(is_it) {
        return Ok(());
    }
    Err(format!("names {named:?} and not {wanted}"))
}
