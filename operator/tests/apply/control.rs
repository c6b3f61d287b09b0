//! The event stream over a real socket: what it tells is known, and void as soon as it breaks.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use weir_operator::control::{exchange::HttpError, stream};
use weir_wire::{control::Event, lines::LinesError};

/// Answers one connection with these bytes, then closes it; gives what it was asked.
async fn answer(bytes: &'static [u8]) -> (std::net::SocketAddr, JoinSet<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let length = stream.read(&mut asked).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        String::from_utf8(asked[..length].to_vec()).unwrap()
    });
    (address, task)
}

async fn read(bytes: &'static [u8]) -> (Vec<Event>, stream::StreamError, String) {
    let (address, mut task) = answer(bytes).await;
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    let error = stream::read(address, "secret", move |event| sink.lock().unwrap().push(event)).await;
    let asked = task.join_next().await.unwrap().unwrap();
    let heard = heard.lock().unwrap().clone();
    (heard, error, asked)
}

#[tokio::test]
async fn events_are_heard_until_the_stream_ends() {
    let (heard, error, asked) = read(
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"type\":\"heartbeat\"}\n{\"type\":\"poolRemoved\",\"pool\":\"a\"}\n{\"ty",
    )
    .await;
    assert_eq!(
        heard,
        [Event::Heartbeat, Event::PoolRemoved { pool: "a".to_owned() }]
    );
    assert!(matches!(error, stream::StreamError::Ended), "{error}");
    assert!(
        asked.starts_with("GET /control/v1/events HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.contains("authorization: Bearer secret\r\n"), "{asked}");
}

#[tokio::test]
async fn a_refused_token_is_told_apart() {
    let (heard, error, _) = read(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await;
    assert!(heard.is_empty() && error.is_refusal(), "{error}");
    let (_, error, _) = read(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    assert!(
        matches!(error, stream::StreamError::Http(HttpError::Status(_))) && !error.is_refusal(),
        "{error}"
    );
}

#[tokio::test]
async fn nonsense_ends_the_stream() {
    let (heard, error, _) = read(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>\n").await;
    assert!(
        heard.is_empty() && matches!(error, stream::StreamError::Lines(LinesError::Form(_))),
        "{error}"
    );
}
