//! Media types that evidence goes by.

pub(crate) mod snp {
    pub(crate) const MEDIA_TYPE: &str = "application/vnd.bastionai.snp+cmw";
    pub(crate) const REPORT: &str = "application/vnd.bastionai.snp-report";
}

pub(crate) mod tdx {
    pub(crate) const MEDIA_TYPE: &str = "application/vnd.bastionai.tdx+cmw";
    pub(crate) const QUOTE: &str = "application/vnd.bastionai.tdx-quote";
    pub(crate) const EVENT_LOG: &str = "application/vnd.bastionai.ccel-event-log";
    pub(crate) const COLLATERAL: &str = "application/vnd.bastionai.tdx-collateral+json";
}

pub(crate) mod azure {
    pub(crate) const MEDIA_TYPE: &str = "application/vnd.bastionai.azure+cmw";
    pub(crate) const HCL_REPORT: &str = "application/vnd.bastionai.azure-hcl-report";
}
