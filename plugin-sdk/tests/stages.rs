//! What a plugin author can count on, shown on small stages.

use serde::Deserialize;
use sluice_plugin::{
    Batch, Emit, Error, Failure, Message, Position, Rejection, Stage, log,
    testing::{Bench, Emitted, Input, Verdict, logs, run},
};

/// A stage whose behaviour a test writes down as a function.
macro_rules! stage {
    ($name:ident, |$message:ident| $body:block) => {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {}
        impl Stage for $name {
            fn message(&self, $message: &Message<'_>) -> Result<(), Failure> {
                $body
                Ok(())
            }
        }
    };
}

#[test]
fn an_untouched_message_passes_and_its_payload_is_never_copied() {
    stage!(Look, |message| {
        assert_eq!(message.header("kind").as_deref(), Some("order"));
        assert_eq!(message.header("Kind"), None);
        assert_eq!(message.header_names(), ["kind"]);
        assert_eq!(message.payload_len(), 2);
        assert_eq!(message.content_type(), "application/json");
        assert_eq!((message.priority(), message.attempt(), message.position()), (0, 0, None));
        assert_eq!((message.key().as_deref(), message.correlation_id()), (Some("k"), None));
        assert_eq!((message.id().len(), message.schema_version()), (36, None));
        assert!(message.published_at_ms() > 0);
    });
    let input = Input::new("{}").header("kind", "order").key("k");
    let outcome = run::<Look>("{}", [input.clone()]).unwrap().remove(0);
    assert_eq!((outcome.verdict, outcome.payload_reads), (Verdict::Passed, 0));
    assert_eq!(outcome.message, input);
}

#[test]
fn edits_show_in_later_reads_and_change_the_message() {
    stage!(Edit, |message| {
        let mut order: serde_json::Value = message.json()?;
        order["total"] = 3.into();
        message.set_json(&order)?;
        assert_eq!(message.payload(), br#"{"total":3}"#);
        message.set_header("a", "2");
        message.set_header("b", "1");
        message.remove_header("gone");
        message.remove_header("was-never-there");
        message.set_content_type("application/vnd.order+json");
        message.set_key(Some("customer-7"));
        assert_eq!(message.header("a").as_deref(), Some("2"));
        assert_eq!(message.key().as_deref(), Some("customer-7"));
    });
    let input = Input::new(r#"{"total":1}"#).header("a", "1").header("gone", "x");
    let outcome = run::<Edit>("{}", [input]).unwrap().remove(0);
    assert_eq!(outcome.verdict, Verdict::Changed);
    assert_eq!(outcome.message.text(), r#"{"total":3}"#);
    assert_eq!(outcome.message.headers, [("a".into(), "2".into()), ("b".into(), "1".into())]);
    assert_eq!(outcome.message.content_type, "application/vnd.order+json");
}

#[test]
fn one_wrong_message_leaves_the_others_alone() {
    #[derive(Deserialize)]
    struct Order {
        total: i64,
    }
    stage!(Check, |message| {
        let order: Order = message.json()?;
        if order.total < 0 {
            return Err(Rejection::new("NEGATIVE_TOTAL", "a total is never below 0").at("/total").into());
        }
        if order.total == 0 {
            message.drop("nothing ordered");
        }
    });
    let inputs = ["{\"total\":1}", "{", "{\"total\":\"x\"}", "{\"total\":-1}", "{\"total\":0}"].map(Input::new);
    let verdicts: Vec<_> = run::<Check>("{}", inputs).unwrap().into_iter().map(|outcome| outcome.verdict).collect();
    let code = |verdict: &Verdict| match verdict {
        Verdict::Rejected(rejections) => rejections[0].code.clone().into_owned(),
        other => format!("{other:?}"),
    };
    assert_eq!(verdicts[0], Verdict::Passed);
    assert_eq!(code(&verdicts[1]), "NOT_JSON");
    assert_eq!(code(&verdicts[2]), "UNEXPECTED_JSON");
    let negative = Rejection::new("NEGATIVE_TOTAL", "a total is never below 0").at("/total");
    assert_eq!(verdicts[3], Verdict::Rejected(vec![negative]));
    assert_eq!(verdicts[4], Verdict::Dropped("nothing ordered".into()));
}

#[test]
fn every_fault_of_a_message_is_kept_and_outweighs_a_drop() {
    stage!(Twice, |message| {
        message.drop("unwanted");
        message.reject(Rejection::new("A", "first"));
        message.reject(Rejection::new("B", "second"));
    });
    let outcome = run::<Twice>("{}", [Input::new("")]).unwrap().remove(0);
    let both = vec![Rejection::new("A", "first"), Rejection::new("B", "second")];
    assert_eq!(outcome.verdict, Verdict::Rejected(both));
}

#[test]
fn a_fault_ends_the_batch() {
    stage!(Broken, |message| {
        if message.index() == 1 {
            return Err(Error::new("the table is gone").with_code(7).into());
        }
    });
    let error = run::<Broken>("{}", [Input::new(""), Input::new("")]).unwrap_err();
    assert_eq!(error, Error { code: 7, message: "the table is gone".into() });
}

#[test]
fn columns_have_a_value_per_message_in_order() {
    #[derive(Deserialize)]
    struct ByColumn {}
    impl Stage for ByColumn {
        fn process(&self, batch: &Batch<'_>) -> Result<(), Error> {
            assert_eq!((batch.len(), batch.topic().as_str()), (3, "orders"));
            for (message, kind) in batch.iter().zip(batch.header_column("kind").iter()) {
                message.set_header("seen", kind.unwrap_or("none"));
            }
            for (message, payload) in batch.into_iter().zip(batch.payload_column().iter()) {
                message.set_header("bytes", &payload.len().to_string());
            }
            Ok(())
        }
    }
    let bench = Bench::<ByColumn>::new("").unwrap().topic("orders");
    let inputs = [Input::new("12").header("kind", "a"), Input::new(""), Input::new("é").header("kind", "")];
    let outcomes = bench.run(inputs).unwrap();
    let seen = |i: usize, name: &str| outcomes[i].message.header_value(name).unwrap();
    assert_eq!([seen(0, "seen"), seen(1, "seen"), seen(2, "seen")], ["a", "none", ""]);
    assert_eq!([seen(0, "bytes"), seen(1, "bytes"), seen(2, "bytes")], ["2", "0", "2"]);
}

#[test]
fn messages_are_emitted_with_their_source() {
    stage!(Audit, |message| {
        message.emit(Emit { topic: "audit", key: Some("k"), payload: b"{}", headers: &[("of", &message.id())] });
    });
    let bench = Bench::<Audit>::new("{}").unwrap().emit_to("audit");
    let outcome = bench.run([Input::new("{}")]).unwrap().remove(0);
    let headers = vec![("of".to_owned(), outcome.message.id.clone())];
    let emitted = Emitted { topic: "audit".into(), key: Some("k".into()), payload: b"{}".to_vec(), headers };
    assert_eq!((outcome.verdict, outcome.emitted), (Verdict::Passed, vec![emitted]));
}

#[test]
#[should_panic(expected = "not among the stage's emitTo")]
fn emitting_to_an_undeclared_topic_is_a_trap() {
    stage!(Stray, |message| { message.emit(Emit { topic: "elsewhere", ..Emit::default() }) });
    let _ = run::<Stray>("{}", [Input::new("")]);
}

#[test]
#[should_panic(expected = "on the way out")]
fn setting_a_key_on_the_way_out_is_a_trap() {
    stage!(Late, |message| {
        assert_eq!(message.position(), Some(Position { partition: 1, offset: 42 }));
        assert_eq!(message.attempt(), 2);
        message.set_key(None);
    });
    let mut stored = Input::new("");
    (stored.position, stored.attempt) = (Some(Position { partition: 1, offset: 42 }), 2);
    let _ = Bench::<Late>::new("{}").unwrap().on_the_way_out().run([stored]);
}

#[test]
fn a_config_is_refused_with_the_reason_and_the_place() {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limit {
        max: u8,
    }
    impl Stage for Limit {}
    let refusal = |config: &str| Bench::<Limit>::new(config).err().unwrap().message;
    assert!(refusal("{}").contains("missing field `max`"));
    assert!(refusal("").contains("missing field `max`"), "nothing is read as {{}}");
    assert!(refusal(r#"{"max":300}"#).contains("300"));
    assert!(refusal(r#"{"max":1,"min":0}"#).contains("unknown field `min`"));
    assert!(refusal("{").contains("line 1"));
    assert_eq!(Limit::configure(r#"{"max":3}"#).unwrap().max, 3);
}

#[test]
fn many_messages_come_in_batches_of_the_brokers_size() {
    #[derive(Deserialize)]
    struct Sizes {}
    impl Stage for Sizes {
        fn process(&self, batch: &Batch<'_>) -> Result<(), Error> {
            log::info!("{} messages", batch.iter().len());
            log::debug!("plain");
            Ok(())
        }
    }
    let _ = logs();
    run::<Sizes>("{}", (0..130).map(|_| Input::new(""))).unwrap();
    let lines: Vec<_> =
        logs().into_iter().filter(|(level, _)| *level == log::Level::Info).map(|(_, line)| line).collect();
    assert_eq!(lines, ["128 messages", "2 messages"]);
    assert_eq!(logs(), []);
}
