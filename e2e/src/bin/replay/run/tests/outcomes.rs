//! How requests end that do not end well.

use tokio::net::TcpListener;

use super::stub::{Answer, DONE, Heard, LAST, ROLE, Stub, good, stream, whole};
use super::*;

#[tokio::test]
async fn every_way_to_fail_has_its_outcome() {
    let died = "data: {\"error\": {\"message\": \"engine died\", \"code\": 500}}\n\n";
    let abort = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"abort\"}]}\n\n";
    let ways: Vec<(&str, Answer, &str, &str)> = vec![
        (
            "an error event, then [DONE]",
            stream("", &[ROLE, died, DONE]),
            "failed",
            "error_event",
        ),
        (
            "a stream without an end",
            stream("", &[ROLE, LAST]),
            "failed",
            "no_done",
        ),
        (
            "an aborted answer",
            stream("", &[ROLE, abort, DONE]),
            "failed",
            "finish",
        ),
        (
            "no JSON in an event",
            stream("", &[ROLE, "data: {\n\n", DONE]),
            "failed",
            "bad_answer",
        ),
        (
            "a cut chunk",
            stream("transfer-encoding: chunked\r\n", &["fff\r\n", ROLE]),
            "failed",
            "cut",
        ),
        (
            "an error",
            whole(
                "503 Busy",
                "x-weir-reason: no_capacity\r\n",
                r#"{"error":{"message":"later"}}"#,
            ),
            "failed",
            "status",
        ),
        (
            "no completion",
            whole("200 OK", "", r#"{"hello":1}"#),
            "failed",
            "bad_answer",
        ),
        ("nothing", Some(String::new()), "lost", "no_answer"),
        (
            "half a head",
            Some("HTTP/1.1 200".to_owned()),
            "lost",
            "no_answer",
        ),
    ];
    for (what, answer, outcome, error) in ways {
        let stub = Stub::new(move |_| answer.clone()).await;
        let ran = run(
            &stub.url,
            "--trace builtin --sessions 1 --max-turns 2 --time-scale 0",
        )
        .await;
        for record in &ran.records {
            assert_eq!(
                (&record["outcome"], &record["error"]),
                (&outcome.into(), &error.into()),
                "{what}: {record}"
            );
        }
        assert!(ran.records.len() >= 2, "{what}: the session goes on");
        assert_eq!(ran.summary.totals.errors[error], ran.records.len() as u64);
        assert_eq!(
            ran.summary.totals.tokens.prompt, 0,
            "{what}: tokens of failed requests do not count"
        );
    }
}

#[tokio::test]
async fn a_refused_connection_is_a_lost_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let ran = run(&url, "--trace builtin --sessions 1 --max-turns 1 --time-scale 0").await;
    assert_eq!(
        (&ran.records[0]["outcome"], &ran.records[0]["error"]),
        (&"lost".into(), &"connect".into())
    );
}

#[tokio::test]
async fn silence_is_lost_after_the_time_limit() {
    let stub = Stub::new(|_| None).await;
    let extra = "--trace builtin --sessions 1 --max-turns 1 --timeout 0.05";
    let ran = run(&stub.url, extra).await;
    assert_eq!(
        (&ran.records[0]["outcome"], &ran.records[0]["error"]),
        (&"lost".into(), &"timeout".into())
    );
}

#[tokio::test]
async fn a_429_is_sent_again_when_asked() {
    let answer = |request: &Heard| {
        let again = request.id().ends_with("-1") && request.id().matches('-').count() > 4;
        if again {
            good(request)
        } else {
            whole(
                "429 Too Many",
                "retry-after: 0\r\n",
                r#"{"error":{"message":"full"}}"#,
            )
        }
    };
    let extra = "--trace builtin --sessions 1 --max-turns 1 --time-scale 0";
    let stub = Stub::new(answer).await;
    let ran = run(&stub.url, extra).await;
    assert_eq!(
        (&ran.records[0]["outcome"], &ran.records[0]["status"]),
        (&"failed".into(), &429.into())
    );
    assert_eq!(ran.records[0]["message"], "full");
    let ran = run(&stub.url, &format!("{extra} --retry-429")).await;
    assert_eq!(
        (&ran.records[0]["outcome"], &ran.records[0]["retries"]),
        (&"ok".into(), &1.into())
    );
}

#[tokio::test]
async fn stopping_cancels_what_is_under_way_and_ends() {
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    let stub = Stub::new(move |_| {
        cancel.cancel();
        None
    })
    .await;
    let files = Files::new();
    let ran = files
        .replay(&stub.url, "--trace builtin --concurrency 2", stop)
        .await;
    let Requests { sent, cancelled, .. } = ran.summary.totals.requests;
    assert!(sent <= 2 && cancelled == sent, "{cancelled} of {sent} cancelled");
    assert!(ran.records.iter().all(|record| record["outcome"] == "cancelled"));
}

#[tokio::test]
async fn a_duration_ends_the_replay() {
    let stub = Stub::new(|_| None).await;
    let ran = run(&stub.url, "--trace builtin --rate 1000 --duration 0.2").await;
    assert_eq!(
        ran.summary.totals.requests.cancelled,
        ran.summary.totals.requests.sent
    );
    assert!(!ran.summary.interrupted);
}
