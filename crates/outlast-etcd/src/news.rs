//! The watch: brings what is new in etcd as fast as it comes.

use outlast_consensus::Index;
use tokio::sync::mpsc;

use crate::engine::pause;
use crate::form::{Base, Reign};
use crate::store::{Fault, Store, read};

/// What the watch tells.
pub(crate) enum News {
    /// It has begun, and knows nothing of what was before.
    Began,
    Batch {
        first: Index,
        bytes: Vec<u8>,
    },
    Chair {
        reign: Reign,
        revision: u64,
    },
    Base(Base),
    Broken(String),
}

/// Brings news as fast as they come. What it misses is found by looking, so it may end and begin as it likes.
pub(crate) async fn follow(store: Store, tell: mpsc::Sender<News>, mut random: u64) {
    let (key, end) = (store.keys.base(), store.keys.log_end());
    let mut failures = 0;
    loop {
        if let Ok(mut watch) = store.client.watch(&key, &end).await {
            if tell.send(News::Began).await.is_err() {
                return;
            }
            while let Ok(answer) = watch.next().await {
                failures = 0;
                if answer.canceled.is_some() {
                    break;
                }
                for kv in answer.written {
                    let news = if let Some(first) = store.keys.first_of(&kv.key) {
                        Ok(News::Batch { first, bytes: kv.value })
                    } else if kv.key == store.keys.chair() {
                        let revision = kv.revision;
                        read(&kv, Reign::of_value).map(|reign| News::Chair { reign, revision })
                    } else if kv.key == store.keys.base() {
                        read(&kv, Base::of_value).map(News::Base)
                    } else {
                        continue;
                    };
                    let news = news.unwrap_or_else(|fault| match fault {
                        Fault::Broken(why) => News::Broken(why),
                        Fault::Trouble(trouble) => News::Broken(trouble.to_string()),
                    });
                    if tell.send(news).await.is_err() {
                        return;
                    }
                }
            }
        }
        failures += 1;
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        tokio::time::sleep(pause(failures, random)).await;
    }
}
