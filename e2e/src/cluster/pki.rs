//! Keys and certificates of the plane, made anew at every start with `openssl` and valid for 30 days.

use std::{fs, path::Path};

use anyhow::Result;
use futures::future::try_join_all;

use super::command::{command, run};

const DAYS: &str = "30";

/// One certificate: who it names, in which group, and the addresses it serves.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// Base name of its files.
    pub(super) file: &'static str,
    /// Common name: the user, for a client.
    pub(super) name: &'static str,
    /// Organisation: the group, for a client.
    pub(super) group: &'static str,
    /// Subject alternative names as openssl writes them.
    pub(super) addresses: String,
}

/// Makes `ca.*`, `sa.key`, `sa.pub` and a key with certificate per subject in `directory`.
///
/// # Errors
/// `openssl` fails.
pub(super) async fn create(directory: &Path, subjects: &[Subject]) -> Result<()> {
    let account_keys = async {
        openssl(directory, &["genrsa", "-out", "sa.key", "2048"]).await?;
        openssl(directory, &["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"]).await
    };
    let certificates = async {
        let mut authority = vec![
            "req",
            "-x509",
            "-subj",
            "/CN=weir-plane",
            "-days",
            DAYS,
            "-out",
            "ca.crt",
        ];
        authority.extend(new_key("ca.key"));
        openssl(directory, &authority).await?;
        let signed = (2..)
            .zip(subjects)
            .map(|(serial, subject)| sign(directory, serial, subject));
        try_join_all(signed).await.map(|_| ())
    };
    tokio::try_join!(account_keys, certificates).map(|_| ())
}

fn new_key(file: &str) -> [&str; 6] {
    [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-keyout",
        file,
    ]
}

async fn sign(directory: &Path, serial: u32, subject: &Subject) -> Result<()> {
    let file = |suffix: &str| format!("{}.{suffix}", subject.file);
    let (key, request, certificate, extensions) = (file("key"), file("csr"), file("crt"), file("ext"));
    let addresses = &subject.addresses;
    fs::write(
        directory.join(&extensions),
        format!("subjectAltName={addresses}\nextendedKeyUsage=serverAuth,clientAuth\n"),
    )?;
    let (who, serial) = (
        format!("/O={}/CN={}", subject.group, subject.name),
        serial.to_string(),
    );
    let mut ask = vec!["req", "-subj", &who, "-out", &request];
    ask.extend(new_key(&key));
    openssl(directory, &ask).await?;
    let answer = [
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-set_serial",
        &serial,
        "-days",
        DAYS,
        "-extfile",
        &extensions,
        "-out",
        &certificate,
    ];
    openssl(directory, &answer).await
}

async fn openssl(directory: &Path, args: &[&str]) -> Result<()> {
    let mut openssl = command("openssl", args);
    // Keys are for the owner alone and without a pass phrase.
    if args.contains(&"-newkey") {
        openssl.arg("-nodes");
    }
    openssl.current_dir(directory);
    run(openssl).await.map(|_| ())
}
