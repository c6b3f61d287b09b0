//! Requests that make no sense get a 4xx in OpenAI's shape from the installed gateway, and never reach an engine.

use anyhow::{Context, Result, ensure};
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weir_e2e::{
    client::{Answer, Caller, Chat},
    install,
    ledger::Engine,
    pool::{PATIENCE, Simulated, name_of},
    with_temp_namespace,
};

const CHAT: &str = "/v1/chat/completions";

/// What is wrong, the body, the status, and a part of the message.
fn bodies(model: &str) -> Vec<(&'static str, String, u16, &'static str)> {
    let deep = format!(
        "{{\"model\":\"{model}\",\"messages\":{}{}}}",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    vec![
        ("nothing", String::new(), 400, ""),
        ("no JSON", "{\"model\": ".to_owned(), 400, ""),
        ("a list", "[1, 2]".to_owned(), 400, ""),
        ("no model", "{\"messages\": []}".to_owned(), 400, "model"),
        (
            "a model of another type",
            "{\"model\": 5, \"messages\": []}".to_owned(),
            400,
            "model",
        ),
        (
            "an unknown model",
            "{\"model\": \"nobody\", \"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}".to_owned(),
            404,
            "nobody",
        ),
        ("a deep body", deep, 400, ""),
        (
            "metadata of another type",
            format!("{{\"model\": \"{model}\", \"messages\": [], \"workflow_metadata\": 7}}"),
            400,
            "workflow_metadata",
        ),
        (
            "absurdly many answers",
            format!("{{\"model\": \"{model}\", \"messages\": [], \"n\": 1000000}}"),
            400,
            "`n`",
        ),
        (
            "less than no tokens",
            format!("{{\"model\": \"{model}\", \"messages\": [], \"max_tokens\": -1}}"),
            400,
            "max_tokens",
        ),
        (
            "a switch of another type",
            format!("{{\"model\": \"{model}\", \"messages\": [], \"stream\": \"yes\"}}"),
            400,
            "stream",
        ),
        (
            "two bodies",
            format!("{{\"model\": \"{model}\", \"messages\": []}} {{}}"),
            400,
            "",
        ),
    ]
}

fn check(what: &str, answer: &Answer, status: u16, part: &str) -> Result<()> {
    let body = String::from_utf8_lossy(&answer.body);
    ensure!(
        answer.status == status,
        "{what}: {} instead of {status}: {body}",
        answer.status
    );
    let error = answer
        .error()
        .with_context(|| format!("{what}: no error object: {body}"))?;
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(
        !message.is_empty() && error["type"].is_string(),
        "{what}: {error}"
    );
    ensure!(
        message.contains(part),
        "{what}: `{message}` does not name `{part}`"
    );
    Ok(())
}

/// Sends bytes as they are and reads the head of what comes back; empty when the gateway closes without a word. `end`
/// closes this side after the bytes.
async fn raw(caller: &Caller, bytes: &[u8], end: bool) -> Result<String> {
    let mut stream = TcpStream::connect(caller.address()).await?;
    // The gateway may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    if end {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let head = async {
        while !answer.windows(4).any(|part| part == b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut answer).await, Ok(count) if count > 0) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, head)
        .await
        .context("the gateway keeps a senseless connection")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn senseless(caller: &Caller, model: &str) -> Result<()> {
    for (what, body, status, part) in bodies(model) {
        check(what, &caller.post(CHAT, body).await?, status, part)?;
    }
    let long = "i".repeat(1_000);
    let too_long = Chat::new(model, "Hello.").workflow(&long);
    check("a long workflow id", &caller.chat(&too_long).await?, 400, "")?;
    let mut in_body = Chat::new(model, "Hello.");
    in_body.body["workflow_metadata"] = serde_json::json!({"workflow_id": "i".repeat(1 << 20)});
    check(
        "an id of a mebibyte",
        &caller.chat(&in_body).await?,
        400,
        "workflow_id",
    )?;
    check(
        "a path that does not exist",
        &caller.post("/v1/nothing", "{}").await?,
        404,
        "",
    )?;
    let wrong_method = Request::builder().method("DELETE").uri(CHAT);
    let answer = caller.request(wrong_method, "").await?.finish().await;
    ensure!(
        matches!(answer.status.as_u16(), 404 | 405),
        "DELETE: {}",
        answer.status
    );
    Ok(())
}

async fn tricks(caller: &Caller, model: &str) -> Result<()> {
    let connect = raw(
        caller,
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        false,
    )
    .await?;
    ensure!(connect.starts_with("HTTP/1.1 4"), "CONNECT: {connect}");
    let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
    let both = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}",
        body.len()
    );
    let both = raw(caller, both.as_bytes(), true).await?;
    ensure!(
        both.is_empty() || both.starts_with("HTTP/1.1 4"),
        "two lengths: {both}"
    );
    let half = raw(
        caller,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{\"mod",
        true,
    )
    .await?;
    ensure!(
        half.is_empty() || half.starts_with("HTTP/1.1 4"),
        "half a body: {half}"
    );
    let header = format!(
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Big: {}\r\n\r\n",
        "h".repeat(2 << 20)
    );
    let header = raw(caller, header.as_bytes(), false).await?;
    ensure!(
        header.is_empty() || header.starts_with("HTTP/1.1 4"),
        "a huge header: {header}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn senseless_requests_are_refused_and_reach_no_engine() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        let (pool, caller) = Simulated::steady("strict").settled(&space, 1).await?;
        senseless(&caller, &pool.model).await?;
        tricks(&caller, &pool.model).await?;
        let pod = pool.pods().await?.first().map(name_of).context("a pod")?;
        let totals = Engine::of(&space, &pod).await?.ledger().await?.totals;
        ensure!(
            totals.started == 0 && totals.rejected == 0,
            "the engine saw {totals:?}"
        );
        // And sense is still answered.
        caller.chat(&Chat::new(&pool.model, "Hello.")).await?.whole()?;
        Ok(())
    })
    .await
}
