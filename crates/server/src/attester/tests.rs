use super::configfs_tsm::tests::StandIn;
use super::kinds::{azure, snp, tdx};
use super::tpm::tests::{StandInTpm, no_tpm};
use super::*;
use bastionai_attestation::Item;

/// Places below a directory, made where the kernel would have them.
pub(super) fn places(directory: &Path) -> AttestationConfig {
    let places = AttestationConfig {
        endorsements: Some(directory.join("endorsements")),
        tsm: directory.join("tsm"),
        tpm: directory.join("tpm"),
        event_log: directory.join("CCEL"),
    };
    for made in [places.endorsements.as_ref().unwrap(), &places.tsm] {
        std::fs::create_dir_all(made).unwrap();
    }
    places
}

#[test]
fn auto_takes_the_platform_that_is_there_and_a_name_takes_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let places = places(directory.path());
    let mut nowhere = places.clone();
    nowhere.tsm = directory.path().join("nonexistent");
    let azure_tpm = |_: &Path| Ok(StandInTpm::default().tpm());
    let media_type =
        |kind, provider: Option<&'static str>, tpm: &dyn Fn(&Path) -> Result<tpm::Tpm, TpmError>| {
            let (kernel, places) = match provider {
                Some(provider) => (StandIn::of(provider), &places),
                None => (StandIn::default(), &nowhere),
            };
            open_with(kind, places, kernel, tpm).map(|attester| attester.media_type())
        };
    use AttesterKind::{Auto, Azure, InsecureSimulated, Snp, Tdx};
    for (kind, provider, expected) in [
        (Auto, "sev_guest", snp::MEDIA_TYPE),
        (Snp, "sev_guest", snp::MEDIA_TYPE),
        (Auto, "tdx_guest", tdx::MEDIA_TYPE),
        (Tdx, "tdx_guest", tdx::MEDIA_TYPE),
    ] {
        // configfs-tsm before the vTPM: a guest with both has a report of its own.
        for tpm in [&azure_tpm as &dyn Fn(&Path) -> _, &no_tpm] {
            assert_eq!(media_type(kind, Some(provider), tpm).unwrap(), expected);
        }
    }
    assert_eq!(media_type(Auto, None, &azure_tpm).unwrap(), azure::MEDIA_TYPE);
    assert_eq!(
        media_type(Azure, Some("sev_guest"), &azure_tpm).unwrap(),
        azure::MEDIA_TYPE
    );
    for (kind, provider) in [
        (Snp, None),
        (Snp, Some("tdx_guest")),
        (Tdx, Some("sev_guest")),
        (Azure, None),
    ] {
        let refused = media_type(kind, provider, &no_tpm);
        assert!(refused.is_err(), "{kind:?} on {provider:?} gave {refused:?}");
    }
    assert_eq!(
        media_type(InsecureSimulated, Some("sev_guest"), &azure_tpm).unwrap(),
        insecure_simulated::MEDIA_TYPE
    );
}

/// This machine is one without a TEE, or the test looks where none is.
#[test]
fn a_machine_without_a_tee_is_told_what_was_looked_for_where_and_what_to_do() {
    let places = AttestationConfig {
        endorsements: None,
        tsm: "/nonexistent/tsm/report".into(),
        tpm: "/nonexistent/tpmrm0".into(),
        event_log: "/nonexistent/CCEL".into(),
    };
    let error = open(AttesterKind::Auto, &places).err().unwrap().to_string();
    for part in [
        "/nonexistent/tsm/report",
        "/nonexistent/tpmrm0",
        "No such file",
        "mount -t configfs",
        "sev-guest",
        "[attestation]",
        "insecure-simulated",
    ] {
        assert!(error.contains(part), "{part} missing in: {error}");
    }
    for kind in [AttesterKind::Snp, AttesterKind::Tdx, AttesterKind::Azure] {
        let error = open(kind, &places).err().unwrap().to_string();
        assert!(error.contains("/nonexistent/"), "{error}");
    }
}

#[test]
fn evidence_that_no_relying_party_would_read_is_an_error_here() {
    let long = Envelope {
        evidence: vec![Item::new("a/b", vec![0; MAX_EVIDENCE_BYTES])],
        endorsements: vec![],
    };
    let many = Envelope {
        evidence: vec![],
        endorsements: vec![Item::new("a/b", []); MAX_ITEMS + 1],
    };
    for envelope in [long, many] {
        let error = evidence("a/b", &envelope).unwrap_err().to_string();
        assert!(error.contains("attestation.endorsements"), "{error}");
    }
}
