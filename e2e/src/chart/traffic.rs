//! Traffic that must not notice what happens to the release.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::client::{Answer, Caller, Chat};

/// Clients that never pause, until they are told to stop.
pub struct Traffic {
    over: Arc<AtomicBool>,
    clients: JoinSet<Result<u32>>,
}

impl Traffic {
    /// Begins with so many clients, each with a workflow of its own.
    #[must_use]
    pub fn begin(caller: &Caller, model: &str, clients: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let (over, caller, model) = (Arc::clone(&over), caller.clone(), model.to_owned());
            tasks.spawn(async move {
                let mut answered = 0;
                while !over.load(Ordering::Relaxed) {
                    let chat = Chat::new(&model, &format!("Turn {answered}."))
                        .workflow(&format!("client-{number}"))
                        .tokens(20);
                    // Every other one is a stream.
                    let chat = if answered % 2 == 0 { chat.stream() } else { chat };
                    let answer = caller.chat(&chat).await.and_then(Answer::whole);
                    answer.with_context(|| format!("request {answered} of client {number}"))?;
                    answered += 1;
                }
                Ok(answered)
            });
        }
        Self { over, clients: tasks }
    }

    /// Stops and returns how many requests were answered.
    ///
    /// # Errors
    /// One was not answered in whole.
    pub async fn end(self) -> Result<u32> {
        self.over.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for client in self.clients.join_all().await {
            answered += client?;
        }
        Ok(answered)
    }
}
