//! Things that are left behind in many places: a thread that is told of them finds them, and
//! no other thread has to search.

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::left::Left;

use super::Explorer;

struct Table {
    told: Left,
    places: [AtomicU64; 2],
}

impl Table {
    fn leave(&self, place: usize) {
        self.places[place].store(1, Ordering::Relaxed);
        self.told.tell();
    }

    fn look(&self) {
        if self.told.is_told() && self.told.take() {
            for place in &self.places {
                if place.load(Ordering::Relaxed) != 0 {
                    place.store(0, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Two leave something, also at once, while somebody looks.
#[test]
fn leaving_against_a_look() {
    let explorer = Explorer::new("left: leaving against a look");
    explorer.run(3, || {
        let table = Arc::new(Table {
            told: Left::new(),
            places: [0, 0].map(AtomicU64::new),
        });
        let others = [0, 1].map(|place| {
            let table = Arc::clone(&table);
            thread::spawn(move || table.leave(place))
        });
        table.look();
        for other in others {
            other.join().unwrap();
        }
        table.look();
        for place in &table.places {
            assert_eq!(place.load(Ordering::Relaxed), 0, "nobody is told of it");
        }
    });
}
