//! A part of the agent on a thread and a runtime of its own: nothing slow elsewhere holds it up.

use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::Context as _;

/// Dropped, it is waited for: whoever has it must have told it to end.
#[derive(Debug)]
pub(crate) struct Apart(Option<JoinHandle<()>>);

impl Apart {
    pub(crate) fn start<F: Future<Output = ()>>(
        name: &str,
        live: impl FnOnce() -> F + Send + 'static,
    ) -> anyhow::Result<Apart> {
        let (started, starts) = mpsc::sync_channel(1);
        // Made there: whoever starts it may be in a runtime, where none may be dropped.
        let body = move || {
            let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match made {
                Ok(runtime) => runtime,
                Err(error) => {
                    started.send(Err(error)).ok();
                    return;
                }
            };
            started.send(Ok(())).ok();
            runtime.block_on(async { live().await });
            // A script or a disk that hangs is not waited for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .with_context(|| format!("start the thread for {name}"))?;
        let started = starts.recv().with_context(|| format!("start the thread for {name}"))?;
        started.with_context(|| format!("start the runtime for {name}"))?;
        Ok(Apart(Some(thread)))
    }

    /// Returns once it has ended, and lets others go on before that. Each step of a part has a limit.
    pub(crate) async fn ended(&mut self) {
        if let Some(thread) = self.0.take() {
            tokio::task::spawn_blocking(move || thread.join()).await.ok();
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            thread.join().ok();
        }
    }
}
