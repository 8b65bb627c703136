//! The pool in which master, workers and peers share their tables.

use std::os::fd::AsRawFd as _;

use crate::containers::{NamedError, Shared};
use crate::layout::arena::{DATA, SLICE};
use crate::pool::remove::{self, RemoveError};
use crate::pool::{AttachError, CreateError, ObjectError, Pool, PoolBuilder};
use crate::primitive::Ordering;
use crate::process::jobs::Control;
use crate::process::{Config, Resource, RunError, part, peer};
use crate::sys::watch::Watch;
use crate::sys::{limits, process};

/// The control block of a new run, in a pool of its own.
pub(super) fn create(config: &Config, watch: &mut Watch) -> Result<Shared<Control>, RunError> {
    let size = size_of::<Control>().next_multiple_of(1 << 20);
    let builder = Pool::builder()
        .initial_size(size)
        .max_size(most_of(limits::of(rustix::process::Resource::As)))
        .max_participants(4095)
        .hidden();
    if let Some(name) = &config.name {
        return named(&builder, name, watch);
    }
    let pool = builder.create()?;
    let control = fill(pool).inspect_err(|_| {
        // SAFETY: nothing was made in the pool, which nobody else has.
        unsafe { pool.unmap() };
    })?;
    Ok(control)
}

/// To what size a control pool can grow: that of any pool, or a small part of the address space if that is limited, as
/// the program's own pools need some, too.
fn most_of(address_space: Option<u64>) -> usize {
    let part = address_space.map_or(usize::MAX, |limit| limit as usize / 16);
    part.clamp(1 << 30, DATA.max * SLICE)
}

/// Makes the control block of a new pool, and stores whose it is, for those that may outlive
/// the master.
fn fill(pool: Pool) -> Result<Shared<Control>, RunError> {
    let tag = part::tag(pool).map_err(ObjectError::from)?;
    let control = Control::create(pool)?;
    control.peers.master.store(tag.word(), Ordering::Relaxed);
    Ok(control)
}

/// A control pool that peers find by its name, with everything in it that they need.
fn named(
    builder: &PoolBuilder,
    name: &str,
    watch: &mut Watch,
) -> Result<Shared<Control>, RunError> {
    let name = &peer::pool_name(name);
    // Removes what a killed master has left. Whatever else is there is in the way.
    match remove::remove_with(name, peer::CONTROL) {
        Err(RemoveError::InUse { path }) => return Err(RunError::AlreadyRunning { path }),
        Err(RemoveError::Attach(
            AttachError::NotAPool
            | AttachError::Truncated { .. }
            | AttachError::DamagedHeader { .. },
        )) => {
            let path = Resource::Pool(name.clone()).path().unwrap_or_default();
            let path = path.display().to_string();
            return Err(CreateError::NameTaken { path }.into());
        }
        _ => {}
    }
    let doorbell = watch.doorbell()?.as_raw_fd().unsigned_abs();
    let fill = |pool: Pool| {
        let control = fill(pool)?;
        let table = &control.peers;
        table
            .master_pid
            .store(process::pid().into(), Ordering::Relaxed);
        table.doorbell.store(doorbell, Ordering::Relaxed);
        pool.set_name(peer::CONTROL, &control)
            .map_err(|error| match error {
                NamedError::Object(error) => error.into(),
                error => RunError::System(std::io::Error::other(error)),
            })?;
        Ok(control)
    };
    match builder.create_named_with(name, fill) {
        Ok((_, control)) => Ok(control),
        // Another master was faster.
        Err(RunError::Pool(CreateError::NameTaken { path })) => {
            Err(RunError::AlreadyRunning { path })
        }
        Err(error) => Err(error),
    }
}
