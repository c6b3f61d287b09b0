//! A simulator inside the caller's runtime, for tests.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    driver::{self, Clock},
    fault::Fault,
    http::{App, Control, apply_fault},
    ledger::{Ledger, Snapshot, Totals},
    options::{InvalidOptions, Options},
    server::{Exit, Server, bind},
};

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Options that cannot work together.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The address cannot be bound.
    #[error("cannot listen on {host}:{port}")]
    Bind {
        /// Address.
        host: std::net::IpAddr,
        /// Port.
        port: u16,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A running simulator. Dropping it ends it as `kill -9` would.
pub struct Running {
    /// Where it listens, or will.
    pub address: SocketAddr,
    app: Arc<App>,
    ready: watch::Receiver<bool>,
    /// The engine; ends with the server.
    engine: JoinSet<()>,
    server: JoinSet<io::Result<Exit>>,
}

/// Starts a simulator in the present tokio runtime. Returns as soon as the address is bound, or, without a start-up
/// time, as soon as it accepts connections.
///
/// # Errors
/// [`SpawnError`] for impossible options and addresses in use.
pub async fn spawn(options: Options) -> Result<Running, SpawnError> {
    let settings = options.settings()?;
    let (host, port) = (options.host, options.port);
    let bound =
        bind(SocketAddr::new(host, port)).map_err(|source| SpawnError::Bind { host, port, source })?;
    let address = bound.address;
    let ledger = Ledger::default();
    let (engine, task) = driver::run(settings, Clock::start(), ledger.clone());
    let (control, orders) = mpsc::unbounded_channel();
    let at_once = options.startup.is_zero();
    let app = Arc::new(App::new(options, settings, engine, ledger, control));
    let (ready, is_ready) = watch::channel(false);
    let mut engine = JoinSet::new();
    engine.spawn(task);
    let mut server = JoinSet::new();
    server.spawn(
        Server {
            app: Arc::clone(&app),
            control: orders,
            ready,
        }
        .run(bound),
    );
    let mut running = Running {
        address,
        app,
        ready: is_ready,
        engine,
        server,
    };
    if at_once {
        running.ready().await;
    }
    Ok(running)
}

impl Running {
    /// `http://ADDRESS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until connections are accepted; returns at once when the server has ended instead.
    pub async fn ready(&mut self) {
        // An error means that the server's task is gone.
        drop(self.ready.wait_for(|ready| *ready).await);
    }

    /// Everything the engine did.
    pub fn ledger(&self) -> Snapshot {
        self.app.ledger.snapshot(0, usize::MAX)
    }

    /// Sums over the ledger.
    pub fn totals(&self) -> Totals {
        self.app.ledger.totals()
    }

    /// Requests in the engine now.
    pub fn in_engine(&self) -> usize {
        *self.app.engine.live().borrow()
    }

    /// Waits until the number of requests in the engine satisfies `condition`.
    pub async fn wait_for_requests(&self, condition: impl FnMut(&usize) -> bool) {
        // The handle keeps the engine's task, and with it the channel, alive.
        drop(self.app.engine.live().wait_for(condition).await);
    }

    /// Orders a fault.
    pub fn fault(&self, fault: Fault) {
        apply_fault(&self.app, fault);
    }

    /// Forgets ledger and faults, as `POST /sim/reset`.
    pub fn reset(&self) {
        self.fault(Fault::Clear {});
        self.app.ledger.reset();
    }

    /// What SIGTERM does.
    pub fn terminate(&self) {
        // A server that has ended is terminated already.
        drop(self.app.control.send(Control::Terminate));
    }

    /// Waits for the server's own end (after [`Self::terminate`] or a crash).
    ///
    /// # Errors
    /// When it could not listen.
    pub async fn exited(&mut self) -> io::Result<Exit> {
        match self.server.join_next().await {
            Some(Ok(exit)) => exit,
            Some(Err(error)) => Err(io::Error::other(error)),
            None => Ok(Exit::Done),
        }
    }

    /// Ends it at once: every connection is closed.
    pub async fn stop(mut self) {
        self.server.shutdown().await;
        self.engine.shutdown().await;
    }
}
