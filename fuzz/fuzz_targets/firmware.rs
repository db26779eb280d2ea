//! Firmware images and kernels: measuring never panics, and takes the memory and time that the caps allow.
#![no_main]

use bastionai_attestation::reference::DirectBoot;
use bastionai_attestation::reference::rtmr::{authenticode, firmware_events};
use bastionai_attestation::reference::snp::{Machine, launch_digest};
use bastionai_attestation::reference::tdvf::Tdvf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = authenticode(bytes);
    if let Ok(tdvf) = Tdvf::parse(bytes) {
        assert_eq!(tdvf.mrtd(), tdvf.mrtd());
        assert!(firmware_events(&tdvf).len() >= 6);
    }
    let boot = DirectBoot { kernel: b"kernel", initrd: None, cmdline: "" };
    let machine = Machine { vcpus: 2, vcpu_type: "EPYC-Milan", guest_features: 1 };
    let _ = launch_digest(bytes, Some(&boot), &machine);
    let _ = launch_digest(bytes, None, &machine);
});
