//! `bastionai measure snp|tdx`: what honest hardware will report of a machine, computed from the files that it boots.

use crate::output;
use anyhow::Context;
use bastionai_attestation::reference::rtmr::{self, Event};
use bastionai_attestation::reference::snp::{Machine, launch_digest};
use bastionai_attestation::reference::tdvf::Tdvf;
use bastionai_attestation::reference::{DirectBoot, Hex, ReferenceSet, SnpReference, TdxReference};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum MeasureVerb {
    /// The launch digests of SEV-SNP guests, as QEMU launches them: one for each model and number of virtual processors.
    Snp {
        /// The firmware; with --kernel one that measures it (edk2's AmdSevX64).
        #[arg(long, value_name = "FILE")]
        ovmf: PathBuf,
        #[command(flatten)]
        boot: SnpBootArguments,
        /// Virtual processors (repeatable).
        #[arg(long, required = true, value_name = "N")]
        vcpus: Vec<u32>,
        /// Processor model as QEMU names it, e.g. EPYC-Milan, EPYC-Genoa or EPYC-Turin (repeatable).
        #[arg(long, required = true, value_name = "NAME")]
        vcpu_type: Vec<String>,
        /// SEV_FEATURES of the guest, e.g. 0x1, or 0x21 where the host's kernel turns DebugSwap on.
        #[arg(long, default_value = "0x1", value_parser = number)]
        guest_features: u64,
    },
    /// MRTD, RTMR1 and RTMR2 of a TDX guest (QEMU from 10.1, OVMF from edk2-stable202505), and the events they are made of.
    Tdx {
        /// The firmware (TDVF).
        #[arg(long, value_name = "FILE")]
        ovmf: PathBuf,
        /// The kernel (bzImage, vmlinuz).
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// The initial RAM disk.
        #[arg(long, value_name = "FILE")]
        initrd: Option<PathBuf>,
        /// The kernel's command line, as given to QEMU.
        #[arg(long, value_name = "TEXT", default_value = "")]
        cmdline: String,
        /// RTMR0 of a reference boot of this machine: it covers memory and devices, and cannot be computed from files.
        #[arg(long, value_name = "HEX")]
        rtmr0: Option<Hex<48>>,
    },
}

/// What boots without a boot loader; without --kernel the guest's disk decides, and is not measured.
#[derive(Debug, Args)]
pub(crate) struct SnpBootArguments {
    /// The kernel (bzImage, vmlinuz).
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line, as given to QEMU.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
}

/// What `--json` prints and `bastionai release-manifest --measured` reads.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    /// The values.
    pub(crate) reference_values: ReferenceSet,
    /// What registers are extended with, by register: to find where an event log differs.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    events: serde_json::Value,
}

/// Computes and prints.
pub(crate) fn run(verb: &MeasureVerb, json: bool) -> anyhow::Result<()> {
    match verb {
        MeasureVerb::Snp {
            ovmf,
            boot,
            vcpus,
            vcpu_type,
            guest_features,
        } => snp(&read(ovmf)?, boot, (vcpus, vcpu_type, *guest_features), json),
        MeasureVerb::Tdx {
            ovmf,
            kernel,
            initrd,
            cmdline,
            rtmr0,
        } => {
            let initrd = initrd.as_deref().map(read).transpose()?;
            let kernel = read(kernel)?;
            let boot = DirectBoot {
                kernel: &kernel,
                initrd: initrd.as_deref(),
                cmdline,
            };
            tdx(&read(ovmf)?, &boot, *rtmr0, json)
        }
    }
}

fn snp(
    image: &[u8],
    boot: &SnpBootArguments,
    (vcpus, models, guest_features): (&[u32], &[String], u64),
    json: bool,
) -> anyhow::Result<()> {
    let kernel = boot.kernel.as_deref().map(read).transpose()?;
    let initrd = boot.initrd.as_deref().map(read).transpose()?;
    let boot = kernel.as_ref().map(|kernel| DirectBoot {
        kernel,
        initrd: initrd.as_deref(),
        cmdline: boot.cmdline.as_deref().unwrap_or_default(),
    });
    let mut values = ReferenceSet::default();
    for vcpu_type in models {
        for &vcpus in vcpus {
            let machine = Machine {
                vcpus,
                vcpu_type,
                guest_features,
            };
            values.snp.push(SnpReference {
                vcpu_type: vcpu_type.clone(),
                vcpus,
                guest_features,
                measurement: Hex(launch_digest(image, boot.as_ref(), &machine)?),
            });
        }
    }
    if boot.is_none() {
        eprintln!(
            "warning: without --kernel the digest covers the firmware alone: whatever it then boots is not measured"
        );
    }
    let measured = Measured {
        reference_values: values,
        events: serde_json::Value::Null,
    };
    output::either(json, &measured, || {
        let row = |value: &SnpReference| {
            vec![
                value.vcpu_type.clone(),
                value.vcpus.to_string(),
                format!("{:#x}", value.guest_features),
                value.measurement.to_string(),
            ]
        };
        let rows: Vec<_> = measured.reference_values.snp.iter().map(row).collect();
        output::table(&["model", "vcpus", "features", "launch digest"], &rows);
        print_policy(&measured.reference_values);
    })
}

fn tdx(image: &[u8], boot: &DirectBoot<'_>, rtmr0: Option<Hex<48>>, json: bool) -> anyhow::Result<()> {
    let tdvf = Tdvf::parse(image)?;
    let events: BTreeMap<&str, Vec<Event>> = BTreeMap::from([
        ("rtmr0", rtmr::firmware_events(&tdvf)),
        ("rtmr1", rtmr::rtmr1_events(boot)?),
        ("rtmr2", rtmr::rtmr2_events(boot)?),
    ]);
    let reference = TdxReference {
        mrtd: Hex(tdvf.mrtd()),
        rtmr0,
        rtmr1: Some(Hex(rtmr::replay(&events["rtmr1"]))),
        rtmr2: Some(Hex(rtmr::replay(&events["rtmr2"]))),
        // Nothing on the way to the server extends it, nor does the server.
        rtmr3: Some(Hex(rtmr::replay(&[]))),
    };
    let measured = Measured {
        reference_values: ReferenceSet {
            tdx: vec![reference],
            ..ReferenceSet::default()
        },
        events: serde_json::to_value(&events)?,
    };
    output::either(json, &measured, || {
        print_registers(&measured.reference_values.tdx[0]);
        println!();
        let rows: Vec<_> = events
            .iter()
            .flat_map(|(register, events)| {
                events.iter().map(|event| {
                    let register = (*register).to_owned();
                    vec![register, event.name.clone(), hex::encode(event.digest)]
                })
            })
            .collect();
        output::table(&["register", "event", "SHA-384"], &rows);
        print_policy(&measured.reference_values);
        eprintln!(
            "\nrtmr0 also covers memory map, ACPI tables and boot variables, which QEMU makes of the machine's devices: the \
             events above are the part that is firmware; take the register from a reference boot (--rtmr0)"
        );
    })
}

fn print_registers(reference: &TdxReference) {
    let register =
        |value: Option<Hex<48>>| value.map_or("not computed".to_owned(), |value| value.to_string());
    let rows = [
        ("mrtd", reference.mrtd.to_string(), "firmware"),
        (
            "rtmr0",
            register(reference.rtmr0),
            "firmware's configuration, and the machine",
        ),
        ("rtmr1", register(reference.rtmr1), "kernel"),
        (
            "rtmr2",
            register(reference.rtmr2),
            "command line and initial RAM disk",
        ),
        (
            "rtmr3",
            register(reference.rtmr3),
            "nothing: no program of ours extends it",
        ),
    ];
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value, covers)| vec![name.to_owned(), value, covers.to_owned()])
        .collect();
    output::table(&["register", "value", "covers"], &rows);
}

/// The lines of an appraisal policy that accept these values.
fn print_policy(values: &ReferenceSet) {
    println!("\n# for an appraisal policy (TOML)");
    println!("measurements = {}", list(&values.measurements()));
    if !values.tdx.is_empty() {
        println!("\n[tdx]");
        for index in 0..4 {
            let register = values.rtmr(index);
            if !register.is_empty() {
                println!("rtmr{index} = {}", list(&register));
            }
        }
    }
}

fn list(values: &[[u8; 48]]) -> String {
    let quoted: Vec<String> = values
        .iter()
        .map(|value| format!("  \"{}\",\n", hex::encode(value)))
        .collect();
    format!("[\n{}]", quoted.concat())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_prefix("0x")
        .map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
}
