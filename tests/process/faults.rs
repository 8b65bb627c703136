//! What breaks other systems of this kind when a worker is killed, or when a pool is small: each case is a
//! program with a master, a victim, and others that go on.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shmkit::process::{Config, Entry, JoinError, JoinHandle, Worker, run};
use shmkit::sync::{
    Barrier, BarrierError, Condvar, LockError, LockFailure, Mutex, Recover, RecoverableMutex,
    ReentrantMutex,
};
use shmkit::{Array, Buffer, Handle, HashMap, KillSafe, Pool, Queue, SharedCell, ShmSafe, inspect};

use super::loop_for_ever;

/// What victims are killed at, and the others go on with.
#[derive(ShmSafe)]
struct World {
    plain: Mutex<u64>,
    reentrant: ReentrantMutex<AtomicU32>,
    recoverable: RecoverableMutex<Total>,
    changed: Condvar,
    cell: SharedCell<[u64; 8]>,
    map: HashMap<u64, [u64; 4]>,
    queue: Queue<[u64; 4]>,
    array: Array<[u64; 4]>,
    /// Processes that have come to where they wait or are killed.
    arrived: AtomicU32,
    /// Of the waiters: who came through.
    through: AtomicU32,
    gate: Barrier,
}

#[derive(Clone, Copy, ShmSafe, KillSafe)]
struct Total(u64);

impl Recover for Total {
    fn recover(&mut self) {
        self.0 += 1;
    }
}

/// A pool with a world in it, that go with the scope.
fn in_world(f: impl FnOnce(Handle<World>, &World)) {
    let pool = Pool::builder().create().unwrap();
    let world = World {
        plain: Mutex::new(7),
        reentrant: ReentrantMutex::new(AtomicU32::new(7)),
        recoverable: RecoverableMutex::new(Total(7)),
        changed: Condvar::new(),
        cell: SharedCell::new(),
        map: HashMap::new(),
        queue: Queue::bounded(32),
        array: Array::new(),
        arrived: AtomicU32::new(0),
        through: AtomicU32::new(0),
        gate: Barrier::new(2),
    };
    let world = pool.create(world).unwrap();
    world.array.grow(4, [0; 4]).unwrap();
    f(world.handle(), &world);
    drop(world);
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    // SAFETY: what referred to the pool is gone.
    unsafe { pool.unmap() };
}

/// What a victim does, for ever or until it is killed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Work {
    HoldPlain,
    HoldReentrant,
    HoldRecoverable,
    Wait,
    Allocate,
    SetCell,
    ChangeMap,
    PassOn,
    SetElement,
}

static VICTIM: Entry<(Handle<World>, Work), ()> = Entry::new("victim", |_, (world, work)| {
    let world = world.open().unwrap();
    let here = || world.arrived.fetch_add(1, Ordering::AcqRel);
    let mut n = 0;
    let mut next = || {
        n += 1;
        n
    };
    let arrived_and_for_ever = || {
        here();
        loop_for_ever();
    };
    match work {
        Work::HoldPlain => {
            let _guard = world.plain.lock().unwrap();
            arrived_and_for_ever();
        }
        Work::HoldReentrant => {
            let _guard = world.reentrant.lock().unwrap();
            arrived_and_for_ever();
        }
        Work::HoldRecoverable => {
            let _guard = world.recoverable.lock().unwrap();
            arrived_and_for_ever();
        }
        Work::Wait => wait_for_change(&world),
        Work::Allocate => {
            here();
            loop {
                let layout = std::alloc::Layout::from_size_align(next() % 9000 + 1, 8).unwrap();
                let block = world_pool(&world).allocate(layout).unwrap();
                // SAFETY: allocated just now; nobody else has it.
                unsafe { world_pool(&world).deallocate(block.cast()) }.unwrap();
            }
        }
        Work::SetCell => {
            here();
            loop {
                world.cell.set([next() as u64; 8]).unwrap();
            }
        }
        Work::ChangeMap => {
            here();
            loop {
                let n = next() as u64;
                world.map.insert(&(n % 100), [n; 4]).unwrap();
                let _ = world.map.remove(&(n / 2 % 100));
            }
        }
        Work::PassOn => {
            here();
            loop {
                let _ = world.queue.try_push([next() as u64; 4]);
                let _ = world.queue.try_pop();
            }
        }
        Work::SetElement => {
            here();
            loop {
                let n = next();
                world.array.set(n % 4, [n as u64; 4]).unwrap();
            }
        }
    }
});

fn world_pool(world: &shmkit::Shared<World>) -> Pool {
    world.pool()
}

/// Waits for the next change of the plain value, and says that it has come through.
fn wait_for_change(world: &World) {
    let mut guard = world.plain.lock().unwrap();
    let was = *guard;
    world.arrived.fetch_add(1, Ordering::AcqRel);
    while *guard == was {
        guard = world.changed.wait(guard).unwrap();
    }
    drop(guard);
    world.through.fetch_add(1, Ordering::AcqRel);
}

fn until(mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it does not come"
        );
        std::thread::yield_now();
    }
}

/// Starts a victim and waits until it is at work.
fn victim(worker: &Worker, world: Handle<World>, work: Work) -> JoinHandle<()> {
    let at_work = &world.open().unwrap().arrived;
    let before = at_work.load(Ordering::Acquire);
    let victim = worker.start(&VICTIM, &(world, work)).unwrap();
    until(|| at_work.load(Ordering::Acquire) > before);
    if matches!(work, Work::Wait) {
        // It has the lock until it waits.
        drop(world.open().unwrap().plain.lock().unwrap());
    }
    victim
}

fn end(victim: JoinHandle<()>) {
    victim.kill().unwrap();
    let joined = victim.join();
    assert!(matches!(joined, Err(JoinError::Signaled(9))), "{joined:?}");
}

static HOLDERS: Entry<Handle<World>, ()> = Entry::new("holders", |worker, handle| {
    let world = handle.open().unwrap();
    end(victim(worker, handle, Work::HoldPlain));
    match world.plain.lock() {
        Err(LockError::OwnerDied(orphan)) => assert_eq!(*orphan.reset(8), 8),
        other => panic!("{other:?}"),
    }
    assert_eq!(*world.plain.lock().unwrap(), 8);
    end(victim(worker, handle, Work::HoldReentrant));
    let value = world.reentrant.lock().unwrap();
    // By the same thread again: nothing of the dead one's count is left.
    assert_eq!(world.reentrant.lock().unwrap().load(Ordering::Relaxed), 7);
    drop(value);
    end(victim(worker, handle, Work::HoldRecoverable));
    assert_eq!(world.recoverable.lock().unwrap().0, 8);
    let again: Result<_, LockFailure> = world.recoverable.lock();
    assert_eq!(again.unwrap().0, 8, "repaired once");
});

/// All kinds of mutexes whose holder was killed are had by others.
pub fn killed_holders_block_nobody() {
    in_world(|handle, _| run(&Config::new(), &HOLDERS, handle).unwrap());
}

static CHANGES: Entry<Handle<World>, ()> = Entry::new("changes", |worker, handle| {
    let world = handle.open().unwrap();
    let works = [
        Work::Allocate,
        Work::SetCell,
        Work::ChangeMap,
        Work::PassOn,
        Work::SetElement,
    ];
    for round in 0..40_u64 {
        let work = works[round as usize % works.len()];
        let victim = victim(worker, handle, work);
        // It is somewhere in its work by then; where differs from round to round.
        (0..round * 700).for_each(|_| std::hint::spin_loop());
        end(victim);
        // Others go on, at once and with all of it, also such as attach only now.
        worker.start(&PROBE, &handle).unwrap().join().unwrap();
        let same = |values: &[u64]| values.iter().all(|value| *value == values[0]);
        assert!(world.cell.get().is_none_or(|value| same(&value)));
        for element in 0..4 {
            assert!(same(&world.array.get(element).unwrap()));
        }
        let mut entries = world.map.iter();
        while let Some((key, value)) = entries.next() {
            assert!(same(value) && (*key == 1000 || value[0] % 100 == *key));
        }
    }
});
static PROBE: Entry<Handle<World>, ()> = Entry::new("probe", |_, handle| {
    let world = handle.open().unwrap();
    let layout = std::alloc::Layout::from_size_align(4096, 8).unwrap();
    let block = world_pool(&world).allocate(layout).unwrap();
    // SAFETY: allocated just now; nobody else has it.
    unsafe { world_pool(&world).deallocate(block.cast()) }.unwrap();
    world.cell.set([1; 8]).unwrap();
    world.map.insert(&1000, [1; 4]).unwrap();
    assert_eq!(world.map.get_copied(&1000), Some([1; 4]));
    until(|| world.queue.try_pop().is_err());
    world.queue.push([2; 4]).unwrap();
    assert_eq!(world.queue.pop(), Ok([2; 4]));
    (0..4).for_each(|element| world.array.set(element, [3; 4]).unwrap());
});

/// Victims are killed in the middle of allocations and of changes of containers.
pub fn kills_inside_changes_and_allocations_block_nobody() {
    in_world(|handle, _| run(&Config::new(), &CHANGES, handle).unwrap());
}

static SIGNALS: Entry<Handle<World>, ()> = Entry::new("signals", |worker, handle| {
    let world = handle.open().unwrap();
    // In both orders: the one that dies has waited for longer, or for less long.
    for order in 0..2 {
        let (first, second) = (
            victim(worker, handle, Work::Wait),
            victim(worker, handle, Work::Wait),
        );
        let (dies, lives) = if order == 0 {
            (first, second)
        } else {
            (second, first)
        };
        end(dies);
        let before = world.through.load(Ordering::Acquire);
        *world.plain.lock().unwrap() += 1;
        // One, which the dead one must not have swallowed.
        world.changed.notify_one();
        lives.join().unwrap();
        assert_eq!(world.through.load(Ordering::Acquire), before + 1);
    }
});

/// One signal wakes the waiter that lives.
pub fn a_killed_waiter_swallows_no_signal() {
    in_world(|handle, _| run(&Config::new(), &SIGNALS, handle).unwrap());
}

static BLOCKED: Entry<Handle<World>, ()> = Entry::new("blocked", |_, handle| {
    let world = handle.open().unwrap();
    world.arrived.fetch_add(1, Ordering::AcqRel);
    // Each for ever: nobody else comes. But the others may be killed first, and then who waits for them is
    // told so.
    match world.through.fetch_add(1, Ordering::AcqRel) {
        0 => assert!(matches!(world.plain.lock(), Err(LockError::OwnerDied(_)))),
        1 => panic!("an element has come: {:?}", world.queue.pop()),
        _ => assert!(matches!(world.gate.wait(), Err(BarrierError::Broken))),
    }
});
static LEAVES_BLOCKED: Entry<Handle<World>, ()> = Entry::new("leaves", |worker, handle| {
    let world = handle.open().unwrap();
    let holder = victim(worker, handle, Work::HoldPlain);
    let blocked = [(); 3].map(|()| worker.start(&BLOCKED, &handle).unwrap());
    until(|| world.arrived.load(Ordering::Acquire) == 4);
    blocked.into_iter().for_each(JoinHandle::detach);
    holder.detach();
});

/// The run ends, whatever the workers that are left wait for; what they held is had again.
pub fn a_shutdown_does_not_wait_for_the_blocked() {
    in_world(|handle, world| {
        let began = Instant::now();
        run(&Config::new(), &LEAVES_BLOCKED, handle).unwrap();
        assert!(began.elapsed() < Duration::from_secs(30));
        match world.plain.lock() {
            Err(LockError::OwnerDied(orphan)) => drop(orphan.reset(1)),
            other => panic!("{other:?}"),
        }
    });
}

/// Containers in a small pool are filled until they are refused, emptied, and filled as far again.
pub fn emptied_containers_fill_again() {
    let pool = Pool::builder()
        .initial_size(1 << 20)
        .max_size(1 << 20)
        .create()
        .unwrap();
    {
        let map = pool.create(HashMap::<u64, [u64; 8]>::new()).unwrap();
        let queue = pool.create(Queue::<[u64; 8]>::bounded(2000)).unwrap();
        let buffer = pool.create(Buffer::new()).unwrap();
        let fill_map = || {
            let filled = (0..).take_while(|n| map.insert(n, [*n; 8]).is_ok()).count();
            assert_eq!(map.len(), filled);
            (0..filled as u64).for_each(|n| assert_eq!(map.get_copied(&n), Some([n; 8])));
            map.clear().unwrap();
            assert!(map.is_empty());
            pool.recover();
            filled
        };
        let fill_queue = || {
            let filled = (0..)
                .take_while(|n| queue.try_push([*n; 8]).is_ok())
                .count();
            (0..filled as u64).for_each(|n| assert_eq!(queue.try_pop(), Ok([n; 8])));
            filled
        };
        let fill_buffer = || {
            let filled = (0..)
                .take_while(|_| buffer.append(&[9; 4096]).is_ok())
                .count();
            assert_eq!(buffer.len(), filled as u64 * 4096);
            buffer.clear().unwrap();
            pool.recover();
            filled
        };
        let first = [fill_queue(), fill_map(), fill_buffer()];
        assert_eq!(first[0], 2000);
        assert!(first[1] > 1000 && first[2] > 50, "{first:?}");
        // A map keeps a table or not, according to where its keys lie; but what stays does not grow.
        for _ in 0..40 {
            let again = [fill_queue(), fill_map(), fill_buffer()];
            for (again, first) in again.into_iter().zip(first) {
                assert!(again * 2 >= first, "{again:?} after {first:?}");
            }
        }
        assert!(inspect::leaks(pool).is_empty());
    }
    // SAFETY: what referred to the pool is gone.
    unsafe { pool.unmap() };
}

/// A pool of a few MiB can be used up, but for what describes it; and so again when all was freed.
pub fn small_pools_can_be_used_up() {
    let size = 4 << 20;
    let pool = Pool::builder()
        .initial_size(size)
        .max_size(size)
        .create()
        .unwrap();
    let layout = std::alloc::Layout::from_size_align(4096, 4096).unwrap();
    let blocks = || {
        let mut blocks = Vec::new();
        while let Ok(block) = pool.allocate(layout) {
            blocks.push(block.cast());
        }
        let count = blocks.len();
        for block in blocks {
            // SAFETY: allocated above; nobody else has it.
            unsafe { pool.deallocate(block) }.unwrap();
        }
        count
    };
    let first = blocks();
    assert!(first * 4096 >= size * 9 / 10, "{first} blocks");
    for _ in 0..5 {
        assert_eq!(blocks(), first);
    }
    // SAFETY: what referred to the pool is gone.
    unsafe { pool.unmap() };
}
