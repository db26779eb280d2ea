//! Known answers of programs that are not ours and of hardware; and images that are refused.

use super::fixtures::{CMDLINE, INITRD, KERNEL, OVMF, boot, published_tdvf};
use super::rtmr::{Event, authenticode, firmware_events, replay, rtmr1_events, rtmr2_events};
use super::snp::{Machine, VCPU_TYPES, launch_digest};
use super::tdvf::Tdvf;
use super::values::{ReferenceSet, SnpReference, TdxReference};
use super::{DirectBoot, Hex, MeasureError};
use proptest::prelude::*;

fn machine(vcpu_type: &str, vcpus: u32) -> Machine<'_> {
    Machine {
        vcpus,
        vcpu_type,
        guest_features: 1,
    }
}

fn snp(boot: Option<&DirectBoot<'_>>, machine: &Machine<'_>) -> String {
    hex::encode(launch_digest(OVMF, boot, machine).unwrap())
}

/// `tests/fixtures/reference/make.py`, with sev-snp-measure 0.0.13.
#[test]
fn launch_digests_are_those_of_ibms_sev_snp_measure() {
    let boot = boot();
    let kernel_alone = DirectBoot {
        initrd: None,
        cmdline: "",
        ..boot
    };
    for (shape, boot, expected) in [
        (
            machine("EPYC-Milan", 1),
            Some(&boot),
            "a574a128c1f2d6bd92c59be4fcf5b90e8937623bc38d4581c333e68009bd2b55ae4bb40019412da027c327d720c93fbe",
        ),
        (
            machine("EPYC-Milan", 4),
            Some(&boot),
            "95351946b0c26d90e604c8034ee4881710949fde90e8f3c09c250b4a5f879ef3289dae52fb10c7ddd4bbd36a987bc699",
        ),
        (
            machine("epyc-genoa", 4),
            Some(&boot),
            "eaebf86240580baf7daa16c662ef3b9fcef368e5c10c6d37a9b962bc49bd7c64f7b23d4e7fdc0eb0640c55c5006c9bef",
        ),
        (
            machine("EPYC-Turin", 2),
            Some(&boot),
            "9ff599fc424d68526361bd0ddb79ec65dd875000ba3f11aa905051843913403b3e0c7b8ed47cb5db0957d14deaffc1f3",
        ),
        (
            Machine {
                guest_features: 0x21,
                ..machine("EPYC-Genoa", 4)
            },
            Some(&boot),
            "b23b19464b0e084e3caeae7ac821c3dec509df2efa40c77a193cccd16a9e20f978f15430b3e05a82aeae47717f7bbc6d",
        ),
        (
            machine("EPYC-v4", 2),
            Some(&kernel_alone),
            "e7f772c3f414046d4b78dbc1b4f9d78280845877c9209f264600c6192e232cfe4c97fe645b30cf2bd09be7812f0cd0e6",
        ),
        (
            machine("EPYC-v4", 2),
            None,
            "b034ba69b1c6da1f73537dbef00217d25c291ff5a437cc48faa49f2d81de391d19a401030b336b03f5c42fd590b0afa8",
        ),
    ] {
        assert_eq!(snp(boot, &shape), expected, "{shape:?}");
    }
}

/// The second implementation: virtee's, which reads files.
#[test]
fn launch_digests_of_every_model_are_those_of_crate_sev() {
    use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
    use sev::measurement::vcpu_types::CpuType;
    use sev::measurement::vmsa::GuestFeatures;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/reference");
    for model in VCPU_TYPES {
        for vcpus in [1, 3] {
            let arguments = SnpMeasurementArgs {
                vcpus,
                vcpu_type: CpuType::try_from(model).unwrap(),
                ovmf_file: format!("{folder}/ovmf.fd").into(),
                guest_features: GuestFeatures(1),
                kernel_file: Some(format!("{folder}/kernel.efi").into()),
                initrd_file: None,
                append: Some(CMDLINE),
                ovmf_hash_str: None,
                vmm_type: None,
            };
            let boot = DirectBoot {
                initrd: None,
                ..boot()
            };
            let expected = snp_calc_launch_digest(arguments).unwrap().get_hex_ld();
            assert_eq!(
                snp(Some(&boot), &machine(model, vcpus)),
                expected,
                "{model} {vcpus}"
            );
        }
    }
}

#[test]
fn every_byte_of_the_firmware_and_every_file_is_in_the_launch_digest() {
    let shape = machine("EPYC-Milan", 2);
    let honest = launch_digest(OVMF, Some(&boot()), &shape).unwrap();
    for at in 0..OVMF.len() {
        let mut image = OVMF.to_vec();
        image[at] ^= 1;
        assert_ne!(
            launch_digest(&image, Some(&boot()), &shape),
            Ok(honest),
            "byte {at}"
        );
    }
    for changed in [
        DirectBoot {
            kernel: &KERNEL[1..],
            ..boot()
        },
        DirectBoot {
            initrd: Some(&INITRD[1..]),
            ..boot()
        },
        DirectBoot {
            cmdline: "console=ttyS0 rw",
            ..boot()
        },
    ] {
        assert_ne!(launch_digest(OVMF, Some(&changed), &shape), Ok(honest));
    }
}

#[test]
fn machines_that_cannot_be_are_refused_with_the_remedy() {
    for (shape, named) in [
        (machine("EPYC-Milan", 0), "from 1 to"),
        (machine("EPYC-Milan", 5000), "from 1 to"),
        (machine("Cascadelake-Server", 1), "EPYC-Turin-v2"),
        (
            Machine {
                guest_features: 0x20,
                ..machine("EPYC-Milan", 1)
            },
            "SNP active",
        ),
    ] {
        let error = launch_digest(OVMF, None, &shape).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn firmware_that_would_not_measure_the_kernel_is_refused() {
    // Section 4 of the SEV metadata, at 0x3100: kernel hashes; as secure memory, the kernel's hashes have no place.
    let kind = 0x3100 + 16 + 4 * 12 + 8;
    let mut image = OVMF.to_vec();
    image[kind] = 1;
    let shape = machine("EPYC-Milan", 1);
    let error = launch_digest(&image, Some(&boot()), &shape)
        .unwrap_err()
        .to_string();
    assert!(error.contains("AmdSevX64"), "{error}");
    assert!(launch_digest(&image, None, &shape).is_ok());
    image[kind] = 9;
    let error = launch_digest(&image, None, &shape).unwrap_err().to_string();
    assert!(error.contains("kind 0x9"), "{error}");
    // Published for TDX: no SEV metadata.
    let error = launch_digest(&published_tdvf(), None, &shape)
        .unwrap_err()
        .to_string();
    assert!(error.contains("SEV-SNP"), "{error}");
}

/// aleph-vm at 6c84eb86, `mrtd_walks_measured_sections_only` and its Python twin; MIT.
#[test]
fn mrtd_is_the_published_one_of_a_published_image() {
    let image = published_tdvf();
    assert_eq!(
        hex::encode(Tdvf::parse(&image).unwrap().mrtd()),
        "168f5582b72265ed01aad1edd402f5d096c12d95385b5f38959b5cc8c128e6efe6e13e854e211a1ee4e4a4eeafa36fa6"
    );
}

/// aleph-vm's Python twin of it (`tdx_measurement.py`), run once on the image of `make.py`.
#[test]
fn mrtd_of_our_image_is_that_of_another_program() {
    assert_eq!(
        hex::encode(Tdvf::parse(OVMF).unwrap().mrtd()),
        "ec5c6cee567965b28e1dcc2dde7120ec154984ff59f8b50f08877853735b1f1f320954853d1d62d255e7e63854eda056"
    );
}

#[test]
fn mrtd_covers_what_is_measured_and_where_pages_are_added() {
    let honest = Tdvf::parse(OVMF).unwrap().mrtd();
    let flipped = |at: usize| {
        let mut image = OVMF.to_vec();
        image[at] ^= 0x10;
        Tdvf::parse(&image).map(|tdvf| tdvf.mrtd())
    };
    assert_ne!(flipped(0x123), Ok(honest), "the measured volume");
    assert_eq!(flipped(0x2123), Ok(honest), "the configuration volume is RTMR0's");
    let address = |section: usize| 0x3200 + 16 + 32 * section + 9;
    assert_ne!(flipped(address(2)), Ok(honest), "where the TD HOB lies");
    assert_eq!(flipped(address(3)), Ok(honest), "memory that the guest accepts");
}

#[test]
fn metadata_that_cannot_be_is_refused() {
    let section = 0x3200 + 16;
    for (at, value, named) in [
        (0x3200, 0, "version 1"),
        (0x3208, 2, "version 1"),
        (0x320c, 65, "at most 64"),
        (section + 8, 1, "section 0"),               // no page boundary
        (section + 4, 0xff, "section 0"),            // measured, not wholly in the image
        (section + 3, 0xff, "section 0"),            // outside the image
        (section + 28, 0x11, "section 0"),           // unknown attribute
        (section + 28, 3, "section 0"),              // measured, but added by the guest
        (section + 2 * 32 + 20, 1, "at most 65536"), // four GiB of pages
    ] {
        let mut image = OVMF.to_vec();
        image[at] = value;
        let error = Tdvf::parse(&image).err().unwrap().to_string();
        assert!(error.contains(named), "{at:#x}: {error}");
    }
}

#[test]
fn images_without_a_table_are_refused() {
    for image in [&[][..], &[0; 4096], &OVMF[1..], &OVMF[..4096], &[0xff; 8192]] {
        assert!(matches!(Tdvf::parse(image), Err(MeasureError::Firmware(_))));
        let shape = machine("EPYC", 1);
        assert!(matches!(
            launch_digest(image, None, &shape),
            Err(MeasureError::Firmware(_))
        ));
    }
}

/// aleph-vm at 6c84eb86, `authenticode_skips_checksum_security_dir_and_cert_table`: the same image; MIT.
#[test]
fn the_kernels_digest_is_the_published_one_of_a_published_image() {
    assert_eq!(
        hex::encode(authenticode(KERNEL).unwrap()),
        "27ca0b497c08dcf49e302a2dd4bbe74889b19d0d1af84364c8cad3472d5ba1bfda1e7cfe7fb94848d491cdfd2a163410"
    );
}

#[test]
fn checksum_and_certificates_are_no_part_of_the_kernels_digest_and_all_else_is() {
    let honest = authenticode(KERNEL).unwrap();
    let optional = 0x58;
    let unhashed = |at: &usize| {
        (optional + 64..optional + 68).contains(at)
            || (optional + 144..optional + 152).contains(at)
            || (0x420..0x440).contains(at)
    };
    for at in 0..KERNEL.len() {
        let mut image = KERNEL.to_vec();
        image[at] ^= 1;
        match authenticode(&image) {
            // The length of the certificates decides what is hashed before them.
            Ok(digest) if unhashed(&at) && at != optional + 148 => assert_eq!(digest, honest, "byte {at:#x}"),
            Ok(digest) => assert_ne!(digest, honest, "byte {at:#x}"),
            Err(error) => assert!(matches!(error, MeasureError::Kernel(_))),
        }
    }
}

/// aleph-vm at 6c84eb86, `tests/fixtures/tdx/README.md`: taken on 2026-09-29 from hardware (Xeon 6731E, QEMU 10.2.4, edk2
/// 202602, Ubuntu 7.0.0-34-generic); MIT. The kernel is known by RTMR1's digests only, the initial RAM disk by its SHA-384.
#[test]
fn rtmr2_is_what_hardware_reported() {
    let boot = DirectBoot {
        cmdline: "root=LABEL=cloudimg-rootfs ro console=ttyS0",
        ..boot()
    };
    let mut events = rtmr2_events(&boot).unwrap();
    assert_eq!(
        hex::encode(events[0].digest),
        "b8c85d40a1d555a451571e24d7d7c4c331bc15721d6e4b2a5cb5093214c44174822a0916aa4d622d4309644de99cd59c"
    );
    let initrd: Hex<48> =
        "88de90bedcc560064688c74ccd6609a25ed9d48b0a0e13d8b2a558212724d8755b2c8114dcf04b8d51ea4cf7782e3091"
            .parse()
            .unwrap();
    events[1].digest = initrd.0;
    assert_eq!(
        hex::encode(replay(&events)),
        "972547466cb6bcb8a23cd479e9258c3affbbc4f0ba2805d732477200d0dff8432447c7a775e70453cdb51f018a306ece"
    );
}

/// The same source, and the same digests in the event logs that dstack's guests publish.
#[test]
fn the_steps_to_the_kernel_have_the_digests_of_event_logs_from_hardware() {
    let digests: Vec<String> = rtmr1_events(&boot()).unwrap()[1..]
        .iter()
        .map(|event| hex::encode(event.digest))
        .collect();
    assert_eq!(
        digests,
        [
            "77a0dab2312b4e1e57a84d865a21e5b2ee8d677a21012ada819d0a98988078d3d740f6346bfe0abaa938ca20439a8d71",
            "394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e576573ad7ed9ae41019f5818b4b971c9effc60e1ad9f1289f0",
            "214b0bef1379756011344877743fdc2a5382bac6e70362d624ccf3f654407c1b4badf7d8f9295dd3dabdef65b27677e0",
            "0a2e01c85deae718a530ad8c6d20a84009babe6c8989269e950d8cf440c6e997695e64d455c4174a652cd080f6230b74",
        ]
    );
}

/// The first five of RTMR0 that every event log of an OVMF without enrolled keys has.
#[test]
fn empty_secure_boot_variables_have_the_digests_of_event_logs_from_hardware() {
    let events = firmware_events(&Tdvf::parse(OVMF).unwrap());
    let named: Vec<(&str, String)> = events
        .iter()
        .map(|event| (event.name.as_str(), hex::encode(event.digest)))
        .collect();
    assert_eq!(named[0].0, "configuration firmware volume");
    let variables: Vec<&str> = named[1..6].iter().map(|(_, digest)| digest.as_str()).collect();
    assert_eq!(
        variables,
        [
            "9dc3a1f80bcec915391dcda5ffbb15e7419f77eab462bbf72b42166fb70d50325e37b36f93537a863769bcf9bedae6fb",
            "6f2e3cbc14f9def86980f5f66fd85e99d63e69a73014ed8a5633ce56eca5b64b692108c56110e22acadcef58c3250f1b",
            "d607c0efb41c0d757d69bca0615c3a9ac0b1db06c557d992e906c6b7dee40e0e031640c7bfd7bcd35844ef9edeadc6f9",
            "08a74f8963b337acb6c93682f934496373679dd26af1089cb4eaf0c30cf260a12e814856385ab8843e56a9acea19e127",
            "18cc6e01f0c6ea99aa23f8a280423e94ad81d96d0aeb5180504fc0f7a40cb3619dd39bd6a95ec1680a86ed6ab0f9828d",
        ]
    );
    assert_eq!(named[6].0, "separator");
}

#[test]
fn command_lines_without_a_defined_measurement_are_refused() {
    for (cmdline, initrd) in [("ö", Some(INITRD)), ("", None), ("", Some(&[][..]))] {
        let boot = DirectBoot {
            cmdline,
            initrd,
            ..boot()
        };
        assert!(matches!(rtmr2_events(&boot), Err(MeasureError::Machine(_))));
    }
    let boot = DirectBoot {
        initrd: None,
        ..boot()
    };
    assert_eq!(rtmr2_events(&boot).unwrap().len(), 1);
}

#[test]
fn a_register_starts_at_zero_and_keeps_the_order() {
    assert_eq!(replay(&[]), [0; 48]);
    let event = |byte| Event {
        name: String::new(),
        digest: [byte; 48],
    };
    assert_ne!(replay(&[event(1), event(2)]), replay(&[event(2), event(1)]));
}

#[test]
fn a_set_is_written_and_read_in_one_way_and_holds_each_value_once() {
    let snp = |vcpus, byte| SnpReference {
        vcpu_type: "EPYC-Milan".to_owned(),
        vcpus,
        guest_features: 1,
        measurement: Hex([byte; 48]),
    };
    let set = ReferenceSet {
        snp: vec![snp(1, 1), snp(2, 1)],
        tdx: vec![TdxReference {
            mrtd: Hex([2; 48]),
            rtmr0: None,
            rtmr1: Some(Hex([3; 48])),
            rtmr2: None,
            rtmr3: None,
        }],
        ..ReferenceSet::default()
    };
    let json = serde_json::to_string(&set).unwrap();
    assert_eq!(serde_json::from_str::<ReferenceSet>(&json).unwrap(), set);
    assert_eq!(set.clone().and(set.clone()), set);
    assert_eq!(set.measurements(), [[1; 48], [2; 48]]);
    assert_eq!((set.rtmr(0), set.rtmr(1)), (vec![], vec![[3; 48]]));
    for wrong in [
        json.replacen("snp", "sev", 1),
        json.replacen("01", "0A", 1),
        json.replacen("0101", "01", 1),
    ] {
        assert!(serde_json::from_str::<ReferenceSet>(&wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(Tdvf::parse(&bytes).is_err());
        prop_assert!(launch_digest(&bytes, None, &machine("EPYC", 1)).is_err());
        prop_assert!(authenticode(&bytes).is_err());
    }

    #[test]
    fn no_table_of_an_image_makes_it_panic(at in 0x3000_usize..0x4000, junk in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut image = OVMF.to_vec();
        let end = (at + junk.len()).min(image.len());
        image[at..end].copy_from_slice(&junk[..end - at]);
        let _ = Tdvf::parse(&image).map(|tdvf| tdvf.mrtd());
        let _ = launch_digest(&image, Some(&boot()), &machine("EPYC", 2));
    }

    #[test]
    fn no_header_of_a_kernel_makes_it_panic(at in 0_usize..0x1a0, junk in prop::collection::vec(any::<u8>(), 1..16)) {
        let mut image = KERNEL.to_vec();
        image[at..at + junk.len()].copy_from_slice(&junk);
        let _ = authenticode(&image);
    }
}
