//! `sluice plugin push` and `pull`: components to a broker and back. Invariant: what is sent is announced with its digest, and
//! what is fetched is kept only if it is what the broker said. Never looks into a component.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::stream;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::arguments::{read_input, read_text};
use super::client::{Client, Query};
use super::failure::Failure;
use super::output::Output;
use super::work_bar::WorkBar;
use crate::store::embedded::Progress;

/// Bytes that are handed to the connection at once, and by which the bar moves.
const CHUNK_BYTES: usize = 64 * 1024;

pub(super) const PUSH_AFTER_HELP: &str = "\
The broker checks, compiles and tries the component before it answers. What binds `latest` runs it then.
A key comes from `openssl genpkey -algorithm ed25519 -out key.pem`; `openssl pkey -in key.pem -pubout` writes what
plugins.trusted_keys takes.

Examples:
  sluice plugin push orders-check@1.3.0.wasm
  sluice plugin push check.wasm --name orders-check --version 1.3.0
  sluice plugin push orders-check@1.3.0.wasm --sign key.pem";

pub(super) const PULL_AFTER_HELP: &str = "\
Examples:
  sluice plugin pull orders-check 1.2.0
  sluice plugin pull redact latest -o redact.wasm";

/// Which component, as what.
#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The component, such as name@1.2.0.wasm
    file: PathBuf,
    /// The plugin's name [default: from the file's]
    #[arg(long)]
    name: Option<String>,
    /// The version's label [default: from the file's name, else one of its digest]
    #[arg(long, value_name = "LABEL")]
    version: Option<String>,
    /// Sign it with this ed25519 key: PKCS#8, PEM
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
}

/// Which component, and where to.
#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// The plugin's name
    name: String,
    /// The version's label, or latest
    version: String,
    /// Where to write it; - is standard output [default: NAME@VERSION.wasm]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Sends a component.
pub(super) async fn push(client: &Client, output: Output, args: &PushArgs) -> Result<(), Failure> {
    let (name, label) = name_and_label(args)?;
    let component = Bytes::from(read_input(&args.file)?);
    let pushed = send(client, Upload { name: &name, label, sign: args.sign.as_deref() }, component).await?;
    let label = pushed["version"].as_str().unwrap_or_default();
    output.done(&format!("{name} {label} is accepted, and what `latest` means"), &pushed)
}

/// As what a component is sent.
#[derive(Debug)]
pub(super) struct Upload<'a> {
    /// The plugin's name.
    pub(super) name: &'a str,
    /// The version's label.
    pub(super) label: Option<String>,
    /// The key to sign with.
    pub(super) sign: Option<&'a Path>,
}

/// Sends it; the version that the broker has made of it.
pub(super) async fn send(client: &Client, upload: Upload<'_>, component: Bytes) -> Result<Value, Failure> {
    let digest = Sha256::digest(&component);
    let mut headers = vec![
        ("content-type", "application/wasm".to_owned()),
        ("content-length", component.len().to_string()),
        ("content-digest", format!("sha-256=:{}:", STANDARD.encode(digest))),
    ];
    if let Some(file) = upload.sign {
        let signature = signing_key(file)?.sign(&digest);
        headers.push(("sluice-plugin-signature", STANDARD.encode(signature.to_bytes())));
    }
    let bar = WorkBar::new();
    bar.show(Progress::Begins("sent", component.len() as u64));
    let body = reqwest::Body::wrap_stream(chunks(component, bar.clone()));
    let query = Query::default().with("version", upload.label);
    let pushed = client.post_bytes(&["plugins", upload.name, "versions"], query, &headers, body).await;
    bar.end();
    pushed
}

/// Fetches a component.
pub(super) async fn pull(client: &Client, output: Output, args: &PullArgs) -> Result<(), Failure> {
    let path = ["plugins", &args.name, "versions", &args.version];
    let version = client.get(&path, Query::default()).await?.body;
    let text = |field: &str| version[field].as_str().unwrap_or_default().to_owned();
    // By its label: what `latest` means may change meanwhile.
    let (label, digest) = (text("version"), text("digest"));
    let component = client.get_bytes(&["plugins", &args.name, "versions", &label, "wasm"]).await?;
    let found = hex::encode(Sha256::digest(&component));
    if found != digest {
        return Err(client.foreign(format!("the component has the SHA-256 {found}, and {digest} was announced")));
    }
    let file = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}@{label}.wasm", args.name)));
    if file == Path::new("-") {
        let mut stdout = std::io::stdout().lock();
        if stdout.is_terminal() {
            return Err(Failure::Usage("a component is nothing for a terminal: name a file, or pipe it".to_owned()));
        }
        return stdout.write_all(&component).and_then(|()| stdout.flush()).map_err(Failure::io("stdout"));
    }
    std::fs::write(&file, &component).map_err(Failure::io(file.display().to_string()))?;
    output.done(&format!("{} {label} is in {}", args.name, file.display()), &version)
}

fn name_and_label(args: &PushArgs) -> Result<(String, Option<String>), Failure> {
    let file = args.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = file.strip_suffix(".wasm").unwrap_or_default();
    let (name, label) = match stem.split_once('@') {
        Some((name, label)) => (name, Some(label.to_owned())),
        None => (stem, None),
    };
    let name = args.name.clone().unwrap_or_else(|| name.to_owned());
    if name.is_empty() {
        return Err(Failure::Usage("--name is needed: the file is not named name.wasm or name@1.2.0.wasm".to_owned()));
    }
    Ok((name, args.version.clone().or(label)))
}

fn chunks(component: Bytes, bar: WorkBar) -> impl stream::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    stream::iter((0..component.len()).step_by(CHUNK_BYTES).map(move |from| {
        let chunk = component.slice(from..component.len().min(from + CHUNK_BYTES));
        bar.show(Progress::Did(chunk.len() as u64));
        Ok(chunk)
    }))
}

fn signing_key(file: &Path) -> Result<SigningKey, Failure> {
    SigningKey::from_pkcs8_pem(&read_text(file)?).map_err(|_| {
        let shown = file.display();
        Failure::Usage(format!("{shown} is no ed25519 key as `openssl genpkey -algorithm ed25519` makes it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(file: &str, name: Option<&str>, version: Option<&str>) -> PushArgs {
        PushArgs { file: file.into(), name: name.map(str::to_owned), version: version.map(str::to_owned), sign: None }
    }

    #[test]
    fn a_file_says_what_it_is_unless_it_is_told() {
        let named = |file, name, version| name_and_label(&args(file, name, version)).ok();
        let is = |name: &str, label: Option<&str>| Some((name.to_owned(), label.map(str::to_owned)));
        assert_eq!(named("a/b@1.2.0.wasm", None, None), is("b", Some("1.2.0")));
        assert_eq!(named("b.wasm", None, None), is("b", None));
        assert_eq!(named("b@1.wasm", Some("c"), Some("2")), is("c", Some("2")));
        assert_eq!(named("target/out", Some("c"), None), is("c", None));
        assert_eq!(named("target/out", None, None), None);
        assert_eq!(named("-", None, None), None);
    }

    /// The first test key of RFC 8032, as `openssl genpkey` writes one.
    #[test]
    fn a_key_is_read_from_pkcs8() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        let public = STANDARD.encode(SigningKey::from_pkcs8_pem(pem).expect("a key").verifying_key().as_bytes());
        assert_eq!(public, "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----", &pem.replace("K2Vw", "K2Vx")] {
            assert!(SigningKey::from_pkcs8_pem(bad).is_err(), "{bad}");
        }
    }
}
