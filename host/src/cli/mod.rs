//! The command line. Invariant: client commands speak the HTTP API and nothing else (`verify` and `repair` read a data
//! directory that no broker runs on, `migrate` a database, `migrate-store` both), and every command ends with an exit code that `failure` documents. Never holds logic
//! of the broker.

mod arguments;
mod audit;
mod broker;
mod client;
mod completions;
mod config;
mod consume;
mod dlq;
mod dry_run;
mod failure;
mod health;
mod listen;
mod message;
mod migrate;
mod migrate_store;
mod output;
mod pipeline;
mod plugin;
mod plugin_logs;
mod plugin_push;
mod project;
mod publish;
mod publish_lines;
mod repair;
mod request;
mod rollout;
mod schema;
mod serve;
mod settle;
mod subscription;
mod tail;
mod token;
mod topic;
mod verify;
mod work_bar;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use arguments::Noun;
use failure::Failure;

const ABOUT: &str = "A message broker whose topics run your own WebAssembly logic";

const AFTER_HELP: &str = "\
First steps:
  sluice serve                                   start a broker here (data in ./sluice-data)
  sluice topic create orders --type PubSub       in another terminal: make a topic
  sluice subscribe orders --group billing        and a consumer group on it
  sluice publish orders '{\"id\": 1}'              send a message
  sluice consume orders --group billing --ack    and take it

Client commands find the broker by --url (or SLUICE_URL) and show --token (or SLUICE_TOKEN). \
With no token, and a broker on this machine, they make one from the secret in the development data directory.

In examples, words in capitals such as MESSAGE_ID stand for what your broker answers.

Exit codes:
  0  done
  1  the broker refused the request, or the answer is no: not valid, damaged, lost
  2  wrong usage or configuration
  3  no broker was reached, or the connection broke
  4  refused for now, try again later (429, 503)
  5  this machine refused: a file, a directory, a port";

/// The command line of `sluice`.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about = ABOUT, after_help = AFTER_HELP, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker
    Serve(serve::ServeArgs),
    /// Make a token for the HTTP API
    Token(token::TokenArgs),
    /// Ask a broker how it is
    Health(health::HealthArgs),
    /// Topics: create, list, get, update, delete, metrics, purge
    #[command(after_help = topic::AFTER_HELP)]
    Topic(Noun<topic::Action>),
    /// Create a subscription: a consumer group, or a webhook
    Subscribe(subscription::SubscribeArgs),
    /// Subscriptions: list, get, update, pause, resume, delete, seek, test, attempts, rotate
    #[command(after_help = subscription::AFTER_HELP)]
    Subscription(Noun<subscription::Action>),
    /// Publish one message, or a file of them
    Publish(publish::PublishArgs),
    /// Take messages, and settle them with --ack
    Consume(consume::ConsumeArgs),
    /// Settle messages that were taken: done
    Ack(settle::AckArgs),
    /// Give messages back: failed
    Nack(settle::NackArgs),
    /// Hold a message longer
    Extend(settle::ExtendArgs),
    /// Look at a topic's messages without taking them
    Tail(tail::TailArgs),
    /// Send a topic's messages to a URL on this machine, as webhooks
    Listen(listen::ListenArgs),
    /// Publish a message and wait for the reply to it
    Request(request::RequestArgs),
    /// One stored message: get, erase
    #[command(after_help = message::AFTER_HELP)]
    Message(Noun<message::Action>),
    /// Plugins: list, get, push, pull, delete, powers, allow, dry-run, rollout, logs; new, build, test, dev, inspect
    #[command(after_help = plugin::AFTER_HELP)]
    Plugin(Noun<plugin::Action>),
    /// The stages of a topic or subscription: get, set, history, diff, rollback
    #[command(after_help = pipeline::AFTER_HELP)]
    Pipeline(Noun<pipeline::Action>),
    /// Schemas: register, get, list, versions, validate
    #[command(after_help = schema::AFTER_HELP)]
    Schema(Noun<schema::Action>),
    /// Dead letters: list, replay, discard
    #[command(after_help = dlq::AFTER_HELP)]
    Dlq(Noun<dlq::Action>),
    /// Brokers that serve together: list, get, metrics
    #[command(after_help = broker::AFTER_HELP)]
    Broker(Noun<broker::Action>),
    /// Who changed what
    Audit(audit::AuditArgs),
    /// Check a data directory that no broker runs on
    Verify(verify::VerifyArgs),
    /// Write what is left of a damaged data directory to a new one
    Repair(repair::RepairArgs),
    /// Bring the tables of a fleet's PostgreSQL up to date: up, status
    Migrate(migrate::MigrateArgs),
    /// Move all that a broker keeps to a fleet's PostgreSQL, or back
    MigrateStore(migrate_store::MigrateStoreArgs),
    /// Show every setting, its value, and where it comes from
    Config(config::ConfigArgs),
    /// Write a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    // An error means that something in the process has chosen a provider already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Token(args) => token::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Completions(args) => completions::run(&args),
        client_command => block_on(run_client(client_command)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough (`sluice tail | head`): that is no failure.
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run_client(command: Command) -> Result<(), Failure> {
    match command {
        Command::Health(args) => health::run(&args).await,
        Command::Topic(args) => topic::run(&args).await,
        Command::Subscribe(args) => subscription::subscribe(&args).await,
        Command::Subscription(args) => subscription::run(&args).await,
        Command::Publish(args) => publish::run(&args).await,
        Command::Consume(args) => consume::run(&args).await,
        Command::Ack(args) => settle::ack(&args).await,
        Command::Nack(args) => settle::nack(&args).await,
        Command::Extend(args) => settle::extend(&args).await,
        Command::Tail(args) => tail::run(&args).await,
        Command::Listen(args) => listen::run(&args).await,
        Command::Request(args) => request::run(&args).await,
        Command::Message(args) => message::run(&args).await,
        Command::Plugin(args) => plugin::run(&args).await,
        Command::Pipeline(args) => pipeline::run(&args).await,
        Command::Schema(args) => schema::run(&args).await,
        Command::Dlq(args) => dlq::run(&args).await,
        Command::Broker(args) => broker::run(&args).await,
        Command::Audit(args) => audit::run(&args).await,
        Command::Verify(args) => verify::run(&args).await,
        Command::Repair(args) => repair::run(&args).await,
        Command::Migrate(args) => migrate::run(&args).await,
        Command::MigrateStore(args) => migrate_store::run(&args).await,
        Command::Serve(_) | Command::Token(_) | Command::Config(_) | Command::Completions(_) => {
            unreachable!("`main` runs these without a runtime of this kind")
        }
    }
}

/// One request at a time needs one thread.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("the runtime"))?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// All help there is, so that a change of it is seen in review.
    #[test]
    fn help_is_as_recorded() {
        fn render(command: &mut clap::Command, path: &str, all: &mut String) {
            let help = command.clone().term_width(100).bin_name(path).render_long_help();
            all.push_str(&format!("===== {path} --help\n\n{help}\n"));
            for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                render(sub, &path, all);
            }
        }
        let (mut all, mut command) = (String::new(), Cli::command());
        // Hands the global options down, as a run does.
        command.build();
        render(&mut command, "sluice", &mut all);
        insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!("help", all);
        });
    }

    #[test]
    fn commands_of_the_design_parse() {
        for line in [
            "sluice serve --data-dir d --listen 127.0.0.1:0 --plugins-dir p --profile development --config c.toml",
            "sluice token --role Admin,Producer --topics orders.* --ttl PT1H --data-dir d",
            "sluice topic create orders --type PubSub --retention P7D --partitions 4",
            "sluice topic list --json --url http://h:1 --token t",
            "sluice subscribe orders --group g --endpoint https://e/hook --header a=b",
            "sluice publish orders {} --header a=b --key k",
            "sluice publish orders --ndjson --file events.ndjson",
            "sluice consume orders --follow --ack",
            "sluice ack 1 --group g",
            "sluice ack - --group g",
            "sluice nack --receipt a --receipt b --reason r --delay PT5M",
            "sluice extend 1 --receipt a --ack-timeout 60",
            "sluice message erase 1 --yes",
            "sluice broker metrics n",
            "sluice topic update orders --unset schema-id --unset retention-bytes",
            "sluice subscription update 1 --backoff-initial PT1S --backoff-jitter 0 --unset filter",
            "sluice publish orders --ndjson --atomic --file events.ndjson",
            "sluice tail orders --follow --from earliest",
            "sluice pipeline set stages.json --topic orders",
            "sluice pipeline rollback --topic orders --to 3",
            "sluice plugin push a@1.2.0.wasm --sign key.pem",
            "sluice plugin pull a latest -o -",
            "sluice plugin allow a kv metrics",
            "sluice plugin allow a --only",
            "sluice plugin dev p --topic orders --stage gate --once",
            "sluice plugin logs a --follow --verdicts",
            "sluice dlq replay orders --all",
            "sluice completions bash",
            "sluice verify --data-dir d --json",
            "sluice repair --data-dir d --to e",
            "sluice migrate up --database postgres://u@h/d --dry-run",
            "sluice migrate status --database Host=h;Database=d;Username=u --json",
            "sluice migrate-store --to postgres --data-dir d --database postgres://u@h/d",
            "sluice migrate-store --to embedded --data-dir d --database postgres://u@h/d --abandon --json",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "sluice warp",
            "sluice plugin allow a",
            "sluice plugin dev --topic a --subscription b",
            "sluice plugin logs a --verdicts",
            "sluice pipeline rollback --topic orders",
            "sluice token --role Root",
            "sluice token",
            "sluice publish orders {} --header nothing",
            "sluice pipeline get",
            "sluice pipeline get --topic a --subscription b",
            "sluice dlq replay orders",
            "sluice ack --group g",
            "sluice nack 1 --delay soon",
            "sluice extend 1",
            "sluice extend 1 --ack-timeout 0",
            "sluice message erase 1",
            "sluice topic update orders --unset description",
            "sluice topic create orders --unset schema-id",
            "sluice publish orders {} --atomic",
            "sluice publish orders {} --ttl PT1M --expires-at 2026-01-31T12:00:00Z",
            "sluice repair --data-dir d",
            "sluice migrate",
            "sluice migrate-store --data-dir d --database postgres://u@h/d",
            "sluice subscribe orders --group g --ack-timeout 30",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
