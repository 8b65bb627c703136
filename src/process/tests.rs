//! Files that a child left half-written, and requests that are refused. Everything else is tested
//! from outside, in a process with a single thread.

use super::*;

#[test]
fn what_cannot_be_requested_has_no_place() {
    static TAKES: Entry<Vec<u8>, ()> = Entry::new("takes", |_, _| ());
    let pool = crate::Pool::builder().max_size(4 << 20).create().unwrap();
    let control = jobs::Control::create(pool).unwrap();
    let argument = vec![1; 8 << 20];
    let options = StartOptions::new();
    let refused = worker::request(&control, None, options, &TAKES, &argument, false);
    assert!(matches!(refused, Err(StartError::NoMemory(_))));
    let is_free = |job: &jobs::Job| job.state().phase() == jobs::JobPhase::Free;
    assert!(control.jobs().all(|(_, job)| is_free(job)));
    drop(control);
    // SAFETY: nothing refers to it any more.
    unsafe { pool.unmap() };
}

#[test]
fn what_there_is_no_room_for_is_replaced_by_why() {
    let pool = crate::Pool::builder().max_size(4 << 20).create().unwrap();
    let control = jobs::Control::create(pool).unwrap();
    let left = |place, kind| {
        let job = control.job(place).unwrap();
        worker::store(job, pool, kind, &vec![b'x'; 8 << 20]).unwrap();
        supervise::returned(job, supervise::pack(crate::sys::process::Ended::Exited(0)))
    };
    let value = left(0, jobs::PayloadKind::Value);
    assert!(
        matches!(value, Err(JoinError::NoResult(ResultError::Write(_)))),
        "{value:?}"
    );
    match left(1, jobs::PayloadKind::Panic) {
        Err(JoinError::Panicked(message)) => assert_eq!(message, "x".repeat(jobs::INLINE)),
        other => panic!("{other:?}"),
    }
    drop(control);
    // SAFETY: nothing of it is left.
    unsafe { pool.unmap() };
}

#[test]
fn only_whole_frames_count() {
    // Read by one call, by several, and written by several.
    for length in [0, 5, 239, 240, 241, 5000, 200_000] {
        let text = "x".repeat(length);
        let file = frame::create().unwrap();
        let file = file.get().unwrap();
        assert!(frame::Frame::load(file).unwrap().is_none(), "an empty file");
        frame::write_value(file, &text).unwrap();
        let whole = frame::Frame::load(file).unwrap().unwrap();
        assert_eq!(whole.kind(), frame::FrameKind::Value);
        let read = whole.payload(|bytes| postcard::from_bytes::<String>(bytes).unwrap());
        assert_eq!(read.unwrap(), text);

        let size = rustix::fs::fstat(file).unwrap().st_size.unsigned_abs();
        rustix::fs::ftruncate(file, size + 1).unwrap();
        assert!(
            frame::Frame::load(file).unwrap().is_none(),
            "longer than it says"
        );
        // Shorter and shorter, since making it longer would add zeros.
        let cuts = [size - 1, size / 2, 16, 15, 8, 1];
        for cut in (0..size).rev().filter(|cut| cuts.contains(cut)) {
            rustix::fs::ftruncate(file, cut).unwrap();
            assert!(
                frame::Frame::load(file).unwrap().is_none(),
                "{cut} of {size} bytes"
            );
        }
        // The header comes last when there are several writes.
        frame::write_value(file, &text).unwrap();
        rustix::io::pwrite(file, &[0; 16], 0).unwrap();
        assert!(frame::Frame::load(file).unwrap().is_none(), "no header yet");
    }
}
