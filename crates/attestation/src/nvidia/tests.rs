//! GPUs beside a CPU: the tie between them, and what an appraisal makes of it.

use super::*;
use crate::binding::tests::example as binding;
use crate::claims::tests::example as claims;
use crate::evidence::Attester;
use crate::{AppraisalPolicy, AttestationResult, InsecureSimulatedAttester, ReferenceValues, Rule};
use bastionai_test_platforms::nvidia::{Gpu, Measured, Model, Vendor};

const NOW_MS: u64 = 1_767_225_600_000;

struct Machine {
    vendor: Vendor,
    gpu: Gpu,
}

impl Machine {
    fn new() -> Self {
        let vendor = Vendor::new();
        let gpu = vendor.gpu(&Model::default());
        Self { vendor, gpu }
    }

    fn item(&self, gpu: &Gpu, report_data: &[u8; 64]) -> Item {
        let evidence = gpu.evidence(&nonce(report_data), &Measured::by(gpu));
        // Of the other build of this crate that the test vendor links.
        Item::new(MEDIA_TYPE, evidence.item().bytes)
    }

    fn verify(&self, items: Vec<Item>, report_data: &[u8; 64]) -> Result<Vec<Report>, VerifyError> {
        let envelope = Envelope {
            evidence: items,
            endorsements: vec![],
        };
        verify(&envelope, report_data, &Roots(vec![self.vendor.root()]), NOW_MS)
    }
}

#[test]
fn a_gpu_asked_with_the_nonce_of_the_report_data_is_in_the_report() {
    let machine = Machine::new();
    let other = machine.vendor.gpu(&Model {
        serial: "FEDCBA9876543210".to_owned(),
        ..Model::default()
    });
    let items = vec![
        machine.item(&machine.gpu, &[1; 64]),
        Item::new("application/vnd.bastionai.snp-report", [1, 2, 3]),
        machine.item(&other, &[1; 64]),
    ];
    let gpus = machine.verify(items, &[1; 64]).unwrap();
    let serials: Vec<_> = gpus.iter().map(|gpu| gpu.device_serial.as_str()).collect();
    assert_eq!(serials, ["0123456789ABCDEF", "FEDCBA9876543210"]);
    assert_eq!(machine.verify(vec![], &[1; 64]).unwrap(), []);
}

#[test]
fn a_gpu_asked_for_another_session_or_machine_is_refused() {
    let machine = Machine::new();
    let items = vec![machine.item(&machine.gpu, &[2; 64])];
    let error = machine.verify(items, &[1; 64]).unwrap_err();
    assert!(matches!(&error, VerifyError::Unbound { .. }), "{error}");
    let shown = error.to_string();
    assert!(shown.contains(&hex::encode(nonce(&[2; 64]))), "{shown}");
    assert!(shown.contains(&hex::encode(nonce(&[1; 64]))), "{shown}");
}

#[test]
fn one_gpu_does_not_count_for_two() {
    let machine = Machine::new();
    // Two keys of one device, as after a change of firmware.
    let again = machine.vendor.gpu(&Model::default());
    for second in [&machine.gpu, &again] {
        let items = vec![
            machine.item(&machine.gpu, &[1; 64]),
            machine.item(second, &[1; 64]),
        ];
        let error = machine.verify(items, &[1; 64]).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }
}

#[test]
fn a_gpu_that_does_not_verify_takes_the_whole_evidence_with_it() {
    let machine = Machine::new();
    let mut item = machine.item(&machine.gpu, &[1; 64]);
    let last = item.bytes.len() - 1;
    item.bytes[last] ^= 1;
    let items = vec![machine.item(&machine.gpu, &[1; 64]), item];
    assert!(machine.verify(items, &[1; 64]).is_err());
}

fn appraise(gpus: Vec<Report>, policy: &AppraisalPolicy) -> Result<AttestationResult, Vec<Rule>> {
    let report_data = binding().report_data();
    let evidence = InsecureSimulatedAttester::new().attest(&report_data).unwrap();
    let mut verified = crate::verify(&evidence, &TrustAnchors::bundled(), NOW_MS).unwrap();
    assert_eq!(verified.report.gpus, []);
    verified.report.gpus = gpus;
    verified
        .appraise(policy, &binding(), &claims())
        .map_err(|error| error.refusals.iter().map(|refusal| refusal.rule).collect())
}

#[test]
fn an_appraisal_of_a_server_is_one_of_its_gpus() {
    let machine = Machine::new();
    let report_data = binding().report_data();
    let items = vec![machine.item(&machine.gpu, &report_data)];
    let gpus = machine.verify(items, &report_data).unwrap();

    let mut policy = AppraisalPolicy::insecure_development();
    assert_eq!(appraise(gpus.clone(), &policy).unwrap_err(), [Rule::GpuFirmware]);
    policy.nvidia.minimum_count = 1;
    assert_eq!(appraise(vec![], &policy).unwrap_err(), [Rule::Gpu]);
    policy.nvidia.firmware = ReferenceValues::AcceptAny;
    let result = appraise(gpus, &policy).unwrap();
    assert!(
        result
            .accepted_without_reference_value()
            .contains(&Rule::GpuFirmware)
    );
    let shown = result.to_string();
    let row = "gpu                GH100 A01 GSP BROM 0123456789ABCDEF, driver 590.12, VBIOS 96.00.A5.00.01, confidential \
               (verified at boot; not shown to sit in this machine)";
    assert!(shown.lines().any(|line| line == row), "{shown}");
}
