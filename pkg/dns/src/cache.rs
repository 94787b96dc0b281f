//! What other servers answered, kept for as long as they allow, and no longer than half a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;

/// Names remembered. At the bound the expired ones go, then any.
const ENTRIES_MAX: usize = 10_000;
/// As CoreDNS's `cache 30` in kubeadm's and k3s's configuration.
const KEEP_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// Lower case.
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    /// Replies with and without DNSSEC records differ.
    pub(crate) dnssec: bool,
}

#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<Question, Entry>>);

struct Entry {
    reply: Arc<Message>,
    expires: Duration,
}

impl Cache {
    /// The reply as it was received, and the seconds left to keep it.
    pub(crate) fn get(&self, question: &Question, now: Duration) -> Option<(Arc<Message>, u32)> {
        let entries = self.0.lock();
        let entry = entries.get(question).filter(|entry| entry.expires > now)?;
        let left = (entry.expires - now).as_secs();
        Some((Arc::clone(&entry.reply), u32::try_from(left).unwrap_or(u32::MAX).max(1)))
    }

    pub(crate) fn put(&self, question: Question, reply: Arc<Message>, keep: Duration, now: Duration) {
        if keep.is_zero() {
            return;
        }
        let mut entries = self.0.lock();
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&question) {
            entries.retain(|_, entry| entry.expires > now);
            let surplus: Vec<Question> =
                entries.keys().take(entries.len().saturating_sub(ENTRIES_MAX - 1)).cloned().collect();
            for question in surplus {
                entries.remove(&question);
            }
        }
        entries.insert(question, Entry { reply, expires: now + keep.min(KEEP_MAX) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(n: usize) -> Question {
        let name = Name::from_ascii(format!("n{n}.example.")).unwrap();
        Question { name, kind: RecordType::A, dnssec: false }
    }

    #[test]
    fn replies_are_kept_as_long_as_allowed_and_the_number_is_bounded() {
        let cache = Cache::default();
        let at = Duration::from_secs;
        let reply = Arc::new(Message::response(0, hickory_proto::op::OpCode::Query));
        cache.put(question(0), Arc::clone(&reply), at(300), at(100));
        assert_eq!(cache.get(&question(0), at(110)).unwrap().1, 20);
        assert!(cache.get(&question(0), at(130)).is_none());
        for n in 0..ENTRIES_MAX + 10 {
            cache.put(question(n), Arc::clone(&reply), at(10), at(200));
        }
        assert!(cache.0.lock().len() <= ENTRIES_MAX);
        assert!(cache.get(&question(ENTRIES_MAX + 9), at(201)).is_some());
    }
}
