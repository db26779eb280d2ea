use super::super::certificate_table;
use super::super::tests::places;
use super::*;
use bastionai_attestation::envelope::{CERTIFICATE, REVOCATION_LIST};
use std::sync::Mutex;

/// A directory that reacts to what is done in it as the kernel's does: attributes come with an entry, a report with its
/// `inblob`, and every write counts.
#[derive(Clone, Default)]
pub(in crate::attester) struct StandIn {
    pub(in crate::attester) provider: &'static str,
    pub(in crate::attester) auxiliary: Vec<u8>,
    privilege_floor: Option<&'static str>,
    /// Error number that reading this attribute gives.
    fails: Option<(&'static str, i32)>,
    /// How many more times somebody else writes to the entry.
    intruder: std::sync::Arc<Mutex<u32>>,
    /// A write that the kernel refuses when the file is closed, of which nobody hears.
    loses_writes: bool,
}

impl StandIn {
    pub(in crate::attester) fn of(provider: &'static str) -> Self {
        Self {
            provider,
            ..Self::default()
        }
    }

    fn count(entry: &Path) {
        let path = entry.join("generation");
        let count: u64 = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
        std::fs::write(path, format!("{}\n", count + 1)).unwrap();
    }
}

impl Kernel for StandIn {
    fn make(&self, entry: &Path) -> io::Result<()> {
        std::fs::create_dir(entry)?;
        std::fs::write(entry.join("provider"), format!("{}\n", self.provider))?;
        std::fs::write(entry.join("generation"), "0\n")?;
        std::fs::write(entry.join("inblob"), "")?;
        if let Some(floor) = self.privilege_floor {
            std::fs::write(entry.join("privlevel_floor"), format!("{floor}\n"))?;
            std::fs::write(entry.join("privlevel"), "")?;
        }
        if self.provider == "sev_guest" {
            std::fs::write(entry.join("auxblob"), &self.auxiliary)?;
        }
        Ok(())
    }

    fn write(&self, attribute: &Path, bytes: &[u8]) -> io::Result<()> {
        let entry = attribute.parent().unwrap();
        if self.loses_writes {
            return Ok(());
        }
        Configfs.write(attribute, bytes)?;
        Self::count(entry);
        let mut intruder = self.intruder.lock().unwrap();
        if *intruder > 0 {
            *intruder -= 1;
            Self::count(entry);
        }
        Ok(())
    }

    fn read(&self, attribute: &Path) -> io::Result<Vec<u8>> {
        let name = attribute.file_name().unwrap().to_str().unwrap();
        if let Some((_, error)) = self.fails.filter(|(fails, _)| *fails == name) {
            return Err(io::Error::from_raw_os_error(error));
        }
        if name == "outblob" {
            let entry = attribute.parent().unwrap();
            let level = std::fs::read(entry.join("privlevel")).unwrap_or_default();
            return Ok([&b"report:"[..], &level, &std::fs::read(entry.join("inblob"))?].concat());
        }
        Configfs.read(attribute)
    }

    fn remove(&self, entry: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(entry)
    }
}

fn attester(directory: &tempfile::TempDir, kernel: StandIn) -> Result<ConfigfsTsm<StandIn>, AttesterError> {
    let places = places(directory.path());
    let endorsements = Endorsements::at(places.endorsements.as_deref()).unwrap();
    ConfigfsTsm::open(kernel, &places.tsm, &places.event_log, endorsements)
}

fn entries(directory: &tempfile::TempDir) -> usize {
    std::fs::read_dir(directory.path().join("tsm")).unwrap().count()
}

fn envelope(evidence: &Evidence) -> Envelope {
    Envelope::from_bytes(&evidence.bytes).unwrap()
}

#[test]
fn an_snp_guest_staples_what_the_hypervisor_and_the_operator_have_each_once() {
    let directory = tempfile::tempdir().unwrap();
    let places = places(directory.path());
    let stapled = places.endorsements.unwrap();
    std::fs::write(stapled.join("1.der"), b"vcek").unwrap();
    std::fs::write(stapled.join("2.crl"), b"another list").unwrap();
    let kernel = StandIn {
        auxiliary: certificate_table::tests::full(),
        privilege_floor: Some("2"),
        ..StandIn::of("sev_guest")
    };
    let attester = attester(&directory, kernel).unwrap();
    let evidence = attester.attest(&[7; 64]).unwrap();
    assert_eq!(evidence.media_type, snp::MEDIA_TYPE);
    let expected = Envelope {
        evidence: vec![Item::new(snp::REPORT, [&b"report:2"[..], &[7; 64]].concat())],
        endorsements: [
            (CERTIFICATE, "vcek"),
            (CERTIFICATE, "ask"),
            (CERTIFICATE, "ark"),
            (REVOCATION_LIST, "crl"),
            (REVOCATION_LIST, "another list"),
        ]
        .map(|(media_type, bytes)| Item::new(media_type, bytes.as_bytes()))
        .into(),
    };
    assert_eq!(envelope(&evidence), expected);
    assert_eq!(entries(&directory), 0, "its entry is removed");
}

#[test]
fn a_tdx_guest_staples_collateral_and_the_event_log_if_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let places = places(directory.path());
    let attester = attester(&directory, StandIn::of("tdx_guest")).unwrap();
    let quote = Item::new(tdx::QUOTE, [&b"report:"[..], &[9; 64]].concat());
    let evidence = attester.attest(&[9; 64]).unwrap();
    assert_eq!(evidence.media_type, tdx::MEDIA_TYPE);
    assert_eq!(
        envelope(&evidence),
        Envelope {
            evidence: vec![quote.clone()],
            endorsements: vec![]
        }
    );
    std::fs::write(&places.event_log, b"log").unwrap();
    std::fs::write(places.endorsements.unwrap().join("collateral.json"), b"{}").unwrap();
    let log = Item::new(tdx::EVENT_LOG, *b"log");
    assert_eq!(
        envelope(&attester.attest(&[9; 64]).unwrap()),
        Envelope {
            evidence: vec![quote, log],
            endorsements: vec![Item::new(tdx::COLLATERAL, *b"{}")]
        }
    );
}

#[test]
fn a_race_is_tried_again_and_given_up_with_its_count() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = StandIn::of("tdx_guest");
    let intruder = kernel.intruder.clone();
    let attester = attester(&directory, kernel).unwrap();
    *intruder.lock().unwrap() = ATTEMPTS - 1;
    attester.attest(&[1; 64]).unwrap();
    assert_eq!(
        *intruder.lock().unwrap(),
        0,
        "each attempt was disturbed but the last"
    );
    *intruder.lock().unwrap() = u32::MAX;
    let error = attester.attest(&[1; 64]).unwrap_err().to_string();
    assert!(
        error.contains("2 writes to it where 1 were made, 4 times over"),
        "{error}"
    );
    assert_eq!(entries(&directory), 0);
}

/// The kernel takes a binary attribute when its file is closed, where no error is heard: the old report must not pass.
#[test]
fn a_write_that_was_lost_without_an_error_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = StandIn {
        loses_writes: true,
        ..StandIn::of("tdx_guest")
    };
    let error = attester(&directory, kernel)
        .unwrap()
        .attest(&[1; 64])
        .unwrap_err();
    assert!(
        error.to_string().contains("0 writes to it where 1 were made"),
        "{error}"
    );
}

#[test]
fn an_error_of_any_attribute_names_it_and_leaves_no_entry() {
    const EFBIG: i32 = 27;
    for name in ["outblob", "auxblob", "generation", "privlevel_floor"] {
        let directory = tempfile::tempdir().unwrap();
        let kernel = StandIn {
            privilege_floor: Some("0"),
            fails: Some((name, EFBIG)),
            ..StandIn::of("sev_guest")
        };
        let error = attester(&directory, kernel)
            .unwrap()
            .attest(&[1; 64])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(name) && error.contains("File too large"),
            "{error}"
        );
        assert_eq!(entries(&directory), 0, "{name}");
    }
}

#[test]
fn an_unknown_provider_and_another_than_named_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |outcome: Result<ConfigfsTsm<StandIn>, AttesterError>| outcome.err().unwrap().to_string();
    let error = refused(attester(&directory, StandIn::of("arm_cca_guest")));
    assert!(
        error.contains("arm_cca_guest") && error.contains("sev_guest"),
        "{error}"
    );
    let tdx = attester(&directory, StandIn::of("tdx_guest")).unwrap();
    let error = refused(tdx.demand(Provider::SevGuest, "snp"));
    assert!(
        error.contains("attester = \"snp\"") && error.contains("`tdx_guest`"),
        "{error}"
    );
    assert_eq!(entries(&directory), 0);
}
