//! What a phase held is counted for the process: this test has one of its own, where nobody else frees anything meanwhile.
#![allow(missing_docs)]

use bastionai_trainer::phases;

#[test]
fn a_phase_shows_what_it_held_at_most_and_what_is_left_at_its_end() {
    const MIB: usize = 64;
    phases::start_memory();
    phases::end("before");
    drop(std::hint::black_box(vec![1u8; MIB << 20]));
    phases::end("in between");
    let held = phases::stop_memory();
    let [("before", before), ("in between", between)] = held[..] else {
        panic!("{held:?}")
    };
    assert!(
        before.end_kib > 0 && between.peak_kib >= before.end_kib + 512 * MIB as u64,
        "{held:?}"
    );
    phases::end("after");
    assert!(phases::stop_memory().is_empty());
}
