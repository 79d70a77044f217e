//! What callers and endpoints say about time: deadlines, and when to come again. Nothing of it does harm, and what is told
//! on of a deadline is never longer than what came.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use outrigger_traffic::{
    grpc_pushback, read_grpc_timeout, read_milliseconds, read_unix_deadline, retry_after, write_grpc_timeout,
};

fuzz_target!(|value: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
    let _ = (grpc_pushback(value), retry_after(value, now));
    let read = [read_grpc_timeout(value), read_milliseconds(value), read_unix_deadline(value, now)];
    for left in read.into_iter().flatten() {
        let mut told = String::new();
        write_grpc_timeout(left, &mut told);
        let told = read_grpc_timeout(told.as_bytes()).expect("what we write can be read");
        assert!(told <= left, "{told:?} of {left:?}");
    }
});
