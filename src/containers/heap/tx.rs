//! [`Tx`]: a transaction.
//!
//! The heap is locked for writing. Before a `&mut` to something is given out, its bytes are in the log;
//! before an entry gets a block, the entry's index is in the log. Once the closure has returned, one
//! store voids the log.
//!
//! A private list says what each record is about (`recorded`).

mod collect;
mod make;
mod recorded;

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::ptr::NonNull;

use self::make::Unfilled;
use self::recorded::{About, PART, Recorded};
use super::gc::{self, Gc, GcTarget, Target};
use super::trace::{Elements, Trace};
use super::{Body, HeapError, LEAST_DEBT};
use crate::Movable;
use crate::allocator::{AllocError, Packed, block};
use crate::containers::refusals::{ClaimError, resolve};
use crate::containers::store::StoreError;
use crate::engines::heap::{CHUNK, Chunk, HeapTable, LogRoom, Record, What, Words, Writer};
use crate::engines::limbo;
use crate::participants::here::Here;
use crate::participants::tag::Tag;
use crate::participants::thread;
use crate::pool::intents::{self, Length};
use crate::primitive::{AtomicU64, Ordering};
use crate::sync::WriteGuard;

/// A transaction on a [`Heap`](super::Heap): see [`Heap::modify`](super::Heap::modify).
///
/// The references that it gives out borrow from it, so there is one `&mut` at a time.
///
/// ```
/// # use shmkit::{Gc, Heap, HeapError, Pool};
/// # let pool = Pool::builder().create()?;
/// let heap = pool.create(Heap::new(None::<Gc<[u32]>>))?;
/// heap.try_modify(|tx| {
///     let numbers = tx.alloc_slice(&[1, 2, 3])?;
///     *tx.root_mut()? = Some(numbers);
///     tx.slice_mut(numbers, 1..)?.fill(9);
///     assert_eq!(tx.get(numbers), Some(&[1, 9, 9][..]));
///     Ok::<_, HeapError>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tx<'t, R: Trace + Movable> {
    guard: WriteGuard<'t, Body<R>>,
    here: Here,
    /// The tag of the slot in `here` when the transaction began.
    tag: Tag,
    table: HeapTable,
    writer: Writer,
    /// What each record of the log is about, in the order of the records.
    recorded: Recorded,
    root_saved: bool,
    /// The ranges of slices that are saved, if there are any: the key is object and start, the
    /// value is the end. No two ranges touch.
    ranges: Option<BTreeMap<(usize, usize), usize>>,
    /// A collection has been made in this transaction: another one would free nothing.
    swept: bool,
    over: bool,
    /// No other heap's transaction can take its place.
    _brand: PhantomData<fn(&'t ()) -> &'t ()>,
}

impl<'t, R: Trace + Movable> Tx<'t, R> {
    /// A transaction on a heap that is locked.
    ///
    /// It is made in the place where it is used, and not moved: if something is copied right after it was
    /// made, the processor waits for all its parts.
    #[inline(always)]
    pub(super) fn begin(guard: WriteGuard<'t, Body<R>>, here: Here) -> Self {
        guard.words.draw_name();
        Tx {
            table: guard.words.table(here.arena),
            writer: guard.words.writer(),
            tag: here.slot.tag(),
            here,
            guard,
            recorded: Recorded::new(),
            root_saved: false,
            ranges: None,
            swept: false,
            over: false,
            _brand: PhantomData,
        }
    }

    #[inline]
    fn words(&self) -> &Words {
        &self.guard.words
    }

    /// Collects if enough was allocated since the last collection. Called before anything else is
    /// done.
    #[inline]
    pub(super) fn collect_if_due(&mut self) {
        let words = self.words();
        let debt = words.debt.load(Ordering::Relaxed);
        if debt > words.limit.load(Ordering::Relaxed).max(LEAST_DEBT) {
            self.collect();
        }
    }

    /// Looks the table up again, as it was replaced or the pool has grown.
    #[cold]
    fn look_up_table(&mut self) {
        self.table = self.words().table(self.here.arena);
    }

    /// False for a copy in a forked child.
    #[inline]
    fn is_mine(&self) -> bool {
        thread::still_held(self.here.slot, self.tag).is_some()
    }

    /// Commits the transaction.
    #[inline]
    pub(super) fn commit(&mut self) -> Result<(), HeapError> {
        self.over = true;
        if !self.is_mine() {
            return Err(HeapError::Forked);
        }
        self.words().end();
        if self.writer.is_long {
            self.words().trim(self.here.arena, self.here.slot);
        }
        Ok(())
    }

    /// The root.
    ///
    /// ```
    /// # use shmkit::{Heap, HeapError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(1_u64))?;
    /// heap.try_modify(|tx| {
    ///     *tx.root_mut()? += 1;
    ///     assert_eq!(*tx.root(), 2, "as it will be");
    ///     Ok::<_, HeapError>(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn root(&self) -> &R {
        // SAFETY: by the heap's invariant 1, with the borrow of `self`.
        unsafe { &*self.guard.root.get() }
    }

    /// Returns the root, to be changed.
    ///
    /// # Errors
    ///
    /// [`HeapError::Alloc`] if there is no room to save its bytes.
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(1_u64))?;
    /// heap.modify(|tx| tx.root_mut().map(|root| *root += 1))??;
    /// assert_eq!(heap.modify(|tx| *tx.root())?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn root_mut(&mut self) -> Result<&mut R, HeapError> {
        if !self.root_saved {
            let record = Record {
                what: What::Root,
                offset: 0,
                bytes: self.guard.root.get().cast(),
                len: size_of::<R>(),
            };
            let about = About {
                whole: PART,
                elements: const { &Elements::of::<R>() },
            };
            self.with_room(|tx| tx.record(&record, about))
                .map_err(Packed::unpack)?;
            self.root_saved = true;
        }
        // SAFETY: as in `root`; and saved.
        Ok(unsafe { &mut *self.guard.root.get() })
    }

    /// Returns the object; `None` if the id does not lead to an object of this heap.
    ///
    /// ```
    /// # use shmkit::{Heap, HeapError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let name = heap.try_modify(|tx| {
    ///     let name = tx.alloc_str("Ada")?;
    ///     assert_eq!(tx.get(name), Some("Ada"));
    ///     Ok::<_, HeapError>(name)
    /// })?;
    /// heap.collect()?;
    /// assert_eq!(heap.modify(|tx| tx.get(name).is_none()), Ok(true));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn get<T: ?Sized + GcTarget>(&self, gc: Gc<T>) -> Option<&T> {
        let target = gc::find(&self.table, gc)?;
        // SAFETY: an object of that type; by the heap's invariant 1, with the borrow of `self`.
        Some(unsafe { target.value().as_ref() })
    }

    /// Returns the object, to be changed.
    ///
    /// The first time in a transaction, all of the object is saved. [`slice_mut`](Self::slice_mut) saves
    /// only a part.
    ///
    /// # Errors
    ///
    /// [`HeapError::NoObject`], or [`HeapError::Alloc`] if there is no room to save the object's
    /// bytes.
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let pair = heap.modify(|tx| tx.alloc((1_u32, 2_u32)))??;
    /// heap.modify(|tx| tx.get_mut(pair).map(|pair| pair.1 = 7))??;
    /// assert_eq!(heap.view()?.get(pair), Some(&(1, 7)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn get_mut<T: ?Sized + GcTarget>(&mut self, gc: Gc<T>) -> Result<&mut T, HeapError> {
        let target = self.find(gc)?;
        if !self.recorded.has_whole(gc.index(), target.entry) {
            self.recorded.note(target.entry);
            self.save(gc, &target, 0..target.len, gc.index())?;
        }
        // SAFETY: an object of that type; by the heap's invariant 1, with the borrow of `self`. It is
        // saved, or new.
        Ok(unsafe { target.value().as_mut() })
    }

    /// Returns a part of a slice, to be changed. Only this part is saved.
    ///
    /// # Errors
    ///
    /// As for [`get_mut`](Self::get_mut), and [`HeapError::OutOfBounds`].
    ///
    /// ```
    /// # use shmkit::{Heap, HeapError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let digits = heap.modify(|tx| tx.alloc_slice(b"0000"))??;
    /// heap.modify(|tx| tx.slice_mut(digits, 2..).map(|part| part.copy_from_slice(b"42")))??;
    /// assert_eq!(heap.view()?.get(digits), Some(&b"0042"[..]));
    /// let beyond = heap.modify(|tx| tx.slice_mut(digits, 2..5).map(drop))?;
    /// assert_eq!(beyond, Err(HeapError::OutOfBounds { start: 2, end: 5, len: 4 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn slice_mut<T: Trace>(
        &mut self,
        gc: Gc<[T]>,
        range: impl RangeBounds<usize>,
    ) -> Result<&mut [T], HeapError> {
        let target = self.find(gc)?;
        let range = resolve(range, target.len).map_err(|error| match error {
            ClaimError::OutOfBounds { start, end, len } => {
                HeapError::OutOfBounds { start, end, len }
            }
            _ => HeapError::NoObject,
        })?;
        if !self.recorded.has_whole(gc.index(), target.entry) && !self.covers(gc.index(), &range) {
            self.save(gc, &target, range.clone(), PART)?;
            self.cover(gc.index(), range.clone());
        }
        // SAFETY: as in `get_mut`; the part is saved.
        Ok(unsafe { &mut target.value().as_mut()[range] })
    }

    /// Makes an object.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value, if the pool is full even after a collection. The transaction
    /// goes on as it was.
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let number = heap.modify(|tx| tx.alloc(7_u64))??;
    /// assert_eq!(heap.view()?.get(number), Some(&7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn alloc<T: Trace + Movable>(&mut self, value: T) -> Result<Gc<T>, StoreError<T>> {
        const { assert!(!T::OWNS && !T::IMAGE_BOUND, "an object owns no pool memory") };
        const { T::TYPE.assert_moves() };
        match self.make::<T>(1) {
            Ok((gc, place)) => {
                // SAFETY: a new block for a `T`, which nobody else has.
                unsafe { place.write(value) };
                self.made::<T>();
                Ok(gc)
            }
            Err(cause) => Err(StoreError {
                value,
                cause: cause.into(),
            }),
        }
    }

    /// Makes an object that is a copy of a slice.
    ///
    /// # Errors
    ///
    /// [`HeapError::Alloc`], as for [`alloc`](Self::alloc).
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let primes = heap.modify(|tx| tx.alloc_slice(&[2_u32, 3, 5]))??;
    /// assert_eq!(heap.view()?.get(primes), Some(&[2, 3, 5][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_slice<T: Trace + Movable + Copy>(
        &mut self,
        elements: &[T],
    ) -> Result<Gc<[T]>, HeapError> {
        self.alloc_slice_with(elements.len(), |i| elements[i])
    }

    /// Makes an object that is a slice of `len` elements, each of which `f` makes from its index.
    ///
    /// # Errors
    ///
    /// [`HeapError::Alloc`], as for [`alloc`](Self::alloc). In that case `f` has not run.
    ///
    /// # Panics
    ///
    /// If `f` does. No object is made then, even if the panic is caught and the transaction goes on.
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let squares = heap.modify(|tx| tx.alloc_slice_with(4, |i| i * i))??;
    /// assert_eq!(heap.view()?.get(squares), Some(&[0, 1, 4, 9][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_slice_with<T: Trace + Movable>(
        &mut self,
        len: usize,
        mut f: impl FnMut(usize) -> T,
    ) -> Result<Gc<[T]>, HeapError> {
        const { assert!(!T::OWNS && !T::IMAGE_BOUND, "an object owns no pool memory") };
        const { T::TYPE.assert_moves() };
        let (gc, place) = self.make::<[T]>(len)?;
        let unfilled = Unfilled {
            tx: self,
            index: gc.index(),
        };
        for i in 0..len {
            // SAFETY: a new block for `len` of them, which nobody else has.
            unsafe { place.add(i).write(f(i)) };
        }
        std::mem::forget(unfilled);
        self.made::<T>();
        Ok(gc)
    }

    /// Makes an object that is a copy of a string.
    ///
    /// # Errors
    ///
    /// [`HeapError::Alloc`], as for [`alloc`](Self::alloc).
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let name = heap.modify(|tx| tx.alloc_str("Ada Lovelace"))??;
    /// assert_eq!(heap.view()?.get(name), Some("Ada Lovelace"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_str(&mut self, text: &str) -> Result<Gc<str>, HeapError> {
        let (gc, place) = self.make::<str>(text.len())?;
        // SAFETY: a new block for that many bytes, which nobody else has.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(text).cast(), text.len()) };
        Ok(gc)
    }

    fn find<T: ?Sized + GcTarget>(&self, gc: Gc<T>) -> Result<Target<T>, HeapError> {
        gc::find(&self.table, gc).ok_or(HeapError::NoObject)
    }

    /// Records some elements of an object as they are.
    #[inline(always)]
    fn save<T: ?Sized + GcTarget>(
        &mut self,
        gc: Gc<T>,
        target: &Target<T>,
        range: std::ops::Range<usize>,
        whole: usize,
    ) -> Result<(), HeapError> {
        let size = size_of::<T::Element>();
        // The record is made in its place, for the same reason as the transaction.
        let record = || Record {
            what: What::Object(gc.index()),
            offset: range.start * size,
            // SAFETY: within the object.
            bytes: unsafe { target.elements.as_ptr().add(range.start) }.cast(),
            len: range.len() * size,
        };
        let about = || About {
            whole,
            elements: const { &Elements::of::<T::Element>() },
        };
        if self.writer.append(&record()) {
            self.recorded.push(&self.table, about());
            return Ok(());
        }
        std::hint::cold_path();
        self.save_in_more_room(gc, record(), about())
    }

    #[cold]
    #[inline(never)]
    fn save_in_more_room<T: ?Sized + GcTarget>(
        &mut self,
        gc: Gc<T>,
        record: Record,
        about: About,
    ) -> Result<(), HeapError> {
        let saved = self.with_room(|tx| {
            // A collection may have freed the object, if nothing leads to it.
            let is_there = tx.find(gc).is_ok();
            if is_there {
                tx.record(&record, about)?;
            }
            Ok(is_there)
        });
        let saved = saved.map_err(Packed::unpack)?;
        saved.then_some(()).ok_or(HeapError::NoObject)
    }

    /// True if the range of a slice is saved.
    fn covers(&self, index: usize, range: &std::ops::Range<usize>) -> bool {
        let ranges = self.ranges.as_ref();
        let before = ranges.and_then(|ranges| ranges.range(..=(index, range.start)).next_back());
        before.is_some_and(|(&(of, _), &end)| of == index && end >= range.end)
    }

    /// Notes that the range of a slice is saved.
    fn cover(&mut self, index: usize, mut range: std::ops::Range<usize>) {
        let ranges = self.ranges.get_or_insert_default();
        // Ranges that overlap or touch it are merged with it.
        while let Some((&(of, start), &end)) = ranges.range(..=(index, range.end)).next_back()
            && of == index
            && end >= range.start
        {
            ranges.remove(&(index, start));
            range = start.min(range.start)..end.max(range.end);
        }
        ranges.insert((index, range.start), range.end);
    }

    /// Appends a record to the log.
    #[inline]
    fn record(&mut self, record: &Record, about: About) -> Result<(), Packed> {
        while !self.writer.append(record) {
            self.go_on(record.len)?;
        }
        self.recorded.push(&self.table, about);
        Ok(())
    }

    /// Makes room in the log to save `len` bytes.
    #[cold]
    fn go_on(&mut self, len: usize) -> Result<(), Packed> {
        let Here { arena, .. } = self.here;
        loop {
            match self.guard.words.go_on(arena, &mut self.writer, len) {
                LogRoom::Ready => return Ok(()),
                // The log is damaged: no block would help.
                LogRoom::Damaged => return Err(AllocError::TooLarge.into()),
                LogRoom::More(word, bytes, prev) => {
                    let layout = Layout::from_size_align(bytes, 16);
                    let layout = layout.map_err(|_| AllocError::TooLarge)?;
                    debug_assert!(bytes > CHUNK);
                    let tx = self.words().tx();
                    self.fill(word, None, layout, |address| {
                        Chunk::begin(arena, address as u64, prev, tx);
                    })?;
                }
            }
        }
    }

    /// Makes a word name a new block instead of the one that it names. `init` may run twice.
    #[inline]
    fn fill(
        &self,
        word: &AtomicU64,
        length: Option<Length<'_>>,
        layout: Layout,
        init: impl Fn(usize),
    ) -> Result<(), Packed> {
        let Here { arena, slot } = self.here;
        limbo::or_reap(arena, || {
            intents::replace_block(arena, slot, word, length, |record| {
                let address = block::allocate_packed(arena, slot, layout, record)?;
                init(address);
                Ok(address)
            })
        })
    }
}

impl<R: Trace + Movable> Drop for Tx<'_, R> {
    #[inline]
    fn drop(&mut self) {
        if !self.over && self.is_mine() {
            let Here { arena, slot } = self.here;
            let root = self.guard.root.get().cast();
            self.words().undo(arena, slot, (root, size_of::<R>()));
        }
    }
}

impl<R: Trace + Movable + fmt::Debug> fmt::Debug for Tx<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("root", self.root())
            .finish_non_exhaustive()
    }
}
