//! The server's life: refused while starting, listening, SIGTERM in both of vLLM's ways and in SGLang's, crash, exit
//! (`engine-interface.md` §3.6, §6.3 to §6.6).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::info;

use crate::{
    driver::{Clock, Command},
    http::{App, Control, VERSION, serve_connection, sglang},
};

/// Connections the kernel queues before they are accepted.
const BACKLOG: u32 = 4096;
/// Teardown of an idle server.
const TEARDOWN: Duration = Duration::from_millis(300);
/// How long `/health` says 503 after a drain ran out, before the listener closes.
const AFTER_DRAIN: Duration = Duration::from_millis(500);
/// Time the last answers get to leave the sockets.
const FLUSH: Duration = Duration::from_secs(1);
/// Shares of the start-up time, in the order of [`Server::announce`].
const PHASES: [f64; 5] = [0.15, 0.15, 0.3, 0.2, 0.2];
/// How often a draining SGLang server looks whether it is empty; scaled, unlike the times above.
const WATCHDOG: Duration = Duration::from_secs(5);
/// Share of SGLang's start-up in which it listens already and warms up.
const WARM_UP: f64 = 0.1;
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// How a server ended; the number is the process' exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// After SIGTERM, or after the engine's death: vLLM says 0 to both.
    Done = 0,
    /// A second SIGTERM during start-up.
    Interrupted = 130,
}

/// A bound address that does not listen yet: connections are refused.
pub(crate) struct Bound {
    socket: TcpSocket,
    pub(crate) address: SocketAddr,
}

/// Binds; port 0 takes a free one.
pub(crate) fn bind(address: SocketAddr) -> io::Result<Bound> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let address = socket.local_addr()?;
    Ok(Bound { socket, address })
}

/// One server from start to exit.
pub(crate) struct Server {
    pub(crate) app: Arc<App>,
    pub(crate) control: mpsc::UnboundedReceiver<Control>,
    /// Becomes true when connections are accepted for the first time.
    pub(crate) ready: watch::Sender<bool>,
}

/// What ends the server, and when.
struct End {
    at: Instant,
    kind: EndKind,
}

#[derive(Clone, Copy, PartialEq)]
enum EndKind {
    /// The drain's time is over.
    DrainTimeout,
    /// SGLang looks whether anything is in flight.
    Watchdog,
    /// Close the listener, then leave when all connections are gone.
    Close,
}

impl Server {
    /// Runs to the end.
    pub(crate) async fn run(mut self, bound: Bound) -> io::Result<Exit> {
        let address = bound.address;
        if let Some(exit) = self.start_up(address).await {
            return Ok(exit);
        }
        let listener = bound.socket.listen(BACKLOG)?;
        let warm_up = self.app.options.startup.mul_f64(WARM_UP);
        self.app.warm_up(warm_up);
        match self.app.options.sglang() {
            Some(_) => info!("Uvicorn running on http://{address}, warming up for {warm_up:?}"),
            None => info!("Starting vLLM server on http://{address}"),
        }
        info!("Application startup complete.");
        self.ready.send_replace(true);
        self.serve(listener, address).await
    }

    /// Waits out the start-up. The first SIGTERM is swallowed, a second one ends the process.
    async fn start_up(&mut self, address: SocketAddr) -> Option<Exit> {
        let total = match self.app.options.sglang() {
            Some(_) => self.app.options.startup.mul_f64(1.0 - WARM_UP),
            None => self.app.options.startup,
        };
        let mut swallowed = false;
        for (phase, share) in PHASES.into_iter().enumerate() {
            self.announce(phase, address);
            let end = sleep(total.mul_f64(share));
            tokio::pin!(end);
            loop {
                tokio::select! {
                    () = &mut end => break,
                    Some(control) = self.control.recv() => {
                        if !matches!(control, Control::Terminate) {
                            continue;
                        }
                        if swallowed {
                            return Some(Exit::Interrupted);
                        }
                        swallowed = true;
                    }
                }
            }
        }
        if self.app.options.sglang().is_some() {
            return None;
        }
        let total = total.as_secs_f64();
        info!(
            "init engine (profile, create kv cache, warmup model) took {total:.2} s (compilation: {:.2} s)",
            total * 0.3
        );
        None
    }

    /// Logs what the engine logs when a phase begins.
    fn announce(&self, phase: usize, address: SocketAddr) {
        if self.app.options.sglang().is_some() {
            return self.announce_sglang(phase, address);
        }
        let (settings, options) = (&self.app.settings, &self.app.options);
        let weights = settings.profile.weights_gib;
        let seconds = |share: f64| options.startup.as_secs_f64() * share;
        let kv_tokens = u64::from(settings.blocks - 1) * u64::from(settings.block_size);
        match phase {
            0 => info!(
                "vLLM API server version {VERSION} (simulated: {}) for {address}",
                settings.profile
            ),
            1 => info!(
                "Initializing a V1 LLM engine (v{VERSION}) with config: model='{}'",
                options.model
            ),
            2 => {
                info!("Loading weights took {:.2} seconds", seconds(0.15));
                info!(
                    "Model loading took {weights:.2} GiB memory and {:.2} seconds",
                    seconds(0.3)
                );
            }
            3 => {
                info!("Dynamo bytecode transform time: {:.2} s", seconds(0.1));
                info!(
                    "Compiling a graph for compile range (1, {}) takes {:.2} s",
                    settings.max_batched_tokens,
                    seconds(0.2)
                );
            }
            _ => {
                info!("Initial profiling/warmup run took {:.2} s", seconds(0.05));
                info!("GPU KV cache size: {kv_tokens} tokens");
                let concurrency = kv_tokens as f64 / f64::from(settings.max_model_len);
                info!(
                    "Maximum concurrency for {} tokens per request: {concurrency:.2}x",
                    settings.max_model_len
                );
                info!(
                    "Graph capturing finished in {:.0} secs, took 0.50 GiB",
                    seconds(0.2)
                );
            }
        }
    }

    fn announce_sglang(&self, phase: usize, address: SocketAddr) {
        let (settings, options) = (&self.app.settings, &self.app.options);
        match phase {
            0 => info!(
                "SGLang server version {} (simulated: {}) for {address}",
                sglang::VERSION,
                settings.profile
            ),
            1 => info!("server_args=ServerArgs(model_path='{}')", options.model),
            2 => info!("Load weight begin."),
            3 => info!(
                "KV Cache is allocated. #tokens: {}",
                u64::from(settings.blocks - 1) * u64::from(settings.block_size)
            ),
            _ => info!("Capture cuda graph begin. This can take up to several minutes."),
        }
    }

    async fn serve(mut self, listener: TcpListener, address: SocketAddr) -> io::Result<Exit> {
        let mut listener = Some(listener);
        let mut connections = JoinSet::new();
        let (leave, leaving) = watch::channel(false);
        let mut live = self.app.engine.live();
        let mut end: Option<End> = None;
        loop {
            let end_at = end.as_ref().map_or_else(|| self.instant(NEVER), |end| end.at);
            let draining = end.as_ref().is_some_and(|end| end.kind == EndKind::DrainTimeout);
            tokio::select! {
                accepted = accept(listener.as_ref()) => {
                    // Out of file descriptors: the client waits or is reset, as with any server.
                    let Ok((stream, _)) = accepted else { continue };
                    connections.spawn(serve_connection(Arc::clone(&self.app), stream, leaving.clone()));
                }
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                Some(control) = self.control.recv() => match control {
                    Control::Terminate => end = Some(self.terminate()),
                    Control::Refuse(true) => listener = None,
                    Control::Refuse(false) if listener.is_none() && end.is_none() => {
                        listener = Some(bind(address)?.socket.listen(BACKLOG)?);
                    }
                    Control::Refuse(false) => {}
                    Control::ExitAfter(ms) => {
                        end = Some(End { at: self.instant(Duration::from_millis(ms)), kind: EndKind::Close });
                    }
                },
                _ = live.wait_for(|live| *live == 0), if draining => {
                    end = Some(End { at: self.instant(TEARDOWN), kind: EndKind::Close });
                }
                () = sleep_until(end_at) => match end.take().map(|end| end.kind) {
                    Some(EndKind::DrainTimeout) => {
                        self.app.engine.send(Command::Silence);
                        self.app.die();
                        end = Some(End { at: self.instant(AFTER_DRAIN), kind: EndKind::Close });
                    }
                    Some(EndKind::Watchdog) if *self.app.engine.live().borrow() == 0 || self.app.is_silent() => {
                        end = Some(End { at: self.instant(TEARDOWN), kind: EndKind::Close });
                    }
                    Some(EndKind::Watchdog) => end = Some(self.watch_again()),
                    Some(EndKind::Close) => break,
                    None => {}
                },
            }
        }
        drop(listener);
        leave.send_replace(true);
        self.see_off(connections).await;
        info!("simulator totals: {:?}", self.app.ledger.totals());
        Ok(Exit::Done)
    }

    /// SIGTERM: with a shutdown timeout requests in flight go on and new ones are refused; without one the engine is
    /// killed at once and requests in flight hang until their clients leave.
    ///
    /// SGLang says it to its probes, goes on taking requests, and leaves when it looks and finds nothing in flight.
    fn terminate(&self) -> End {
        if self.app.options.sglang().is_some() {
            self.app.drain();
            return self.watch_again();
        }
        let timeout = self.app.options.shutdown_timeout;
        if timeout.is_zero() {
            self.app.engine.send(Command::Silence);
            return End {
                at: self.instant(Duration::ZERO),
                kind: EndKind::Close,
            };
        }
        self.app.drain();
        End {
            at: self.instant(timeout),
            kind: EndKind::DrainTimeout,
        }
    }

    fn watch_again(&self) -> End {
        End {
            at: self.instant(WATCHDOG.mul_f64(self.app.options.time_scale)),
            kind: EndKind::Watchdog,
        }
    }

    /// Waits until every client has left. After a clean drain nothing is in flight, and a client that does not close
    /// its side is not waited for.
    async fn see_off(&self, mut connections: JoinSet<()>) {
        let idle = *self.app.engine.live().borrow() == 0;
        let all = async { while connections.join_next().await.is_some() {} };
        if idle {
            drop(tokio::time::timeout(FLUSH, all).await);
        } else {
            all.await;
        }
    }

    fn instant(&self, from_now: Duration) -> Instant {
        let clock: Clock = self.app.engine.clock();
        clock.instant(clock.now() + from_now)
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(tokio::net::TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}
