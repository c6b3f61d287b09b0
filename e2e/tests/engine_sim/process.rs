//! Logs, signals, exit codes, environment.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(30);

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: Vec<String>,
    address: SocketAddr,
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine_sim"));
    command
        .args([
            "serve",
            "org/tiny",
            "--served-model-name",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ])
        .args(["--profile", "tiny-cpu"])
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir("/")
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

impl Process {
    /// Starts one and waits until it says where it will listen.
    async fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::of(command(arguments, environment), "vLLM API server version 0.32.0").await
    }

    /// Starts one that says `hello` and its address first.
    async fn of(mut command: Command, hello: &str) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Self {
            child,
            lines,
            log: Vec::new(),
            address,
        };
        let first = process.until(hello).await;
        process.address = first.rsplit_once(' ').unwrap().1.parse().unwrap();
        process
    }

    /// Starts one and waits until it accepts connections.
    async fn ready(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut process = Self::start(arguments, environment).await;
        process.until("Application startup complete.").await;
        process
    }

    /// Reads the log up to a line that contains `text`, and returns it.
    async fn until(&mut self, text: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap();
            let line = line.unwrap_or_else(|| panic!("log ended before `{text}`: {:#?}", self.log));
            self.log.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    async fn exit_code(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .code()
    }

    /// Sends a request and returns the connection.
    async fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = self.send(method, path, body).await;
        let mut text = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        text
    }

    /// A stream that has got its head; its engine hangs.
    async fn hung_stream(&self) -> TcpStream {
        self.ask("POST", "/sim/fault", r#"{"kind":"hang"}"#).await;
        let body =
            r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":5,"ignore_eos":true,"stream":true}"#;
        let mut stream = self.send("POST", "/v1/chat/completions", body).await;
        read_until(&mut stream, "\r\n\r\n").await;
        stream
    }
}

async fn read_until(stream: &mut TcpStream, text: &str) {
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains(text) {
        let count = timeout(PATIENCE, stream.read_buf(&mut received))
            .await
            .unwrap()
            .unwrap();
        assert!(count > 0, "closed before `{text}`");
    }
}

async fn until_refused(address: SocketAddr) {
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn start_up_is_logged_as_the_engine_logs_it() {
    let mut process = Process::start(&["--startup", "300ms", "--tensor-parallel-size", "2"], &[]).await;
    assert!(
        TcpStream::connect(process.address).await.is_err(),
        "refused until ready"
    );
    process.until("Application startup complete.").await;
    for text in [
        "flags without meaning to the simulator are ignored flags=\"--tensor-parallel-size 2\"",
        "Initializing a V1 LLM engine (v0.32.0)",
        "Loading weights took",
        "Model loading took",
        "Dynamo bytecode transform time:",
        "GPU KV cache size: 262144 tokens",
        "Maximum concurrency for 32768 tokens per request: 8.00x",
        "Graph capturing finished in",
        "init engine (profile, create kv cache, warmup model) took",
        "Starting vLLM server on http://",
    ] {
        assert!(
            process.log.iter().any(|line| line.contains(text)),
            "{text}: {:#?}",
            process.log
        );
    }
    assert!(
        process
            .ask("GET", "/health", "")
            .await
            .starts_with("HTTP/1.1 200")
    );
    process.signal();
    process.until("simulator totals").await;
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_signal_during_start_up_is_swallowed_and_a_second_interrupts() {
    let mut process = Process::start(&["--startup", "500ms"], &[]).await;
    process.signal();
    process.until("Application startup complete.").await;
    assert!(
        process
            .ask("GET", "/health", "")
            .await
            .starts_with("HTTP/1.1 200")
    );

    let mut process = Process::start(&["--startup", "10m"], &[]).await;
    // Two signals sent at once may arrive as one.
    loop {
        process.signal();
        if let Ok(status) = timeout(Duration::from_millis(50), process.child.wait()).await {
            assert_eq!(status.unwrap().code(), Some(130));
            break;
        }
    }
}

#[tokio::test]
async fn without_a_shutdown_timeout_the_process_lives_until_its_clients_leave() {
    let mut process = Process::ready(&[], &[]).await;
    let stream = process.hung_stream().await;
    process.signal();
    until_refused(process.address).await;
    assert!(
        timeout(Duration::from_millis(300), process.child.wait())
            .await
            .is_err(),
        "still there"
    );
    drop(stream);
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn with_a_shutdown_timeout_requests_in_flight_finish() {
    let mut process = Process::ready(&["--shutdown-timeout", "600"], &[]).await;
    let mut stream = process.hung_stream().await;
    process.signal();
    let body = r#"{"messages":[],"max_tokens":1}"#;
    loop {
        let mut probe = process.send("POST", "/v1/chat/completions", body).await;
        let mut text = String::new();
        // Taken before the signal arrived, it waits in the hung engine.
        if timeout(Duration::from_millis(50), probe.read_to_string(&mut text))
            .await
            .is_ok()
        {
            assert!(
                text.contains("cannot schedule new futures after shutdown"),
                "{text}"
            );
            break;
        }
    }
    assert!(
        process
            .ask("GET", "/health", "")
            .await
            .starts_with("HTTP/1.1 200")
    );
    process.ask("POST", "/sim/fault", r#"{"kind":"clear"}"#).await;
    read_until(&mut stream, "data: [DONE]").await;
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_dead_engine_ends_the_process_with_code_0() {
    let mut process = Process::ready(&[], &[]).await;
    process
        .ask("POST", "/sim/fault", r#"{"kind":"crash","exit_after_ms":10}"#)
        .await;
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn the_environment_is_obeyed() {
    let environment = [
        ("VLLM_SERVER_DEV_MODE", "1"),
        ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "1"),
        ("VLLM_API_KEY", "k"),
    ];
    let process = Process::ready(&["--enable-sleep-mode"], &environment).await;
    assert!(
        process
            .ask("GET", "/is_sleeping", "")
            .await
            .contains(r#"{"is_sleeping":false}"#)
    );
    assert!(
        process
            .ask("GET", "/v1/models", "")
            .await
            .contains(r#"{"error":"Unauthorized"}"#)
    );
    let mut stream = TcpStream::connect(process.address).await.unwrap();
    stream
        .write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut stream, "0.32.0").await;
    let closed = timeout(Duration::from_secs(4), stream.read(&mut [0]))
        .await
        .expect("closed well before 5 s");
    assert_eq!(closed.unwrap(), 0);
}

#[tokio::test]
async fn impossible_settings_end_the_process_with_a_reason() {
    for (arguments, code, reason) in [
        (&["--max-model-len", "1M"][..], 1, "more KV cache is needed"),
        (&["--profile", "9b-x"], 2, "unknown profile `9b-x`"),
        (&["--host", "nowhere"], 2, "is not an IP address"),
    ] {
        let output = timeout(PATIENCE, command(arguments, &[]).stderr(Stdio::piped()).output())
            .await
            .unwrap()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            (output.status.code(), text.contains(reason)),
            (Some(code), true),
            "{text}"
        );
    }
}

#[tokio::test]
async fn called_as_sglang_it_is_sglang() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine_sim"));
    command
        .args([
            "-m",
            "sglang.launch_server",
            "--model-path",
            "org/tiny",
            "--served-model-name",
            "tiny",
        ])
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--enable-metrics",
            "--enable-cache-report",
        ])
        .args([
            "--schedule-low-priority-values-first",
            "--profile",
            "tiny-cpu",
            "--time-scale",
            "0.02",
        ])
        .env_clear()
        .env("SGLANG_TIMEOUT_KEEP_ALIVE", "120")
        .current_dir("/")
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut process = Process::of(command, "SGLang server version 0.5.23").await;
    process.until("Application startup complete.").await;
    let answer = process.ask("GET", "/v1/models", "").await;
    assert!(answer.contains("\"owned_by\":\"sglang\""), "{answer}");
    process.signal();
    assert_eq!(process.exit_code().await, Some(0));
}
