//! A stub engine that answers as fast as one core allows: plain JSON, a stream in one write, a stream with 3 ms between
//! its chunks.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Chunks of a stream.
const CHUNKS: usize = 17;
/// Between two chunks of a spaced stream.
const SPACE: Duration = Duration::from_millis(3);

struct Answers {
    json: Vec<u8>,
    head: Vec<u8>,
    chunks: Vec<Vec<u8>>,
    burst: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let usage = r#""usage":{"prompt_tokens":11,"total_tokens":27,"completion_tokens":16,"prompt_tokens_details":{"cached_tokens":8}}"#;
        let body = format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1795322254,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"finish_reason":"stop"}}],{usage}}}"#,
            "word ".repeat(20)
        );
        let json = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        for number in 0..CHUNKS - 2 {
            let mut event = String::new();
            let _ = write!(
                event,
                "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1795322254,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"word{number}\"}},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}}]}}\n\n"
            );
            chunks.push(chunk(&event).into_bytes());
        }
        chunks.push(
            chunk(&format!(
                "data: {{\"id\":\"chatcmpl-1\",\"choices\":[],{usage}}}\n\n"
            ))
            .into_bytes(),
        );
        chunks.push(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).into_bytes());
        let burst = [head.as_bytes().to_vec(), chunks.concat()].concat();
        Self {
            json: json.into_bytes(),
            head: head.as_bytes().to_vec(),
            chunks,
            burst,
        }
    }
}

/// Serves for ever.
pub(super) fn run(port: u16) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        let answers: &'static Answers = Box::leak(Box::new(Answers::new()));
        let mut serving = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            serving.spawn(async move {
                // A client that left is nothing to a stub.
                let _ = serve(stream, answers).await;
            });
            while serving.try_join_next().is_some() {}
        }
    })
}

async fn serve(mut stream: TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        let end = loop {
            if let Some(end) = memchr::memmem::find(&buffer, b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length: usize = head
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.parse().ok())
            .unwrap_or(0);
        while buffer.len() < end + length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        buffer.drain(..end + length);
        if head.contains("mode=burst") {
            stream.write_all(&answers.burst).await?;
        } else if head.contains("mode=spaced") {
            stream.write_all(&answers.head).await?;
            for chunk in &answers.chunks {
                tokio::time::sleep(SPACE).await;
                stream.write_all(chunk).await?;
            }
        } else {
            stream.write_all(&answers.json).await?;
        }
    }
}
