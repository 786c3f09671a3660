//! Plugins in every language that `sluice plugin new` knows: made in an empty folder outside the repository, built by the
//! language's own tools, and held against the same cases. Invariant: a tool that can't be installed fails the suite; nothing
//! is skipped. Never asks a broker, but where the documented steps do.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sluice_tests::workshop::Workshop;
use sluice_tests::{Broker, binary, outside};

/// The first filter of an author in Rust may weigh so much.
const HEADER_FILTER_BYTES_MAX: u64 = 150_000;

/// Each case by whether it is as expected.
fn verdicts(report: &Value) -> Vec<(String, bool)> {
    let cases = report["cases"].as_array().expect("a report has cases");
    let one = |case: &Value| (case["case"].as_str().expect("a name").to_owned(), case["ok"] == true);
    cases.iter().map(one).collect()
}

/// A new project builds and does what its cases say; a case that says otherwise fails.
fn a_new_project_works(lang: &str) -> Workshop {
    let workshop = Workshop::empty(&format!("new-{lang}"));
    workshop.done(&["new", "--lang", lang, "orders-filter"]);
    let built = workshop.done(&["build", "orders-filter"]);
    assert_eq!(built["component"], "orders-filter/dist/orders-filter.wasm");

    let report = workshop.done(&["test", "orders-filter"]);
    assert_eq!((verdicts(&report).len(), &report["failed"]), (5, &json!(0)), "{report:#}");
    for case in report["cases"].as_array().expect("cases") {
        let measured = case["nanosecondsPerMessage"].as_u64().is_some_and(|time| time > 0);
        assert!(measured || case["messages"] == 0, "no time: {case:#}");
        assert!(case["memoryBytes"].as_u64().is_some() || case["messages"] == 0, "no memory: {case:#}");
    }

    let schema = workshop.done(&["inspect", "orders-filter"]);
    assert_eq!(schema["configSchema"]["required"], json!(["header", "value"]), "{schema:#}");
    assert_eq!((&schema["taken"], &schema["digest"]), (&json!(true), &built["digest"]));

    workshop.write(
        "orders-filter/cases/kept/out.json",
        &json!([
            {"verdict": "changed", "payload": {"id": 1, "total": 9.5, "site": "eu-2"}},
            {"verdict": "dropped"},
        ]),
    );
    let said = workshop.refused(&["test", "orders-filter"], 1);
    assert!(said.contains(r#"message 1: /payload/site: expected "eu-2", it is "eu-1""#), "{said}");
    assert!(
        said.contains("message 2: /verdict: expected dropped, it is") && said.contains("1 of 5 cases failed"),
        "{said}"
    );
    workshop.done(&["test", "orders-filter", "--update"]);
    workshop.done(&["test", "orders-filter"]);
    workshop
}

/// A worked example passes the cases that all of them share.
fn an_example_works(lang: &str, folder: &str) -> (Workshop, Value) {
    let workshop = Workshop::with_examples(&format!("example-{lang}"));
    let (project, cases) = (format!("plugins/examples/{folder}"), "plugins/examples/cases");
    let built = workshop.done(&["build", &project]);
    let report = workshop.done(&["test", &project, "--cases", cases]);
    let all = ["columns", "config-refused", "dropped", "passes"].map(|case| (case.to_owned(), true));
    assert_eq!(verdicts(&report), all, "{report:#}");
    workshop.write(
        &format!("{cases}/passes/out.json"),
        &json!([{"verdict": "dropped"}, {"verdict": "pass"}, {"verdict": "pass"}]),
    );
    workshop.refused(&["test", &project, "--cases", cases], 1);
    (workshop, built)
}

#[test]
fn a_new_project_in_rust_builds_passes_its_cases_and_fails_a_wrong_one() {
    a_new_project_works("rust");
}

#[test]
fn a_new_project_in_javascript_builds_passes_its_cases_and_fails_a_wrong_one() {
    a_new_project_works("js");
}

#[test]
fn a_new_project_in_python_builds_passes_its_cases_and_fails_a_wrong_one() {
    a_new_project_works("python");
}

#[test]
fn a_new_project_in_c_builds_passes_its_cases_and_fails_a_wrong_one() {
    let workshop = a_new_project_works("c");
    // What the compiler says is passed on, and what was built before stays.
    let source = workshop.dir.join("orders-filter/orders-filter.c");
    fs::write(&source, "#include \"plugin.h\"\nint broken(void) { return nothing; }\n").expect("written");
    let said = workshop.refused(&["build", "orders-filter"], 1);
    assert!(said.contains("nothing"), "{said}");
    workshop.done(&["test", "orders-filter"]);
}

#[test]
fn the_example_in_rust_passes_the_shared_cases_and_is_small() {
    let (_, built) = an_example_works("rust", "header-filter");
    let bytes = built["bytes"].as_u64().expect("a size");
    assert!(bytes < HEADER_FILTER_BYTES_MAX, "the header filter has {bytes} bytes");
}

#[test]
fn the_example_in_javascript_passes_the_shared_cases() {
    an_example_works("js", "js");
}

#[test]
fn the_example_in_python_passes_the_shared_cases() {
    an_example_works("python", "python");
}

#[test]
fn the_example_in_c_passes_the_shared_cases() {
    an_example_works("c", "c");
}

/// The blocks of commands below a heading of docs/plugins.md.
fn documented(heading: &str) -> Vec<String> {
    let page = fs::read_to_string(binary::repository().join("docs/plugins.md")).expect("the page is there");
    let section = page.split(&format!("\n## {heading}\n")).nth(1).expect("the heading is on the page");
    let section = section.split("\n## ").next().unwrap_or_default();
    section.split("```sh\n").skip(1).filter_map(|rest| Some(rest.split("```").next()?.to_owned())).collect()
}

/// Runs commands as they stand in the documents, in an empty folder.
fn steps(name: &str, script: &str, broker: &Broker) -> String {
    let mut workshop = Workshop::empty(name);
    let bin = workshop.dir.join("bin");
    fs::create_dir(&bin).expect("a folder can be made");
    std::os::unix::fs::symlink(binary::sluice(), bin.join("sluice")).expect("a link can be made");
    let path = std::env::split_paths(&workshop.path);
    workshop.path = std::env::join_paths(std::iter::once(bin).chain(path)).expect("these were parts of a path");
    let mut bash = workshop.command(Path::new("bash"));
    bash.env("SLUICE_URL", broker.url()).env("SLUICE_TOKEN", broker.admin().token());
    let output = bash.args(["-euo", "pipefail", "-c", script]).output().expect("bash starts");
    assert!(output.status.success(), "{script}\n{}", outside::said(&output));
    outside::said(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_steps_work_in_rust_and_in_javascript_from_an_empty_folder_to_a_rollback() {
    let [rust, js] = &documented("A first one")[..] else { panic!("two blocks of commands") };
    let [rust_on_a_broker, js_on_a_broker] = &documented("On a broker")[..] else { panic!("two blocks of commands") };
    let [rust_on_the_past] = &documented("On messages of the past")[..] else { panic!("one block of commands") };
    let way = [
        "5 cases ok, 0 failed (NAME, ",
        "taken          yes",
        "NAME 1.1.0 is accepted",
        "revision 2 is in use: canary of 1.1.0 on 'gate', 50 %",
        "canary at 50.0 %, running",
        "revision 3 is in use: 1.1.0 promoted on 'gate'",
        "revision 4 is in use, as 1 was",
        "rollback to 1",
    ];
    let of_the_past = [
        "2 messages on the stage 'gate', beside version 1.0.0: 2 the same",
        "22 messages on the stage 'gate', beside version 1.0.0: 22 the same",
        "0 messages on the stage 'gate'",
        r#""inputs": "sent""#,
    ];
    for (folder, name, first, then, past, said_of_it) in [
        ("documented-rust", "orders-filter", rust, rust_on_a_broker, rust_on_the_past.as_str(), &of_the_past[..]),
        ("documented-js", "orders-check", js, js_on_a_broker, "", &[][..]),
    ] {
        let broker = Broker::start().await;
        let said = steps(folder, &format!("{first}\n{then}\n{past}"), &broker);
        let way = way.iter().filter(|wanted| name == "orders-filter" || !wanted.starts_with("taken"));
        for wanted in way.chain(said_of_it) {
            assert!(said.contains(&wanted.replace("NAME", name)), "no '{wanted}' in {said}");
        }
        let pipeline = broker.get("/topics/orders/pipeline").await.expect(200);
        assert_eq!((&pipeline["revision"], &pipeline["resolved"][0]["version"]), (&json!(4), &json!("1.0.0")));
        let figures = broker.get("/topics/orders/pipeline/stages/gate/rollout").await.expect(200);
        let messages = |arm: &str| figures[arm]["messages"].as_u64().expect("a number");
        assert_eq!((figures["state"].as_str(), messages("stable") + messages("candidate")), (Some("promoted"), 20));
    }
}

#[test]
fn a_missing_toolchain_is_named_with_the_command_that_installs_it() {
    let mut workshop = Workshop::empty("no-tools");
    workshop.path = "/nowhere".into();
    for (lang, command) in [
        ("rust", "rustup"),
        ("js", "npm install"),
        ("python", ".venv/bin/pip install -r requirements.txt"),
        ("c", ".venv/bin/pip install -r requirements.txt"),
    ] {
        workshop.done(&["new", "--lang", lang, "mine", "--dir", lang]);
        let said = workshop.refused(&["build", lang], 1);
        assert!(said.contains(command), "{lang}: {said}");
    }
}

#[test]
fn what_is_no_project_no_case_or_no_component_is_told() {
    let workshop = Workshop::empty("wrong");
    assert!(workshop.refused(&["build"], 2).contains("no plugin's project"));
    assert!(workshop.refused(&["new", "--lang", "c", "My Plugin"], 2).contains("no plugin's name"));
    workshop.done(&["new", "--lang", "c", "mine"]);
    assert!(workshop.refused(&["new", "--lang", "js", "mine"], 2).contains("something in"));
    assert!(workshop.refused(&["test", "mine"], 2).contains("sluice plugin build mine"));
    fs::write(workshop.dir.join("core.wasm"), b"\0asm\x01\0\0\0").expect("written");
    assert!(workshop.refused(&["test", "core.wasm", "--cases", "mine/cases"], 1).contains("core module"));
    let facts = workshop.done(&["inspect", "core.wasm"]);
    assert_eq!((&facts["taken"], &facts["bytes"]), (&json!(false), &json!(8)));
}
