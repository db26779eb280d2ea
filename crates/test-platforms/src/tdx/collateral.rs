//! Collateral: what the test Intel says of its platform.

use super::pki::{FMSPC, QE_MR_SIGNER, TestIntel};
use super::quote::{CPU_SVN, PCE_SVN, TEE_TCB_SVN};
use serde_json::{Value, json};
use x509_cert::der::DateTime;

/// What collateral says. Its dates are those of TCB info, QE identity and both revocation lists.
#[derive(Clone, Debug)]
pub struct TestCollateral {
    /// Unix seconds.
    pub issued: u64,
    /// Unix seconds; 30 days later by [`TestCollateral::issued`].
    pub next_update: u64,
    /// Status of the one TCB level there is, in Intel's words.
    pub tcb_status: &'static str,
    /// Its advisories.
    pub advisories: Vec<&'static str>,
    /// Status of the quoting enclave.
    pub qe_status: &'static str,
    /// Whether the platform's PCK certificate stands in the CA's list.
    pub pck_revoked: bool,
    /// The model it is for; the platform's unless changed.
    pub fmspc: [u8; 6],
    /// Number of the TCB recovery.
    pub tcb_evaluation_data_number: u32,
}

impl TestCollateral {
    /// For a platform up to date.
    pub fn issued(issued: u64) -> Self {
        Self {
            issued,
            next_update: issued + 30 * 86_400,
            tcb_status: "UpToDate",
            advisories: Vec::new(),
            qe_status: "UpToDate",
            pck_revoked: false,
            fmspc: FMSPC,
            tcb_evaluation_data_number: 18,
        }
    }

    fn tcb_info(&self) -> Value {
        let components = |svns: &[u8; 16]| svns.map(|svn| json!({ "svn": svn })).to_vec();
        let intel = json!({
            "mrsigner": "00".repeat(48), "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8),
        });
        let mut identity = intel.clone();
        identity["id"] = json!("TDX_01");
        identity["tcbLevels"] = json!([
            { "tcb": { "isvsvn": 4 }, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate" },
            { "tcb": { "isvsvn": 2 }, "tcbDate": "2023-08-09T00:00:00Z", "tcbStatus": "OutOfDate" },
        ]);
        let level = json!({
            "tcb": {
                "sgxtcbcomponents": components(&CPU_SVN),
                "pcesvn": PCE_SVN,
                "tdxtcbcomponents": components(&TEE_TCB_SVN),
            },
            "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": self.tcb_status, "advisoryIDs": self.advisories,
        });
        json!({
            "id": "TDX", "version": 3, "issueDate": date(self.issued), "nextUpdate": date(self.next_update),
            "fmspc": hex::encode_upper(self.fmspc), "pceId": "0000", "tcbType": 0,
            "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
            "tdxModule": intel, "tdxModuleIdentities": [identity], "tcbLevels": [level],
        })
    }

    fn qe_identity(&self) -> Value {
        json!({
            "id": "TD_QE", "version": 2, "issueDate": date(self.issued), "nextUpdate": date(self.next_update),
            "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
            "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
            "attributes": format!("11{}", "00".repeat(15)),
            "attributesMask": format!("FB{}{}", "FF".repeat(7), "00".repeat(8)),
            "mrsigner": hex::encode_upper(QE_MR_SIGNER), "isvprodid": 2,
            "tcbLevels": [
                { "tcb": { "isvsvn": 4 }, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": self.qe_status },
            ],
        })
    }
}

impl TestIntel {
    /// Collateral signed by the TCB signer, as JSON.
    pub fn collateral(&self, collateral: &TestCollateral) -> Vec<u8> {
        let (tcb_info, qe_identity) = (
            collateral.tcb_info().to_string(),
            collateral.qe_identity().to_string(),
        );
        let (issued, next_update) = (collateral.issued, collateral.next_update);
        let [root_list, ca_list] = self.revocation_lists(issued, next_update, collateral.pck_revoked);
        let json = json!({
            "pck_crl_issuer_chain": self.ca_chain(),
            "root_ca_crl": hex::encode(root_list),
            "pck_crl": hex::encode(ca_list),
            "tcb_info_issuer_chain": self.tcb_signer_chain(),
            "tcb_info_signature": hex::encode(self.tcb_key.sign(tcb_info.as_bytes())),
            "tcb_info": tcb_info,
            "qe_identity_issuer_chain": self.tcb_signer_chain(),
            "qe_identity_signature": hex::encode(self.tcb_key.sign(qe_identity.as_bytes())),
            "qe_identity": qe_identity,
        });
        serde_json::to_vec(&json).expect("texts are JSON")
    }
}

fn date(unix_seconds: u64) -> String {
    let date = DateTime::from_unix_duration(std::time::Duration::from_secs(unix_seconds));
    date.expect("before the year 10000").to_string()
}
